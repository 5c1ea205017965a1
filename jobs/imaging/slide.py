"""Opening a whole-slide image: its levels, pixel size and channels, and reading pixels of a level.

Torch-free: the web process uses it too. Coordinates: `_l0` level-0 pixels, `_lv` level pixels.
"""

from __future__ import annotations

import functools
import math
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import openslide
from numpy.typing import NDArray

from jobs.imaging.contract import BadInput
from jobs.imaging.readers.colours import Rendering, ToSrgb
from jobs.imaging.readers.kinds import reader_of
from jobs.imaging.readers.openslides import OpenSlideReader
from jobs.imaging.readers.pictures import RenderedSlide
from jobs.imaging.readers.reader import NotRead, Pixels, Reader, Size
from jobs.imaging.weights import FLUORESCENCE

MPP_LOW, MPP_HIGH = 0.1, 1.0
"""Pixel sizes (µm) at which nuclei can be segmented."""

GIVE_MPP = 'give the pixel size of the full-resolution image as "mpp" (µm per pixel) in params'
MICRONS = {"inch": 25_400.0, "centimeter": 10_000.0}
SAMPLE_SIDE, SAMPLES = 256, 8
"""The contrast of a fluorescence slide comes from 8 × 8 squares of its smallest level."""


class ReadFailed(BadInput):
    """Pixels that could not be read, though the file was opened again to try once more."""


@dataclass(frozen=True)
class Level:
    """One layer of the pyramid; `downsample` is level-0 pixels per level pixel, by axis.

    It is whole where the level's sides are within a pixel of it: they lost their last rows.
    """

    index: int
    width: int
    height: int
    downsample_x: float
    downsample_y: float


class Slide:
    """An open slide. Reads from any thread.

    kind      "brightfield": 8-bit RGB, or "fluorescence": any channels, of `dtype`
    channels  their names
    """

    def __init__(self, path: Path, *, mpp: float | None = None) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._reader = reader_of(path)
        sizes, properties = self._reader.sizes, self._reader.properties
        self.width, self.height = sizes[0]
        self.levels = tuple(_level(index, sizes[0], size) for index, size in enumerate(sizes))
        self.kind = "brightfield" if self._reader.brightfield else "fluorescence"
        self.channels = tuple(channel.name for channel in self._reader.channels)
        self.dtype = self._reader.dtype
        self.vendor = self._reader.vendor
        self.properties = properties
        self.quickhash = properties.get(openslide.PROPERTY_NAME_QUICKHASH1)
        self.objective = _positive(properties.get(openslide.PROPERTY_NAME_OBJECTIVE_POWER))
        self.bounds = _bounds(properties)
        self.mpp, self.mpp_source = _pixel_size(properties, self.vendor, self.objective, mpp)
        self._to_srgb = ToSrgb(self._reader.profile)

    @property
    def handle(self) -> Any:
        """The slide as openslide-python has it, for its DeepZoomGenerator."""
        reader = self._reader
        if isinstance(reader, OpenSlideReader) and reader.whole:
            return reader.handle
        return RenderedSlide(self)

    def close(self) -> None:
        """Close the file; no thread may be reading."""
        self._reader.close()

    def __enter__(self) -> Slide:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def read(self, level: int, x_l0: int, y_l0: int, size: tuple[int, int]) -> Pixels:
        """Pixels (rows, cols, channels) of `dtype`; brightfield is RGB in sRGB. Where the scanner
        saw nothing they are `empty`. Raises ReadFailed."""
        layer = self.levels[level]
        corner = (round(x_l0 / layer.downsample_x), round(y_l0 / layer.downsample_y))
        reader = self._reader
        try:
            pixels = reader.read(level, *corner, size)
        except NotRead:
            pixels = self._again(reader, (level, *corner, size))
        return self._to_srgb(pixels) if self.kind == "brightfield" else pixels

    def read_rgb(self, level: int, x_l0: int, y_l0: int, size: tuple[int, int]) -> Pixels:
        """The same for the eye: RGB (rows, cols, 3), 0-255, of any slide. Raises ReadFailed."""
        return self.rendered(self.read(level, x_l0, y_l0, size))

    def rendered(self, pixels: Pixels) -> NDArray[np.uint8]:
        """Pixels that were read, as RGB; fluorescence with one contrast for the whole slide."""
        return pixels if self.kind == "brightfield" else self._rendering(pixels)

    def empty(self, width: int, height: int) -> Pixels:
        """Pixels (height, width, channels) where the scanner saw nothing: white, or 0."""
        blank = 255 if self.kind == "brightfield" else 0
        return np.full((height, width, len(self.channels)), blank, self.dtype)

    def _again(self, failed: Reader, place: tuple[int, int, int, tuple[int, int]]) -> Pixels:
        """One more try, through a handle that nobody else can break at the same time."""
        level, x_lv, y_lv, size = place
        try:
            with self._lock:
                if self._reader is failed:
                    self._reader = failed.reopened()  # the old one is closed with its last read
            own = failed.reopened()
            try:
                return own.read(level, x_lv, y_lv, size)
            finally:
                own.close()
        except (NotRead, BadInput) as error:
            x_l0 = round(x_lv * self.levels[level].downsample_x)
            y_l0 = round(y_lv * self.levels[level].downsample_y)
            raise ReadFailed(
                f"{self.path.name} could not be read near x={x_l0}, y={y_l0} ({error}). The file "
                "may be truncated or damaged: compare its size with the original and copy it again."
            ) from error

    @functools.cached_property
    def _rendering(self) -> Rendering:
        squares, failed = [], None
        for place in _sample_places(self.levels[-1]):
            try:
                square = self.read(*place)[::2, ::2]
                squares.append(square.reshape(-1, square.shape[2]))
            except ReadFailed as error:  # a damaged place is a gap, whose colours nobody misses
                failed = error
        if failed is not None and not squares:
            raise failed
        return Rendering(self._reader.channels, np.concatenate(squares))


