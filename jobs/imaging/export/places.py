"""Outlines sorted by where they lie, on disk: blocks come in, squares of the slide come out.

A square is CHUNK level-0 pixels wide; a cell belongs to the square of its centroid. What is kept is
what the viewer gets: corners in quarters of a level-0 pixel, each as the step from the one before it.
The model plane's pixel edges can be found again from that without loss.
"""

from __future__ import annotations

import itertools
import os
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from jobs.imaging.compiled import compiled
from jobs.imaging.export.batch import Batch

CHUNK = 2048
CELL, NUCLEUS = 0, 1
"""Kinds of outline: a detection or cell; the nucleus of the cell whose id it has."""

HEAD = np.dtype(
    [
        ("id", "<u4"),
        ("x", "<f4"),
        ("y", "<f4"),
        ("area", "<f4"),
        ("corners", "<u2"),
        ("reach", "<u2"),
        ("kind", "u1"),
        ("free", "u1", 3),
    ]
)
"""One outline: rank, centre and area in level-0 pixels, how many steps are its own, and how many
level-0 pixels to any side its corners can lie from the centre."""

Square = tuple[int, int]
"""Column and row of a square of the slide."""


@dataclass(frozen=True)
class Shapes:
    """m outlines: their heads, and the steps (Σ corners, 2) x, y in quarter pixels. The first step of
    an outline goes from its centre, rounded to quarters (half up), to its first corner."""

    heads: NDArray[np.void]
    steps: NDArray[np.int16]


@dataclass
class _Kept:
    """Where the pieces of a square lie in the file, and what they hold."""

    pieces: list[tuple[int, int, int]]
    cells: int
    box: NDArray[np.float64]


