"""Cells of a job that still runs, read from its finished blocks. They may yet be joined by others,
and have no number before the end; when the job ends otherwise than by success nobody sees them."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from django.db.models import Count, Max, Min, Sum

from jobs import blocks
from jobs.models import Block, Job
from jobs.states import JobState

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from jobs.imaging.cells import Cells

Box = tuple[float, float, float, float]  # x0, y0, x1, y1 in level-0 pixels
log = logging.getLogger(__name__)
MOST_BLOCKS = 64
"""Read for one answer."""
KEPT_BLOCKS = 16
"""Decoded ones that stay in memory, a few MB each: a viewer asks for one window again and again."""


def finished(job: Job) -> Any | None:
    """The finished blocks of a running job, by its latest plan; None where it has none to show."""
    if job.status is not JobState.RUNNING:
        return None
    rows = Block.objects.for_tenant(job.tenant).filter(job=job.pk)
    name = rows.order_by("-pk").values_list("name", flat=True).first()
    return None if name is None else rows.filter(name=name, row__gte=0)


def window(rows: Any, box: Box, most: int) -> dict[str, Any]:
    """The cells of these blocks that touch `box`, at most `most`, in grid order."""
    x0, y0, x1, y1 = box
    near = rows.filter(left_l0__lte=x1, right_l0__gte=x0, top_l0__lte=y1, bottom_l0__gte=y0)
    found: list[dict[str, Any]] = []
    read = 0
    touching = list(near.order_by("row", "col")[: MOST_BLOCKS + 1])
    for block in touching[:MOST_BLOCKS]:
        if len(found) > most:
            break
        try:
            found += _inside(block, box, most + 1 - len(found))
        except Exception as error:  # each storage has errors of its own; other blocks are shown
            log.warning("%s is not shown now: %s", block.path, error)
            continue
        read += 1
    return {
        "cells": found[:most],
        "total": rows.aggregate(sum=Sum("cells"))["sum"] or 0,
        "truncated": len(found) > most or read < len(touching),
        "provisional": True,
    }


def counts(rows: Any) -> dict[str, Any]:
    """Cells, gaps and blocks so far, and the box round the cells (None without any)."""
    found: dict[str, Any] = rows.aggregate(
        cells=Sum("cells"),
        gaps=Sum("gaps"),
        blocks=Count("pk"),
        left=Min("left_l0"),
        top=Min("top_l0"),
        right=Max("right_l0"),
        bottom=Max("bottom_l0"),
    )
    box = [found.pop(side) for side in ("left", "top", "right", "bottom")]
    told = {name: number or 0 for name, number in found.items()}
    return {**told, "bounds": None if None in box else box}


def _inside(block: Block, box: Box, most: int) -> Iterator[dict[str, Any]]:
    """The first `most` cells of a block that touch `box`. Raises what the storage raises, and
    BlockLost when the job ended meanwhile, or computes the block again."""
    cells, boxes = _decoded(block.path, block.sha256)
    x0, y0, x1, y1 = box
    left, top, right, bottom = boxes
    touching = (left <= x1) & (right >= x0) & (top <= y1) & (bottom >= y0)
    for index in touching.nonzero()[0][:most].tolist():
        yield {
            "cell_id": None,
            "label_id": None,
            "polygon": cells.ring(index).tolist(),
            "area": float(cells.area_l0[index]),
            "centroid": cells.centroid_l0[index].tolist(),
            "tile_origin": cells.origin_l0.tolist(),
        }


@lru_cache(KEPT_BLOCKS)
def _decoded(path: str, sha256: str) -> tuple[Cells, tuple[NDArray[np.float64], ...]]:
    """The cells of a block, and left, top, right, bottom of each. Raises BlockLost.

    A path is never written twice, so what is kept here does not grow old.
    """
    import numpy as np  # loads late: most web processes never show a job that runs

    from jobs.imaging.cells import decoded

    cells = decoded(blocks.content_of(path, sha256))
    if not len(cells):
        return cells, (np.empty(0),) * 4
    begins = cells.starts[:-1]
    low, high = (each.reduceat(cells.corners, begins) for each in (np.minimum, np.maximum))
    return cells, (low[:, 0], low[:, 1], high[:, 0], high[:, 1])
