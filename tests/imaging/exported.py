"""Cells made from a label map, and all their result files, for the tests of exports."""

from __future__ import annotations

import gzip
import json
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jobs.imaging.cells import NEAR_GAP, Cells, Schema
from jobs.imaging.contours import outlines
from jobs.imaging.export.all import Exports, Names, Tick, exports
from jobs.imaging.export.frame import Frame
from jobs.imaging.export.staging import Staging, staging

PLANE = (1500, 1300)
BLOCK = 512
NAMES = ("Area µm^2", "Circularity", "Hematoxylin: Mean")
LINES, DOCUMENT = "J_cells.jsonl", "W_cells_segmentation.json"
FRAME = Frame(
    size=(3750, 3250),
    pixel_size=(0.2, 0.2),
    plane=PLANE,
    scale=(2.5, 2.5),
    bounds=(100, 60, 3600, 3100),
)


def silent(_done: int, _total: int) -> None:
    """A tick that nobody hears."""


def label_map(seed: int = 3) -> NDArray[np.int32]:
    """(rows, cols) of PLANE: some 800 bent ellipses and rectangles that do not overlap."""
    rng = np.random.default_rng(seed)
    labels = np.zeros((PLANE[1], PLANE[0]), np.int32)
    y, x = np.mgrid[0:40, 0:40]
    label = 0
    for top in range(0, PLANE[1] - 40, 44):
        for left in range(0, PLANE[0] - 40, 44):
            label += 1
            u, v = x - 20, y - 20 + 0.02 * (x - 20) ** 2
            long, flat = rng.uniform(5, 18), rng.uniform(0.5, 1)
            inside = (u / long) ** 2 + (v / (flat * long)) ** 2 < 1
            off_y, off_x = rng.integers(0, 4, 2)
            labels[top + off_y : top + off_y + 40, left + off_x : left + off_x + 40][inside] = label
    return labels


def blocks_of(labels: NDArray[np.int32], *, nuclei: bool = False) -> list[Cells]:
    """The cells of a label map in blocks, by their first pixel; each third has no nucleus."""
    _, firsts = np.unique(labels, return_index=True)
    wanted = np.unique(labels)[1:]
    seeds = np.column_stack(np.unravel_index(firsts[1:], labels.shape))[:, ::-1]
    keys = seeds[:, ::-1] // BLOCK
    made = []
    for row, column in np.unique(keys, axis=0).tolist():
        mine = np.flatnonzero((keys == [row, column]).all(axis=1))
        made.append(_block(labels, wanted[mine], seeds[mine], (column, row), nuclei=nuclei))
    return made


def _block(
    labels: NDArray[np.int32],
    wanted: NDArray[np.int32],
    seeds: NDArray[np.intp],
    at: tuple[int, int],
    *,
    nuclei: bool,
) -> Cells:
    traced = outlines(labels, wanted)
    scale = np.array(FRAME.scale)
    rng = np.random.default_rng(list(at))
    values = np.round(rng.gamma(2, 30, (len(wanted), len(NAMES))), 4)
    values[:2] = np.nan, np.inf, 0.123456789
    inner: dict[str, Any] = {}
    if nuclei:
        rings, starts = _nuclei(traced.corners, traced.starts)
        inner = {"nuclei": np.round(rings * scale, 2), "nucleus_starts": starts}
    return Cells(
        seeds=seeds.astype(np.int32),
        corners=np.round(traced.corners * scale, 2),
        starts=traced.starts,
        area_l0=np.round(traced.area_px * scale.prod(), 2),
        centroid_l0=np.round(traced.centroid * scale, 2),
        replaced=rng.random(len(wanted)) < 0.1,
        values=values,
        origin_l0=np.array(at) * BLOCK * scale,
        flags=np.where(np.arange(len(wanted)) % 7 == 3, NEAR_GAP, 0).astype(np.uint8),
        **inner,
    )


def _nuclei(
    corners: NDArray[np.int32], starts: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """A square of four pixels inside each ring, but none in each third."""
    square = np.array([[0, 0], [2, 0], [2, 2], [0, 2]])
    rings = [corners[first:last].mean(axis=0).round() + square for first, last in pairwise(starts)]
    lengths = np.where(np.arange(len(rings)) % 3 == 2, 0, 4)
    kept = [ring for ring, length in zip(rings, lengths, strict=True) if length]
    return np.concatenate(kept), np.concatenate([[0], np.cumsum(lengths)])


@dataclass(frozen=True)
class Written:
    """The files of an export, and what it was made from."""

    folder: Path
    blocks: list[Cells]
    told: dict[str, int]

    @property
    def features(self) -> list[dict[str, Any]]:
        with gzip.open(self.folder / "cells.geojson.gz") as stream:
            return list(json.load(stream)["features"])

    @property
    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.folder / LINES).read_text().splitlines()]

    @property
    def document(self) -> dict[str, Any]:
        return dict(json.loads((self.folder / DOCUMENT).read_text()))


def opened(
    stage: Staging, *, kind: str = "detection", frame: Frame = FRAME, threads: int = 2
) -> AbstractContextManager[Exports]:
    """The files of a slide, open for its blocks."""
    names = Names(LINES, DOCUMENT, "=slide, one.svs", 12, "tiled_parallel")
    schema = Schema(kind, NAMES)
    return exports(
        stage, names=names, schema=schema, frame=frame, result_key="key", threads=threads
    )


def fill(files: Exports, blocks: list[Cells], tick: Tick = silent) -> None:
    """Give all blocks to the writers and complete the files."""
    first = 1
    for cells in blocks:
        files.add(cells, first)
        first += len(cells)
    files.close(tick)


def write(
    folder: Path,
    blocks: list[Cells],
    *,
    kind: str = "detection",
    threads: int = 2,
    tick: Tick = silent,
) -> Written:
    """Write every file of `blocks` into `folder`."""
    with staging(folder) as stage:
        with opened(stage, kind=kind, threads=threads) as files:
            fill(files, blocks, tick)
        told = dict(files.told)
        stage.publish()
    return Written(folder, blocks, told)
