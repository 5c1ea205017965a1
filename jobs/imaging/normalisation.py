"""One brightness scale per slide (DESIGN I3): percentiles over the whole plane, found before any cell.

InstanSeg's own whole-slide path scales every tile by itself, which turns the noise of bare glass into
nuclei.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import DTypeLike, NDArray

from jobs.imaging.contract import BadInput
from jobs.imaging.tiling import Rect

RULE = "percentiles 0.1/99.9 of all pixels, 512 px blocks, at most 256 of them in hash order, v1"
LOW, HIGH = 0.1, 99.9
LOWEST, HIGHEST = -2.0, 3.0
"""Where InstanSeg clips what it normalised."""

BLOCK, MOST = 512, 256
VALUES = {np.dtype(np.uint8): 256, np.dtype(np.uint16): 65_536}
SMALLEST_RANGE = 1e-3
"""As InstanSeg's: a channel without contrast stays flat and is not divided by nothing."""


@dataclass(frozen=True)
class Normalisation:
    """Per channel: `(value - low) * gain` is what the network expects, before it clips to -2 … 3."""

    low: tuple[float, ...]
    high: tuple[float, ...]

    @property
    def gain(self) -> tuple[float, ...]:
        return tuple(
            1.0 / max(SMALLEST_RANGE, high - low)
            for low, high in zip(self.low, self.high, strict=True)
        )


class Histogram:
    """Counts of the values of each channel; adding blocks in any order gives the same.

    dtype   of the pixels: uint8 or uint16. Raises BadInput for others, which have no fixed values
    """

    def __init__(self, channels: int = 3, dtype: DTypeLike = np.uint8) -> None:
        if np.dtype(dtype) not in VALUES:
            raise BadInput(
                f"The slide's pixels are {np.dtype(dtype).name}, and only 8 and 16 bits without sign "
                "are read: save it as 8 or 16 bits and submit again."
            )
        self.counts = np.zeros((channels, VALUES[np.dtype(dtype)]), np.int64)

    def add(
        self, pixels: NDArray[np.uint8] | NDArray[np.uint16], where: NDArray[np.bool_] | None = None
    ) -> None:
        """Count `pixels` (rows, cols, channels), all or those `where` (rows, cols) is True."""
        for channel, counts in enumerate(self.counts):
            values = pixels[..., channel]
            counted = values.ravel() if where is None else values[where]
            counts += np.bincount(counted, minlength=len(counts))

    def normalisation(self) -> Normalisation:
        """The scale that what was added so far asks for; the whole range where that is nothing."""
        if not self.counts.any():
            channels, values = self.counts.shape
            return Normalisation((0.0,) * channels, (values - 1.0,) * channels)
        low = tuple(_percentile(channel, LOW) for channel in self.counts)
        high = tuple(_percentile(channel, HIGH) for channel in self.counts)
        return Normalisation(low, high)


def sample_blocks(width: int, height: int) -> list[Rect]:
    """The blocks of a plane that are counted: all of them, or 256 in an order fixed by a hash."""
    blocks = list(_blocks(Rect(0, 0, width, height)))
    if len(blocks) <= MOST:
        return blocks
    return sorted(blocks, key=_hash_of)[:MOST]


def _blocks(plane: Rect) -> Iterator[Rect]:
    for y in range(0, plane.height, BLOCK):
        for x in range(0, plane.width, BLOCK):
            yield Rect(x, y, BLOCK, BLOCK).clipped(plane)


def _hash_of(block: Rect) -> bytes:
    return hashlib.sha256(f"{block.x},{block.y}".encode()).digest()


def _percentile(counts: NDArray[np.int64], percent: float) -> float:
    """What numpy.percentile gives for the pixels themselves (linear interpolation)."""
    cumulative = np.cumsum(counts)
    last = int(cumulative[-1]) - 1
    position = last * percent / 100
    below = int(np.floor(position))
    low = int(np.searchsorted(cumulative, below + 1))
    high = int(np.searchsorted(cumulative, min(below + 1, last) + 1))
    return low + (position - below) * (high - low)
