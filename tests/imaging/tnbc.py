"""The ground truth of Naylor et al. (2018): 50 tiles of H&E at 0.25 µm per pixel, and how to score on it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray
from PIL import Image

from tests.imaging.slides import Pixels

MPP = 0.25
SIDE = 512
Labels = NDArray[np.int32]


@dataclass(frozen=True)
class Tile:
    """RGB pixels and, of the same shape, which nucleus each belongs to; 0 is none."""

    name: str
    rgb: Pixels
    labels: Labels


@dataclass(frozen=True)
class Score:
    """Nuclei found, missed and invented; they add up over tiles."""

    hits: int
    missed: int
    invented: int

    def __add__(self, other: Score) -> Score:
        return Score(
            self.hits + other.hits, self.missed + other.missed, self.invented + other.invented
        )

    @property
    def f1(self) -> float:
        return 2 * self.hits / (2 * self.hits + self.missed + self.invented)

    @property
    def precision(self) -> float:
        return self.hits / (self.hits + self.invented)

    @property
    def recall(self) -> float:
        return self.hits / (self.hits + self.missed)


def tiles(assets: Path) -> list[Tile]:
    """All tiles, by name."""
    folder = assets / "ground_truth" / "tnbc"
    return [
        Tile(
            path.stem,
            np.asarray(Image.open(path).convert("RGB")),
            np.asarray(Image.open(folder / "labels" / path.name)).astype(np.int32),
        )
        for path in sorted((folder / "images").glob("*.png"))
    ]


def mosaic(chosen: list[Tile], across: int) -> tuple[Pixels, Labels]:
    """Tiles side by side, `across` in a row, and their labels."""
    rows = [chosen[first : first + across] for first in range(0, len(chosen), across)]
    rgb = np.vstack([np.hstack([tile.rgb for tile in row]) for row in rows])
    labels = np.zeros(rgb.shape[:2], np.int32)
    last = 0
    for index, tile in enumerate(chosen):
        y, x = index // across * SIDE, index % across * SIDE
        labels[y : y + SIDE, x : x + SIDE] = np.where(tile.labels, tile.labels + last, 0)
        last += int(tile.labels.max())
    return rgb, labels


def halved(rgb: Pixels) -> Pixels:
    """The means of 2 × 2 pixels: the model plane of a tile."""
    rows, cols = rgb.shape[0] // 2, rgb.shape[1] // 2
    means = rgb.reshape(rows, 2, cols, 2, 3).mean(axis=(1, 3))
    return np.floor(means + 0.5).astype(np.uint8)


def drawn(cells: list[dict[str, Any]], shape: tuple[int, int]) -> Labels:
    """A label map of cells: the pixels whose centres lie in their polygons."""
    labels = np.zeros(shape, np.int32)
    for number, cell in enumerate(cells, start=1):
        polygon = shapely.Polygon(cell["polygon"])
        low_x, low_y, high_x, high_y = (int(edge) for edge in polygon.bounds)
        x, y = np.meshgrid(np.arange(low_x, high_x + 1), np.arange(low_y, high_y + 1))
        inside = shapely.contains_xy(polygon, x + 0.5, y + 0.5)
        labels[y[inside], x[inside]] = number
    return labels


def score(truth: Labels, found: Labels, least: float = 0.5) -> Score:
    """Pairs of nuclei whose intersection over union is above `least` (from 0.5 on: one to one)."""
    pairs, both = np.unique(np.stack([truth.ravel(), found.ravel()]), axis=1, return_counts=True)
    area_truth, area_found = np.bincount(truth.ravel()), np.bincount(found.ravel())
    real = (pairs > 0).all(axis=0)
    union = area_truth[pairs[0]] + area_found[pairs[1]] - both
    hits = int((real & (both > least * union)).sum())
    return Score(
        hits,
        int((area_truth[1:] > 0).sum()) - hits,
        int((area_found[1:] > 0).sum()) - hits,
    )
