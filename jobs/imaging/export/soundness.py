"""Makes sure that every ring is a valid polygon at two decimals.

QuPath from 0.6 on refuses a whole file for one ring that is not (CONVENTIONS §4.1).
"""

from __future__ import annotations

from collections import Counter
from dataclasses import fields, replace

import numpy as np
import shapely
from numpy.typing import NDArray

from jobs.imaging.compiled import compiled
from jobs.imaging.export.batch import Batch

Ring = NDArray[np.int64]


def sound(batch: Batch) -> tuple[Batch, Counter[str]]:
    """The batch with valid rings only, and how many were repaired or dropped.

    A ring that is not valid is repaired: its largest part stays, without holes. What has no area is
    dropped: a cell from every file, its rank stays free; a nucleus from its cell.
    """
    told: Counter[str] = Counter()
    batch = _with_nuclei(batch, told)
    doubtful = np.flatnonzero(~simple(batch.corners, batch.starts))
    if not len(doubtful):
        return batch, told
    rings = _rings(batch.corners, batch.starts)
    _mend(rings, doubtful, told, "cells")
    corners, starts = _arrays(rings)
    batch = replace(batch, corners=corners, starts=starts)
    return _kept(batch, np.diff(starts) > 0), told


def _with_nuclei(batch: Batch, told: Counter[str]) -> Batch:
    fine = simple(batch.nuclei, batch.nucleus_starts) | ~batch.has_nucleus
    doubtful = np.flatnonzero(~fine)
    if not len(doubtful):
        return batch
    rings = _rings(batch.nuclei, batch.nucleus_starts)
    _mend(rings, doubtful, told, "nuclei")
    nuclei, starts = _arrays(rings)
    return replace(batch, nuclei=nuclei, nucleus_starts=starts)


def _mend(rings: list[Ring], doubtful: NDArray[np.intp], told: Counter[str], what: str) -> None:
    for index in doubtful.tolist():
        mended = repaired(rings[index])
        if mended is None:
            told[f"{what}_dropped"] += 1
            mended = np.zeros((0, 2), np.int64)
        elif mended is not rings[index]:
            told[f"{what}_repaired"] += 1
        rings[index] = mended


def repaired(ring: Ring) -> Ring | None:
    """A valid ring for `ring`: itself where it is valid, its largest part, or None without area."""
    if len(ring) < 3:
        return None
    polygon = shapely.Polygon(ring / 100)
    if polygon.is_valid and polygon.area > 0:
        return ring
    mended = shapely.set_precision(shapely.make_valid(polygon), 0.01)
    parts = shapely.get_parts(shapely.get_parts(mended))  # a collection may hold a multipolygon
    areas = shapely.area(parts)
    if not len(parts) or not areas.max() > 0:
        return None
    outer = shapely.get_coordinates(parts[areas.argmax()].exterior)[:-1]
    largest = np.rint(outer * 100).astype(np.int64)
    return largest if shapely.Polygon(largest / 100).is_valid else None


def _rings(corners: Ring, starts: NDArray[np.int64]) -> list[Ring]:
    return np.split(corners, starts[1:-1])


def _arrays(rings: list[Ring]) -> tuple[Ring, NDArray[np.int64]]:
    lengths = [len(ring) for ring in rings]
    return np.concatenate(rings), np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)


def _kept(batch: Batch, keep: NDArray[np.bool_]) -> Batch:
    """The batch without the cells that lost their ring."""
    nuclei = [
        ring if kept else ring[:0]
        for ring, kept in zip(_rings(batch.nuclei, batch.nucleus_starts), keep, strict=True)
    ]
    corners, starts = batch.corners, batch.starts
    lengths = np.diff(starts)[keep]
    joined, nucleus_starts = _arrays(nuclei)
    whole = {"corners", "starts", "nuclei", "nucleus_starts"}
    rows = {
        each.name: getattr(batch, each.name)[keep]
        for each in fields(batch)
        if each.name not in whole
    }
    return Batch(
        corners=corners,
        starts=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        nuclei=joined,
        nucleus_starts=np.concatenate([nucleus_starts[:-1][keep], nucleus_starts[-1:]]),
        **rows,
    )


@compiled
def simple(corners: NDArray[np.int64], starts: NDArray[np.int64]) -> NDArray[np.bool_]:
    """(n,) True where no two sides of a ring meet but neighbours in their common corner.

    Such a ring is a valid polygon. In whole numbers the answer is exact; False is only a doubt.
    """
    fine = np.zeros(len(starts) - 1, np.bool_)
    for i in range(len(fine)):
        ring = corners[starts[i] : starts[i + 1]]
        fine[i] = len(ring) >= 3 and _no_spike(ring) and _no_meeting(ring)
    return fine


@compiled
def _side(ax: int, ay: int, bx: int, by: int, cx: int, cy: int) -> int:
    return (bx - ax) * (cy - ay) - (by - ay) * (cx - ax)


@compiled
def _no_spike(ring: NDArray[np.int64]) -> bool:
    """True where no side has no length or runs back over the one before it."""
    count = len(ring)
    for b in range(count):
        a, c = (b - 1) % count, (b + 1) % count
        ux, uy = ring[b, 0] - ring[a, 0], ring[b, 1] - ring[a, 1]
        vx, vy = ring[c, 0] - ring[b, 0], ring[c, 1] - ring[b, 1]
        if (ux == 0 and uy == 0) or (ux * vy == uy * vx and ux * vx + uy * vy <= 0):
            return False
    return True


@compiled
def _no_meeting(ring: NDArray[np.int64]) -> bool:
    """True where no two sides that are not neighbours share a point."""
    count = len(ring)
    for i in range(count - 2):
        ax, ay, bx, by = ring[i, 0], ring[i, 1], ring[i + 1, 0], ring[i + 1, 1]
        left, right = min(ax, bx), max(ax, bx)
        top, bottom = min(ay, by), max(ay, by)
        for j in range(i + 2, count - (i == 0)):
            k = j + 1 if j + 1 < count else 0
            cx, cy, dx, dy = ring[j, 0], ring[j, 1], ring[k, 0], ring[k, 1]
            if (cx < left and dx < left) or (cx > right and dx > right):
                continue
            if (cy < top and dy < top) or (cy > bottom and dy > bottom):
                continue
            one, two = _side(ax, ay, bx, by, cx, cy), _side(ax, ay, bx, by, dx, dy)
            if (one > 0 and two > 0) or (one < 0 and two < 0):
                continue
            one, two = _side(cx, cy, dx, dy, ax, ay), _side(cx, cy, dx, dy, bx, by)
            if not ((one > 0 and two > 0) or (one < 0 and two < 0)):
                return False
    return True
