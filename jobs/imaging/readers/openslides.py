"""Slides that OpenSlide reads."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import openslide
from numpy.typing import NDArray
from PIL import Image

from jobs.imaging.contract import BadInput
from jobs.imaging.readers.reader import RGB, Channel, NotRead, Pixels, Size

if TYPE_CHECKING:
    from jobs.imaging.readers.jpegtiles import JpegTiles

GENERIC = "generic-tiff"
TIFFS = (GENERIC, "aperio")
"""Kinds whose tiles lie side by side, so that nothing need be painted; see `jpegtiles`."""

LARGE = 1 << 16
"""Pixels of a read that `jpegtiles` is for: a first look, or one tile for the eye, does not load it."""

CACHE_BYTES = 64 << 20
"""Decoded tiles that a slide keeps."""

LOOK, DIFFERENT = 64, 30.0
"""Side of the places where levels are compared, and the grey values that make them different."""


class OpenSlideReader:
    """One OpenSlide handle for all threads, so that they share its decoded tiles.

    A handle refuses everything after its first error; `reopened` gives a new one.
    """

    dtype: np.dtype[Any] = np.dtype(np.uint8)
    channels: tuple[Channel, ...] = RGB
    brightfield = True

    def __init__(self, path: Path) -> None:
        self.path = path
        self.handle = _cached(path)
        self.properties: Mapping[str, str] = dict(self.handle.properties)
        self.vendor = self.properties.get(openslide.PROPERTY_NAME_VENDOR, "unknown")
        self._downsamples: tuple[float, ...] = tuple(self.handle.level_downsamples)
        self.profile: Any | None = self.handle.color_profile
        self.sizes: tuple[Size, ...] = tuple(self.handle.level_dimensions)
        if self.vendor == "dicom":
            self.sizes = self.sizes[: _sound(self)]
            self.handle = self.handle if self.whole else _cached(path)

    @property
    def whole(self) -> bool:
        """True where every level of the file is used."""
        return len(self.sizes) == len(self._downsamples)

    def read(self, level: int, x_lv: int, y_lv: int, size: Size) -> Pixels:
        """RGB; see `Reader`."""
        if level == 0 and size[0] * size[1] >= LARGE and self._tiles is not None:
            with contextlib.suppress(NotRead):  # OpenSlide judges what is odd, in its own words
                return self._tiles.read(x_lv, y_lv, size)
        # OpenSlide divides by its own factor, the mean of both axes, to find the level's pixel
        factor = self._downsamples[level]
        corner = (round(x_lv * factor), round(y_lv * factor))
        try:
            return _on_white(self.handle.read_region(corner, level, size))
        except openslide.OpenSlideError as error:
            raise NotRead(str(error)) from error

    def reopened(self) -> OpenSlideReader:
        """The same slide through a new handle."""
        return OpenSlideReader(self.path)

    def close(self) -> None:
        """Close the handle."""
        self.handle.close()
        vars(self).pop("_tiles", None)

    @functools.cached_property
    def _tiles(self) -> JpegTiles | None:
        if self.vendor not in TIFFS:
            return None
        from jobs.imaging.readers.jpegtiles import jpeg_tiles

        return jpeg_tiles(self.path, self.sizes[0])


def _sound(reader: OpenSlideReader) -> int:
    """How many levels look alike. Each level of a DICOM slide is a file that says itself how its
    colours are coded; converters get that wrong, and leave out the ends of tiles, in levels they make.
    """
    try:
        for level in range(1, len(reader.sizes)):
            if not all(_alike(reader, level, at) for at in (0.5, 1.0)):
                return level
    except NotRead:
        return level
    return len(reader.sizes)


def _alike(reader: OpenSlideReader, level: int, at: float) -> bool:
    """True where a level and the next finer one have one colour at a place (0: start, 1: end)."""
    means = []
    for one, side in ((level, LOOK), (level - 1, round(LOOK * _step(reader, level)))):
        width, height = reader.sizes[one]
        size = min(side, width), min(side, height)
        corner = int((width - size[0]) * at), int((height - size[1]) * at)
        means.append(reader.read(one, *corner, size).mean(axis=(0, 1)))
    return bool(np.abs(means[0] - means[1]).max() < DIFFERENT)


def _step(reader: OpenSlideReader, level: int) -> float:
    return reader._downsamples[level] / reader._downsamples[level - 1]


def _cached(path: Path) -> openslide.OpenSlide:
    handle = _opened(path)
    handle.set_cache(openslide.OpenSlideCache(CACHE_BYTES))
    return handle


def _opened(path: Path) -> openslide.OpenSlide:
    try:
        return openslide.OpenSlide(path)
    except openslide.OpenSlideError as error:
        raise BadInput(
            f"{path.name} cannot be opened ({error}). The file may be truncated, damaged or of a "
            "kind that is not supported: compare its size with the original and copy it again, or "
            "export it as a pyramidal TIFF."
        ) from error


def _on_white(image: Image.Image) -> NDArray[np.uint8]:
    """RGB of an RGBA picture that lies on white."""
    if image.getchannel("A").getextrema() == (255, 255):
        return np.array(image.convert("RGB"))
    rgba = np.asarray(image)
    weight = rgba[..., 3:].astype(np.uint16)
    mixed = (rgba[..., :3] * weight + 255 * (255 - weight) + 127) // 255
    return mixed.astype(np.uint8)