class Places:
    """The outlines of a slide, by square, in a file that goes when it is closed."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = path.open("wb+")
        self._end = 0
        self._squares: dict[Square, _Kept] = defaultdict(
            lambda: _Kept([], 0, np.array([np.inf, np.inf, -np.inf, -np.inf]))
        )
        self._sorted: list[Square] = []
        self._boxes = np.empty((0, 4))
        self.cells = 0
        self.area = 0.0
        """Level-0 pixels that all cells cover together."""

    def add(self, batch: Batch) -> None:
        """Sort in the outlines of a batch."""
        squares = np.asarray(batch.centroid // (100 * CHUNK))
        order = np.lexsort((squares[:, 0], squares[:, 1]))  # stable: ranks stay in order
        heads, steps, ends = _encoded(batch, order)
        sorted_squares = squares[order]
        cuts = np.flatnonzero(np.any(np.diff(sorted_squares, axis=0), axis=1)) + 1
        bounds = [0, *cuts.tolist(), len(order)]
        for first, last in itertools.pairwise(bounds):
            if first < last:
                column, row = sorted_squares[first].tolist()
                kept = self._squares[column, row]
                self._keep(kept, heads, steps, ends[[first, last]])
                kept.cells += last - first
                _widen(kept.box, batch, order[first:last])
        self.cells += len(batch)
        self.area += float(batch.area.sum()) / 100

    def complete(self) -> None:
        """Nothing is added any more: from here on squares can be read, by several threads."""
        self._file.flush()
        self._sorted = sorted(self._squares, key=lambda square: (square[1], square[0]))
        boxes = [self._squares[square].box for square in self._sorted]
        self._boxes = np.array(boxes).reshape(-1, 4)

    def close(self) -> None:
        """Let the file go."""
        self._file.close()
        self._path.unlink(missing_ok=True)

    def squares(self) -> list[Square]:
        """Those with cells, rows from the top."""
        if len(self._sorted) < len(self._squares):
            raise AssertionError("squares are asked for before `complete`: a fault of labsched")
        return self._sorted

    def count(self, square: Square) -> int:
        """Cells of a square."""
        return self._squares[square].cells

    def box(self, square: Square) -> tuple[float, float, float, float]:
        """x0, y0, x1, y1 in level-0 pixels round the outlines of a square."""
        x0, y0, x1, y1 = self._squares[square].box.tolist()
        return x0, y0, x1, y1

    def touching(self, box: tuple[float, float, float, float]) -> list[Square]:
        """The squares with outlines that may reach into a box (x0, y0, x1, y1 in level-0 pixels)."""
        x0, y0, x1, y1 = box
        squares = self.squares()
        left, top, right, bottom = self._boxes.T
        there = (left < x1) & (right > x0) & (top < y1) & (bottom > y0)
        return [squares[index] for index in np.flatnonzero(there)]

    def read(self, square: Square) -> Shapes:
        """The outlines of a square, in order of rank. Threads may read at once."""
        heads, steps = [], []
        for at, shapes, corners in self._squares[square].pieces:
            middle = shapes * HEAD.itemsize
            content = os.pread(self._file.fileno(), middle + 4 * corners, at)
            heads.append(np.frombuffer(content[:middle], HEAD))
            steps.append(np.frombuffer(content[middle:], np.int16).reshape(-1, 2))
        return Shapes(np.concatenate(heads), np.concatenate(steps))

    def heads(self, square: Square) -> NDArray[np.void]:
        """What `read` gives, without the corners."""
        return np.concatenate(
            [
                np.frombuffer(os.pread(self._file.fileno(), n * HEAD.itemsize, at), HEAD)
                for at, n, _ in self._squares[square].pieces
            ]
        )

    def _keep(
        self,
        kept: _Kept,
        heads: NDArray[np.void],
        steps: NDArray[np.int16],
        ends: NDArray[np.int64],
    ) -> None:
        (first, corner), (last, after) = ends.tolist()
        kept.pieces.append((self._end, last - first, after - corner))
        for part in (heads[first:last], steps[corner:after]):
            self._file.write(part.tobytes())
            self._end += part.nbytes


def _widen(box: NDArray[np.float64], batch: Batch, chosen: NDArray[np.intp]) -> None:
    for corners, starts in (
        (batch.corners, batch.starts),
        (batch.nuclei, batch.nucleus_starts),
    ):
        low, high = _extent(corners, starts, chosen)
        np.minimum(box[:2], low / 100, out=box[:2])
        np.maximum(box[2:], high / 100, out=box[2:])


def _encoded(
    batch: Batch, order: NDArray[np.intp]
) -> tuple[NDArray[np.void], NDArray[np.int16], NDArray[np.int64]]:
    """Heads and steps in `order`, and for each cell of it (and the end) where both of it begin."""
    both = len(batch) + int(batch.has_nucleus.sum())
    heads = np.zeros(both, HEAD)
    centres = (batch.centroid / 100).astype(np.float32)
    steps, ends, source = _steps(
        order,
        np.floor(4 * centres.astype(np.float64) + 0.5).astype(np.int64),
        batch.corners,
        batch.starts,
        batch.nuclei,
        batch.nucleus_starts,
        heads["corners"],
        heads["reach"],
        heads["kind"],
    )
    if len(steps) and max(-int(steps.min()), int(steps.max())) > np.iinfo(np.int16).max:
        raise AssertionError("an outline is wider than 8,000 pixels: this is a fault of labsched")
    heads["id"], heads["area"] = batch.ranks[source], batch.area[source] / 100
    heads["x"], heads["y"] = centres[source].T
    return heads, steps.astype(np.int16), ends


@compiled
def _extent(
    corners: NDArray[np.int64], starts: NDArray[np.int64], chosen: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    low, high = np.full(2, np.int64(1) << 60), np.full(2, -(np.int64(1) << 60))
    for i in chosen:
        for k in range(starts[i], starts[i + 1]):
            for axis in range(2):
                low[axis] = min(low[axis], corners[k, axis])
                high[axis] = max(high[axis], corners[k, axis])
    return low, high


@compiled
def _walk(
    steps: NDArray[np.int64], at: int, ring: NDArray[np.int64], centre: NDArray[np.int64]
) -> tuple[int, int]:
    """Write the steps of a ring (hundredths) from `centre` (quarters); returns where they end, and
    how many level-0 pixels they go from it."""
    x, y = centre[0], centre[1]
    reach = 0
    for k in range(len(ring)):
        quarter_x, quarter_y = (2 * ring[k, 0] + 25) // 50, (2 * ring[k, 1] + 25) // 50
        steps[at, 0], steps[at, 1] = quarter_x - x, quarter_y - y
        x, y = quarter_x, quarter_y
        reach = max(reach, abs(x - centre[0]), abs(y - centre[1]))
        at += 1
    return at, reach // 4 + 2


@compiled
def _steps(
    order: NDArray[np.int64],
    centres: NDArray[np.int64],
    corners: NDArray[np.int64],
    starts: NDArray[np.int64],
    nuclei: NDArray[np.int64],
    nucleus_starts: NDArray[np.int64],
    counts: NDArray[np.uint16],
    reaches: NDArray[np.uint16],
    kinds: NDArray[np.uint8],
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    steps = np.empty((len(corners) + len(nuclei), 2), np.int64)
    ends = np.zeros((len(order) + 1, 2), np.int64)
    source = np.empty(len(counts), np.int64)
    at, shape = 0, 0
    for k in range(len(order)):
        i = order[k]
        began = at
        at, reaches[shape] = _walk(steps, at, corners[starts[i] : starts[i + 1]], centres[i])
        counts[shape], kinds[shape], source[shape] = at - began, CELL, i
        shape += 1
        if nucleus_starts[i + 1] > nucleus_starts[i]:
            began = at
            ring = nuclei[nucleus_starts[i] : nucleus_starts[i + 1]]
            at, reaches[shape] = _walk(steps, at, ring, centres[i])
            counts[shape], kinds[shape], source[shape] = at - began, NUCLEUS, i
            shape += 1
        ends[k + 1, 0], ends[k + 1, 1] = shape, at
    return steps, ends, source
