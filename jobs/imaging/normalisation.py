"""One brightness scale per slide (DESIGN I3): percentiles over the whole plane, found before any cell.

InstanSeg's own whole-slide path scales every tile by itself, which turns the noise of bare glass into
nuclei.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from jobs.imaging.tiling import Rect

RULE = "percentiles 0.1/99.9 of all pixels, 512 px blocks, at most 256 of them in hash order, v1"
LOW, HIGH = 0.1, 99.9
BLOCK, MOST = 512, 256
SMALLEST_RANGE = 1e-3
"""As InstanSeg's: a channel without contrast stays flat and is not divided by nothing."""


@dataclass(frozen=True)
class Normalisation:
    """Per channel: `(value - low) * gain` is what the network expects, before it clips to -2 … 3."""

    low: tuple[float, float, float]
    high: tuple[float, float, float]

    @property
    def gain(self) -> tuple[float, ...]:
        return tuple(
            1.0 / max(SMALLEST_RANGE, high - low)
            for low, high in zip(self.low, self.high, strict=True)
        )


class Histogram:
    """Counts of the 256 values of each channel; adding blocks in any order gives the same."""

    def __init__(self) -> None:
        self.counts = np.zeros((3, 256), np.int64)

    def add(self, rgb: NDArray[np.uint8]) -> None:
        """Count the pixels of `rgb` (rows, cols, 3)."""
        for channel in range(3):
            self.counts[channel] += np.bincount(rgb[..., channel].ravel(), minlength=256)

    def normalisation(self) -> Normalisation:
        """The scale that what was added so far asks for."""
        low = tuple(_percentile(channel, LOW) for channel in self.counts)
        high = tuple(_percentile(channel, HIGH) for channel in self.counts)
        return Normalisation(low, high)  # type: ignore[arg-type]


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
