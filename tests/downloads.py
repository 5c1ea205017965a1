"""Reads a job's results the way a client does, and what they say about cells."""

from __future__ import annotations

import gzip
import hashlib
import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray

from tests.client import Client, Row


@dataclass(frozen=True)
class Download:
    """One artifact: what the job says of it, and its bytes."""

    said: Row
    content: bytes

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    def json(self) -> Any:
        content = self.content
        return json.loads(gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content)

    def lines(self) -> list[Row]:
        return [json.loads(line) for line in self.content.splitlines()]


def download_all(client: Client, job: Row) -> dict[str, Download]:
    """Every artifact of a job by name."""
    found = {}
    for said in job["artifacts"]:
        answer = client.get(said["url"])
        assert answer.status_code == 200, (said, answer.status_code)
        found[said["name"]] = Download(said, answer.content)
    return found


def ending(files: dict[str, Download], suffix: str) -> Download:
    """The one artifact whose name ends so."""
    names = [name for name in files if name.endswith(suffix)]
    assert len(names) == 1, f"{suffix} of {sorted(files)}"
    return files[names[0]]


def polygons_xy(document: Row) -> NDArray[Any]:
    """The outlines of a segmentation document, turned from its own [y, x] to (x, y)."""
    return np.array([shapely.Polygon(np.array(c["polygon"])[:, ::-1]) for c in document["cells"]])


def duplicate_pairs(outlines: NDArray[Any], *, iou: float = 0.5) -> list[tuple[int, int]]:
    """Pairs of outlines that overlap by more than `iou`."""
    tree = shapely.STRtree(outlines)
    first, second = tree.query(outlines, predicate="intersects")
    pairs = [(int(a), int(b)) for a, b in zip(first, second, strict=True) if a < b]
    return [(a, b) for a, b in pairs if overlap(outlines[a], outlines[b]) > iou]


def agreement(truth: NDArray[Any], found: NDArray[Any], *, iou: float) -> float:
    """F1 of two sets of outlines that do not overlap among themselves."""
    first, second = shapely.STRtree(found).query(truth, predicate="intersects")
    hits = sum(overlap(truth[a], found[b]) > iou for a, b in zip(first, second, strict=True))
    return 2 * hits / (len(truth) + len(found))


def overlap(one: Any, other: Any) -> float:
    """Intersection over union."""
    shared = one.intersection(other).area
    return float(shared / (one.area + other.area - shared))
