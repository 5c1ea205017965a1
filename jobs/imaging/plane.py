"""One image of the slide at one fixed pixel size, whose pixels do not depend on how they are read.

The model plane (DESIGN I1) and the tissue plane are both a `Plane`: the coarsest level that is not
coarser than asked for, averaged down over squares of level pixels counted from the slide's origin.
"""

from __future__ import annotations

import functools
import math
import threading
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jobs.imaging.readers.reader import Pixels
from jobs.imaging.slide import Level, Slide

SNAP = 0.01
CHUNK = 512
"""Side of the level squares in which coarse levels are read; see `_level_pixels`."""

CHUNK_BYTES = 48 << 20
"""Such squares that a plane keeps."""

MOST_PIXELS = 1 << 24
"""Level pixels of one read; more are read in parts, so that no level is ever in memory."""


@dataclass(frozen=True)
class Geometry:
    """How a plane lies on the slide. `factor`: level pixels, `scale`: level-0 pixels, a plane pixel."""

    level: Level
    factor_x: float
    factor_y: float
    width: int
    height: int

    @property
    def scale(self) -> tuple[float, float]:
        """Level-0 pixels per plane pixel, by axis."""
        return (
            self.factor_x * self.level.downsample_x,
            self.factor_y * self.level.downsample_y,
        )

    @property
    def upsampled(self) -> bool:
        """True where even level 0 is coarser than the plane."""
        return self.factor_x < 1.0 or self.factor_y < 1.0


def plane_geometry(slide: Slide, mpp: float, pixel_size: tuple[float, float]) -> Geometry:
    """Where the plane of `mpp` µm pixels lies; `pixel_size` is that of level 0, by axis."""
    level = max(
        (one for one in slide.levels if _coarsest(one, pixel_size) <= mpp * (1 + SNAP)),
        key=lambda one: one.downsample_x,
        default=slide.levels[0],
    )
    # a level smaller than a pixel of the plane becomes that pixel
    factor_x = min(_snapped(mpp / (pixel_size[0] * level.downsample_x)), float(level.width))
    factor_y = min(_snapped(mpp / (pixel_size[1] * level.downsample_y)), float(level.height))
    return Geometry(
        level,
        factor_x,
        factor_y,
        max(1, math.floor(level.width / factor_x + 1e-6)),
        max(1, math.floor(level.height / factor_y + 1e-6)),
    )


