"""Cells of a finished job, read from its JSONL artifact, where everything is [x, y]."""

from __future__ import annotations

import threading
from array import array
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import IO, Any

import orjson

from jobs.downloads import open_stored
from jobs.models import Artifact

Box = tuple[float, float, float, float]  # x0, y0, x1, y1 in level-0 pixels
KEPT_INDEXES = 4
"""Jobs whose index stays in memory: about 40 bytes a cell each."""


@dataclass(frozen=True)
class CellIndex:
    """Where each cell's line begins, and the box round its outline."""

    starts: array[int]
    ends: array[int]
    boxes: Sequence[array[float]]  # x0, y0, x1, y1: one array each

    def __len__(self) -> int:
        return len(self.starts)

    def inside(self, box: Box, most: int) -> list[int]:
        """Numbers of the first `most` cells whose box touches `box`, in file order."""
        x0, y0, x1, y1 = box
        left, top, right, bottom = self.boxes
        found = []
        for number in range(len(self)):
            beside = left[number] > x1 or right[number] < x0
            if beside or top[number] > y1 or bottom[number] < y0:
                continue
            found.append(number)
            if len(found) > most:
                break
        return found


_indexes: OrderedDict[tuple[str, str], CellIndex] = OrderedDict()
_lock = threading.Lock()


def index_of(artifact: Artifact) -> CellIndex:
    """The index of a JSONL artifact, built once by reading it through."""
    key = (artifact.path, artifact.sha256)
    with _lock:
        if key in _indexes:
            _indexes.move_to_end(key)
            return _indexes[key]
    with open_stored(artifact) as file:
        made = _build(file)
    with _lock:
        _indexes[key] = made
        while len(_indexes) > KEPT_INDEXES:
            _indexes.popitem(last=False)
    return made


def read(artifact: Artifact, numbers: Iterable[int]) -> list[dict[str, Any]]:
    """The cells with these line numbers."""
    index = index_of(artifact)
    cells = []
    with open_stored(artifact) as file:
        for number in numbers:
            file.seek(index.starts[number])
            cells.append(orjson.loads(file.read(index.ends[number] - index.starts[number])))
    return cells


def bounds_of(artifact: Artifact) -> list[float] | None:
    """x0, y0, x1, y1 round all cells; None when there are none."""
    index = index_of(artifact)
    if not len(index):
        return None
    left, top, right, bottom = index.boxes
    return [min(left), min(top), max(right), max(bottom)]


def _build(file: IO[bytes]) -> CellIndex:
    starts, ends = array("q"), array("q")
    boxes = [array("f") for _ in range(4)]
    place = 0
    for line in file:
        if line.strip():
            starts.append(place)
            ends.append(place + len(line))
            for values, value in zip(boxes, _box(orjson.loads(line)), strict=True):
                values.append(value)
        place += len(line)
    return CellIndex(starts, ends, boxes)


def _box(cell: dict[str, Any]) -> Box:
    """The box round a cell."""
    points = cell.get("polygon") or [cell["centroid"]]
    xs = [point[0] for point in points]
    ys = [point[1] for point in points]
    return min(xs), min(ys), max(xs), max(ys)
