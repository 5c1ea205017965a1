"""Deep-zoom tiles of slides: one open handle a file and process, a bounded number of them."""

from __future__ import annotations

import io
import threading
import time
from collections import OrderedDict
from typing import Any

import openslide
from openslide.deepzoom import DeepZoomGenerator
from PIL import Image, ImageCms

from jobs.imaging.contract import BadInput
from jobs.imaging.slide import Slide as OpenSlide
from jobs.imaging.slide import open_slide
from jobs.models import Slide
from jobs.slides import catalogue
from jobs.slides.catalogue import Unreadable
from jobs.slides.roots import FileKey
from jobs.slides.staging import Held

TILE_SIZE = 254  # with an overlap of 1 on both sides: 256, a power of two
OVERLAP = 1
JPEG_QUALITY = 75
KEPT_SLIDES, KEPT_S = 10, 60.0
"""Handles of a process, and for how long after their last use: each keeps its file in the cache."""
CACHE_BYTES = 128 * 1024 * 1024
MOST_PIXELS = 32_000_000
"""Pixels that one tile may cost to read: a slide without small levels would fill the memory."""


class NoTile(LookupError):
    """The pyramid has no such level or address."""


class Zoomed:
    """An open slide, its tile generator, and what keeps its file where it is."""

    def __init__(self, slide: OpenSlide, held: Held) -> None:
        self.slide = slide
        self.held = held
        self.used_at = time.monotonic()
        slide.handle.set_cache(_cache())
        self.generator = DeepZoomGenerator(
            slide.handle, tile_size=TILE_SIZE, overlap=OVERLAP, limit_bounds=True
        )
        self._colours = threading.local()

    def srgb(self, image: Image.Image) -> Image.Image:
        """`image` in sRGB, by the slide's own colour profile where it has one."""
        if not hasattr(self._colours, "transform"):
            self._colours.transform = _transform(self.slide.handle.color_profile)
        if self._colours.transform is None:
            return image
        return ImageCms.applyTransform(image, self._colours.transform) or image


_open: OrderedDict[FileKey, Zoomed] = OrderedDict()
_lock = threading.Lock()
_shared_cache: openslide.OpenSlideCache | None = None


def _cache() -> openslide.OpenSlideCache:
    global _shared_cache
    if _shared_cache is None:
        _shared_cache = openslide.OpenSlideCache(CACHE_BYTES)
    return _shared_cache


def _transform(profile: Any) -> Any:
    if profile is None:
        return None
    try:
        if "srgb" in ImageCms.getProfileDescription(profile).lower():
            return None
        return ImageCms.buildTransform(profile, ImageCms.createProfile("sRGB"), "RGB", "RGB")
    except ImageCms.PyCMSError:
        return None  # a damaged profile says nothing about the pixels


def zoomed(slide: Slide, *, fetch: bool = True) -> tuple[FileKey, Zoomed]:
    """The open slide. Raises NoSlide, Unreadable or SlideAway.

    fetch    begin to fetch it from the bucket where it is not on this machine
    """
    key = catalogue.key_of(slide)
    with _lock:
        if key in _open:
            _open.move_to_end(key)
            _open[key].used_at = time.monotonic()
            return key, _open[key]
    held = catalogue.file_of(slide, fetch=fetch)
    catalogue.facts_of(slide)  # a child process opens it first
    try:
        made = Zoomed(open_slide(held.path), held)
    except (BadInput, openslide.OpenSlideError) as error:
        raise Unreadable(str(error)) from error
    with _lock:
        # another thread may have been quicker: its handle stays, ours is closed with its last use
        kept = _open.setdefault(key, made)
        _look_later()
        while len(_open) > KEPT_SLIDES:
            _open.popitem(last=False)  # not closed here: a tile may be read from it right now
    return key, kept


_timer: threading.Timer | None = None


def _look_later() -> None:
    """Have `_drop_unused` called in a while, once. The caller holds the lock."""
    global _timer
    if _timer is None:
        _timer = threading.Timer(KEPT_S / 4, _drop_unused)
        _timer.daemon = True
        _timer.start()


def _drop_unused() -> None:
    """Let go of what nobody looked at for KEPT_S, and look again while something is open."""
    global _timer
    with _lock:
        _timer = None
        since = time.monotonic() - KEPT_S
        for key in [key for key, each in _open.items() if each.used_at < since]:
            del _open[key]  # not closed here, as above
        if _open:
            _look_later()


def descriptor(slide: Slide) -> str:
    """The .dzi document."""
    text: str = zoomed(slide)[1].generator.get_dzi("jpeg")
    return text


def tile(slide: Slide, level: int, address: tuple[int, int]) -> bytes:
    """A tile as JPEG. Raises NoTile, NoSlide or Unreadable."""
    key, source = zoomed(slide)
    try:
        _, _, (width, height) = source.generator.get_tile_coordinates(level, address)
        _check_cost(slide, width, height)
        return _jpeg(source.srgb(source.generator.get_tile(level, address)))
    except ValueError as error:
        raise NoTile(str(error)) from error
    except openslide.OpenSlideError as error:
        raise _broken(slide, key, error) from error


def thumbnail(slide: Slide, size: int) -> bytes:
    """The slide, at most `size` pixels wide and high, as JPEG. Raises as `zoomed` does.

    A list shows a page of these: none of them fetches a slide.
    """
    key, source = zoomed(slide, fetch=False)
    handle = source.slide.handle
    x, y, width, height = source.slide.bounds or (0, 0, *handle.dimensions)
    shrink = max(width / size, height / size, 1.0)
    level = handle.get_best_level_for_downsample(shrink)
    downsample = handle.level_downsamples[level]
    region = (max(1, int(width / downsample)), max(1, int(height / downsample)))
    _check_cost(slide, *region)
    try:
        pixels = handle.read_region((x, y), level, region)
    except openslide.OpenSlideError as error:
        raise _broken(slide, key, error) from error
    image = Image.new("RGB", region, "white")
    image.paste(pixels, mask=pixels.getchannel("A"))
    image.thumbnail((size, size), Image.Resampling.LANCZOS)
    return _jpeg(source.srgb(image))


def _check_cost(slide: Slide, width: int, height: int) -> None:
    if width * height > MOST_PIXELS:
        raise Unreadable(
            f"{slide.path} has no small levels, so an overview of it would fill the memory: export "
            "it again as a pyramidal TIFF."
        )


def _broken(slide: Slide, key: FileKey, error: Exception) -> Unreadable:
    with _lock:
        _open.pop(key, None)  # OpenSlide refuses everything after its first error
    return Unreadable(
        f"{slide.path} could not be read ({error}). The file may be truncated or damaged: compare "
        "its size with the original and copy it again."
    )


def _jpeg(image: Image.Image) -> bytes:
    into = io.BytesIO()
    image.save(into, "JPEG", quality=JPEG_QUALITY)
    return into.getvalue()
