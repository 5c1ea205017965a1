"""Checks the cells a job reported, from its files and the slide: what a reader would look at first."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray
from PIL import Image

DUPLICATE_IOU = 0.5
MIDDLE = 7  # pixels round a centroid that tell whether anything is there
GLASS_LIGHTNESS = 225  # of 255
GLASS_SATURATION = 15

ReadPixels = Callable[[int, int, int], NDArray[np.uint8]]
"""`read(x_l0, y_l0, size)`: RGB pixels of a square of level 0."""


@dataclass(frozen=True)
class Verdict:
    """Numbers of cells: all, and those that break a rule."""

    cells: int
    on_glass: int
    duplicates: int
    centroid_outside: int

    def faults(self) -> list[str]:
        """One sentence a broken rule; empty when the result holds."""
        found = (
            (self.on_glass, "cells lie on bare glass, off the tissue mask"),
            (self.duplicates, f"pairs of cells overlap by more than IoU {DUPLICATE_IOU:g}"),
            (self.centroid_outside, "cells have their centroid outside their outline"),
        )
        return [f"{number:,} {what}." for number, what in found if number]


@dataclass(frozen=True)
class Cells:
    """Outlines and centroids in level-0 pixels, (x, y)."""

    outlines: NDArray[Any]
    centroids: NDArray[np.float64]


def verify(
    cells_jsonl: Path, *, mask_png: Path, scale_l0: tuple[float, float], read: ReadPixels
) -> Verdict:
    """Count the cells of a JSONL file and those that cannot be right.

    mask_png   0/255 over the whole slide; one pixel of it covers `scale_l0` level-0 pixels
    """
    cells = read_cells(cells_jsonl)
    points = shapely.points(cells.centroids)
    return Verdict(
        cells=len(cells.outlines),
        on_glass=count_on_glass(cells, mask_png, scale_l0, read),
        duplicates=count_duplicates(cells.outlines),
        centroid_outside=int((~shapely.intersects(cells.outlines, points)).sum()),
    )


def read_cells(cells_jsonl: Path) -> Cells:
    """Every line of the file."""
    outlines, centroids = [], []
    with cells_jsonl.open() as lines:
        for line in lines:
            cell = json.loads(line)
            outlines.append(shapely.Polygon(cell["polygon"]))
            centroids.append(cell["centroid"])
    middles = np.array(centroids, dtype=np.float64).reshape(-1, 2)
    return Cells(np.array(outlines, dtype=object), middles)


def count_duplicates(outlines: NDArray[Any]) -> int:
    """How many pairs share more than DUPLICATE_IOU of what they cover together."""
    if not len(outlines):
        return 0
    first, second = shapely.STRtree(outlines).query(outlines, predicate="intersects")
    once = first < second
    one, other = outlines[first[once]], outlines[second[once]]
    shared = shapely.area(shapely.intersection(one, other))
    together = shapely.area(one) + shapely.area(other) - shared
    return int((shared > DUPLICATE_IOU * together).sum())


def count_on_glass(
    cells: Cells, mask_png: Path, scale_l0: tuple[float, float], read: ReadPixels
) -> int:
    """How many centroids the mask leaves out and show nothing but glass.

    Off the mask alone is no fault: the mask is coarse, and a nucleus may lie a few µm beside it.
    """
    with Image.open(mask_png) as image:
        tissue = np.asarray(image.convert("L")) > 127
    last = np.array(tissue.shape[::-1]) - 1
    cols, rows = (cells.centroids / scale_l0).astype(int).clip(0, last).T
    beside = cells.centroids[~tissue[rows, cols]]
    return sum(
        is_glass(read(int(x) - MIDDLE // 2, int(y) - MIDDLE // 2, MIDDLE)) for x, y in beside
    )


def is_glass(pixels: NDArray[np.uint8]) -> bool:
    """Whether RGB pixels are as light and as colourless as an empty slide."""
    colours = pixels.reshape(-1, 3).astype(float)
    saturation = (colours.max(axis=1) - colours.min(axis=1)).mean()
    return bool(colours.mean() > GLASS_LIGHTNESS and saturation < GLASS_SATURATION)
