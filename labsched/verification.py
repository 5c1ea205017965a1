"""Checks the cells a job reported, from its files alone: what a reader would look at first."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray
from PIL import Image

DUPLICATE_IOU = 0.5


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
            (self.on_glass, "cells lie on glass, off the tissue mask"),
            (self.duplicates, f"pairs of cells overlap by more than IoU {DUPLICATE_IOU:g}"),
            (self.centroid_outside, "cells have their centroid outside their outline"),
        )
        return [f"{number:,} {what}." for number, what in found if number]


def verify(
    cells_jsonl: Path, *, mask_png: Path | None, slide_width: int, slide_height: int
) -> Verdict:
    """Count the cells of a JSONL file and those that cannot be right.

    mask_png      0/255 over the whole slide, at any scale; None leaves the glass unchecked
    slide_width   level-0 pixels, as are all outlines
    """
    outlines, centroids = _read(cells_jsonl)
    off = 0
    if mask_png is not None and len(outlines):
        off = _off_tissue(outlines, mask_png, slide_width, slide_height)
    return Verdict(
        cells=len(outlines),
        on_glass=off,
        duplicates=count_duplicates(outlines),
        centroid_outside=int((~shapely.intersects(outlines, centroids)).sum()),
    )


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


def _read(cells_jsonl: Path) -> tuple[NDArray[Any], NDArray[Any]]:
    """Outlines, turned from the format's own [y, x], and centroids of every line."""
    outlines, centroids = [], []
    with cells_jsonl.open() as lines:
        for line in lines:
            cell = json.loads(line)
            outlines.append(shapely.Polygon(np.asarray(cell["polygon"], dtype=float)[:, ::-1]))
            centroids.append(cell["centroid"])
    return np.array(outlines, dtype=object), shapely.points(np.reshape(centroids, (-1, 2)))


def _off_tissue(outlines: NDArray[Any], mask_png: Path, width: int, height: int) -> int:
    """How many outlines no tissue pixel of the mask comes within one mask pixel of."""
    with Image.open(mask_png) as image:
        tissue = np.asarray(image.convert("L")) > 127
    rows, cols = tissue.shape
    scale = np.array([cols / width, rows / height, cols / width, rows / height])
    boxes = shapely.bounds(outlines) * scale
    low = np.floor(boxes[:, :2]).astype(int) - 1
    high = np.ceil(boxes[:, 2:]).astype(int) + 1
    low, high = low.clip(0), high.clip(1, [cols, rows])
    # sums over boxes in constant time each: area tables
    table = np.pad(tissue.cumsum(0, dtype=np.int64).cumsum(1), ((1, 0), (1, 0)))
    inside = (
        table[high[:, 1], high[:, 0]]
        - table[low[:, 1], high[:, 0]]
        - table[high[:, 1], low[:, 0]]
        + table[low[:, 1], low[:, 0]]
    )
    return int((inside == 0).sum())