def open_slide(path: Path, *, mpp: float | None = None) -> Slide:
    """Open `path`; `mpp` (µm per level-0 pixel) overrides what the file says. Raises BadInput."""
    if not path.is_file():
        raise BadInput(f"There is no slide {path.name}: check the path, or upload the file again.")
    return Slide(path, mpp=mpp)


def cell_pixel_size(slide: Slide) -> tuple[float, float]:
    """Pixel size (µm, by axis) of a slide on which cells can be segmented, or BadInput."""
    if slide.mpp is None:
        raise BadInput(f"{slide.path.name} does not say how large its pixels are: {GIVE_MPP}.")
    low, high = min(slide.mpp), max(slide.mpp)
    if low < MPP_LOW or high > MPP_HIGH:
        raise BadInput(
            f"{slide.path.name} has pixels of {high:g} µm ({slide.mpp_source}); nuclei can be "
            f"segmented from {MPP_LOW} to {MPP_HIGH} µm per pixel. If that number is wrong, "
            f"{GIVE_MPP}; if it is right, this image is too {'coarse' if high > 1 else 'fine'}."
        )
    return slide.mpp


def cell_channels(slide: Slide, wanted: int | None) -> None:
    """Raise BadInput where a model that takes `wanted` channels, or any, does not fit the slide.

    Three are those of an RGB picture: a model of brightfield must not see three markers instead.
    """
    held = f"{len(slide.channels)} channels ({', '.join(slide.channels[:6])})"
    if wanted is None or (
        wanted == len(slide.channels) and (wanted == 3) == (slide.kind == "brightfield")
    ):
        return
    kind = "RGB brightfield" if wanted == 3 else f"{wanted} channels"
    raise BadInput(
        f"{slide.path.name} is a {slide.kind} slide with {held}, and the model takes {kind}: choose "
        f"a model for {slide.kind} slides"
        + ("." if slide.kind == "brightfield" else f', for example "model": "{FLUORESCENCE}".')
    )


def _level(index: int, full: Size, size: Size) -> Level:
    across, down = full[0] / size[0], full[1] / size[1]
    whole = round((across + down) / 2)
    if all(abs(side / whole - own) <= 1 for side, own in zip(full, size, strict=True)):
        across = down = float(whole)
    return Level(index, *size, across, down)


def _pixel_size(
    properties: Mapping[str, str], vendor: str, objective: float | None, given: float | None
) -> tuple[tuple[float, float] | None, str]:
    """Pixel size and where it comes from: request, metadata, TIFF tags, objective power."""
    if given is not None:
        if _positive(given) is None:
            raise BadInput(f'"mpp" is {given!r}: give a positive number of µm per pixel.')
        return (float(given), float(given)), "request"
    x = _positive(properties.get(openslide.PROPERTY_NAME_MPP_X))
    y = _positive(properties.get(openslide.PROPERTY_NAME_MPP_Y))
    if x is not None or y is not None:
        sources = {"generic-tiff": "TIFF tags", "ome-tiff": "OME"}
        return (x or y or 0.0, y or x or 0.0), sources.get(vendor, "metadata")
    tags = _tag_pixel_size(properties)
    if tags is not None:
        return tags, "TIFF tags"
    if objective is not None:
        return (10.0 / objective, 10.0 / objective), "assumed from objective power"
    return None, "unknown"


def _tag_pixel_size(properties: Mapping[str, str]) -> tuple[float, float] | None:
    """From TIFF resolution tags, where they are a scanner's and not a printer's (72, 300 dpi)."""
    unit = MICRONS.get(properties.get("tiff.ResolutionUnit", ""))
    x = _positive(properties.get("tiff.XResolution"))
    y = _positive(properties.get("tiff.YResolution"))
    if unit is None or x is None or y is None or max(unit / x, unit / y) > 10.0:
        return None
    return unit / x, unit / y


def _sample_places(layer: Level) -> list[tuple[int, int, int, Size]]:
    """Squares spread over a level, as `Slide.read` takes them."""
    size = min(SAMPLE_SIDE, layer.width), min(SAMPLE_SIDE, layer.height)
    lefts = np.linspace(0, layer.width - size[0], SAMPLES).astype(int).tolist()
    tops = np.linspace(0, layer.height - size[1], SAMPLES).astype(int).tolist()
    across, down = layer.downsample_x, layer.downsample_y
    corners = {(round(x * across), round(y * down)) for x in lefts for y in tops}
    return [(layer.index, *corner, size) for corner in sorted(corners)]


def _positive(value: object) -> float | None:
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) and number > 0 else None


def _bounds(properties: Mapping[str, str]) -> tuple[int, int, int, int] | None:
    """The scanned part (x, y, width, height), only where all four are given, as QuPath has it."""
    names = (
        openslide.PROPERTY_NAME_BOUNDS_X,
        openslide.PROPERTY_NAME_BOUNDS_Y,
        openslide.PROPERTY_NAME_BOUNDS_WIDTH,
        openslide.PROPERTY_NAME_BOUNDS_HEIGHT,
    )
    try:
        x, y, width, height = (int(properties[name]) for name in names)
    except (KeyError, ValueError):
        return None
    return x, y, width, height