class Plane:
    """Reads rectangles of the plane: RGB, 0-255, or a fluorescence slide's channels and dtype."""

    def __init__(self, slide: Slide, geometry: Geometry) -> None:
        self.slide = slide
        self.geometry = geometry
        self.width, self.height = geometry.width, geometry.height
        self._chunks: OrderedDict[tuple[int, int], Pixels] = OrderedDict()
        self._kept = max(16, CHUNK_BYTES // slide.empty(1, 1).nbytes // CHUNK**2)
        self._lock = threading.Lock()

    def read(self, x: int, y: int, width: int, height: int) -> Pixels:
        """Pixels (rows, cols, channels) of a rectangle that lies inside the plane. Raises
        ReadFailed; integers are rounded means."""
        return self._means(x, y, width, height)

    def read_rgb(self, x: int, y: int, width: int, height: int) -> NDArray[np.uint8]:
        """The same for the eye: RGB (rows, cols, 3), 0-255, of any slide. Raises ReadFailed."""
        return self.slide.rendered(self.read(x, y, width, height))

    def empty(self, width: int, height: int) -> Pixels:
        """Pixels (height, width, channels) of a place where nothing was scanned."""
        return self.slide.empty(width, height)

    def _means(self, x: int, y: int, width: int, height: int) -> Pixels:
        across = _Axis(x, width, self.geometry.factor_x, self.geometry.level.width)
        down = _Axis(y, height, self.geometry.factor_y, self.geometry.level.height)
        if across.length * down.length > MOST_PIXELS and max(width, height) > 1:
            return self._in_halves(x, y, width, height)
        pixels = self._level_pixels(across.start, down.start, across.length, down.length)
        if across.plain and down.plain:
            return pixels
        if across.whole and down.whole:
            return _block_means(pixels, across.step, down.step)
        rows = _resampled(pixels.astype(np.float32), down, axis=0)
        return _of_type(_resampled(rows, across, axis=1), pixels.dtype)

    def _in_halves(self, x: int, y: int, width: int, height: int) -> Pixels:
        """No pixel depends on the crop it is read in, so that parts make the whole."""
        if width > height:
            half = width // 2
            left = self._means(x, y, half, height)
            return np.hstack([left, self._means(x + half, y, width - half, height)])
        half = height // 2
        upper = self._means(x, y, width, half)
        return np.vstack([upper, self._means(x, y + half, width, height - half)])

    def _level_pixels(self, x: int, y: int, width: int, height: int) -> Pixels:
        """Level pixels; coarse levels come from fixed squares, because OpenSlide shifts a region by
        the fraction of a pixel its level-0 corner falls between, which differs from crop to crop."""
        level = self.geometry.level
        if level.index == 0:
            return self.slide.read(0, x, y, (width, height))
        out = self.empty(width, height)
        for top in range(y - y % CHUNK, y + height, CHUNK):
            for left in range(x - x % CHUNK, x + width, CHUNK):
                chunk = self._chunk(left, top)
                x0, x1 = max(left, x), min(left + CHUNK, x + width)
                y0, y1 = max(top, y), min(top + CHUNK, y + height)
                out[y0 - y : y1 - y, x0 - x : x1 - x] = chunk[
                    y0 - top : y1 - top, x0 - left : x1 - left
                ]
        return out

    def _chunk(self, left: int, top: int) -> Pixels:
        with self._lock:
            found = self._chunks.get((left, top))
            if found is not None:
                self._chunks.move_to_end((left, top))
                return found
        level = self.geometry.level
        size = (min(CHUNK, level.width - left), min(CHUNK, level.height - top))
        corner = (round(left * level.downsample_x), round(top * level.downsample_y))
        chunk = self.slide.read(level.index, *corner, size)
        with self._lock:
            self._chunks[left, top] = chunk
            while len(self._chunks) > self._kept:
                self._chunks.popitem(last=False)
        return chunk


class _Axis:
    """Which level pixels make plane pixels `start … start + count`, and with which weights."""

    def __init__(self, start: int, count: int, factor: float, level_size: int) -> None:
        self.first, self.count, self.factor, self.level_size = start, count, factor, level_size
        self.whole = factor.is_integer()
        self.step = int(factor)
        self.plain = self.whole and self.step == 1
        low = start * factor
        high = (start + count) * factor
        margin = 1 if factor < 1 else 0
        self.start = max(0, math.floor(low + 1e-9) - margin)
        self.length = min(level_size, math.ceil(high - 1e-9) + margin) - self.start

    def taps(self) -> list[tuple[NDArray[np.intp], NDArray[np.float32]]]:
        """(index, weight) per tap, from absolute indices: the same in every crop."""
        position = np.arange(self.first, self.first + self.count, dtype=np.float64)
        if self.factor < 1:
            return self._linear((position + 0.5) * self.factor - 0.5)
        low, high = position * self.factor, (position + 1) * self.factor
        base = np.floor(low)
        taps = []
        for tap in range(math.ceil(self.factor) + 1):
            left = base + tap
            weight = np.clip(np.minimum(left + 1, high) - np.maximum(left, low), 0, None)
            taps.append(self._tap(left, weight / self.factor))
        return taps

    def _linear(
        self, centre: NDArray[np.float64]
    ) -> list[tuple[NDArray[np.intp], NDArray[np.float32]]]:
        base = np.floor(centre)
        return [self._tap(base, 1 - (centre - base)), self._tap(base + 1, centre - base)]

    def _tap(
        self, index: NDArray[np.float64], weight: NDArray[np.float64]
    ) -> tuple[NDArray[np.intp], NDArray[np.float32]]:
        inside = np.clip(index, 0, self.level_size - 1).astype(np.intp) - self.start
        return np.clip(inside, 0, self.length - 1), weight.astype(np.float32)


def _coarsest(level: Level, pixel_size: tuple[float, float]) -> float:
    return max(pixel_size[0] * level.downsample_x, pixel_size[1] * level.downsample_y)


def _snapped(factor: float) -> float:
    nearest = round(factor)
    return float(nearest) if nearest >= 1 and abs(factor - nearest) <= SNAP * nearest else factor


def _block_means(pixels: Pixels, across: int, down: int) -> Pixels:
    """Means of squares; rows first, because they lie together in memory."""
    rows, cols = pixels.shape[0] // down, pixels.shape[1] // across
    kind = _sum_type(pixels.dtype, across * down)
    tall = np.zeros((rows, cols * across, pixels.shape[2]), kind)
    for row in range(down):
        tall += pixels[row : rows * down : down, : cols * across]
    total = np.zeros((rows, cols, pixels.shape[2]), kind)
    for col in range(across):
        total += tall[:, col::across]
    count = across * down
    if pixels.dtype.kind == "f":
        return np.asarray(total / count, pixels.dtype)
    return np.asarray((total + count // 2) // count, pixels.dtype)


def _sum_type(dtype: np.dtype[Any], count: int) -> type[np.number[Any]]:
    """A type that holds the sum of `count` pixels."""
    if dtype.kind == "f":
        return np.float64
    return np.uint32 if (count + 1) * np.iinfo(dtype).max < 2**32 else np.uint64


def _of_type(values: NDArray[np.float32], dtype: np.dtype[Any]) -> Pixels:
    if dtype.kind == "f":
        return np.asarray(values, dtype)
    return np.asarray(np.floor(values + np.float32(0.5)), dtype)


def _resampled(pixels: NDArray[np.float32], axis_of: _Axis, *, axis: int) -> NDArray[np.float32]:
    shape = [1, 1, 1]
    shape[axis] = -1
    parts = (
        np.take(pixels, index, axis=axis) * weight.reshape(shape)
        for index, weight in axis_of.taps()
    )
    return functools.reduce(np.add, parts)
