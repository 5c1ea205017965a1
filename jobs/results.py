"""What a finished job left: its main file, its result document, its cells. 409 before, 404 without.

While a job runs, the cells of its finished blocks can be seen (`jobs.provisional`).
"""

from __future__ import annotations

import math
import os
from typing import Any

import orjson
from rest_framework import status
from rest_framework.exceptions import APIException, NotFound, ValidationError

from jobs import cells, provisional
from jobs.downloads import open_stored
from jobs.models import Artifact, Job
from jobs.shapes import artifact_shape, job_state
from jobs.slides import catalogue

DOCUMENTS = ("segmentation", "tissue_json")
"""Kinds of the JSON documents that `/results` answers, the first one there."""
LAST_FIELDS = 4096
"""Bytes at the end of a result document that hold all it says beside its cells."""


class NotFinished(APIException):
    """The job is not over, so it has no result yet."""

    status_code = status.HTTP_409_CONFLICT
    default_code = "not_finished"


def of_kind(job: Job, *kinds: str) -> Artifact | None:
    """The job's artifact of the first of these kinds that it has, or None."""
    rows = {artifact.kind: artifact for artifact in job.artifacts.all()}
    return next((rows[kind] for kind in kinds if kind in rows), None)


def main(job: Job) -> Artifact:
    """The artifact that is the job's result. Raises NotFinished or NotFound."""
    return _there(job, next((each for each in job.artifacts.all() if each.main), None))


def document(job: Job) -> Artifact:
    """The JSON document of the job. Raises NotFinished or NotFound."""
    return _there(job, of_kind(job, *DOCUMENTS))


def cell_lines(job: Job) -> Artifact:
    """The JSONL artifact of the job. Raises NotFinished or NotFound."""
    return _there(job, of_kind(job, "cells_jsonl"))


def _there(job: Job, artifact: Artifact | None) -> Artifact:
    if not job.status.terminal:
        raise NotFinished(
            f"{job.key} is {job.status.public}: its result is here once it has SUCCEEDED."
        )
    if artifact is None:
        why = job.error or "See its artifacts."
        raise NotFound(f"{job.key} is {job.status.public} and left no such result. {why}")
    return artifact


def page_of_cells(job: Job, number: int, size: int) -> dict[str, Any]:
    """Page `number` (from 1) of the result document."""
    lines = cell_lines(job)
    total = len(cells.index_of(lines))
    pages = max(1, math.ceil(total / size))
    if number > pages:
        raise NotFound(f"There is no page {number}: the last one is {pages}.")
    start = (number - 1) * size
    return {
        "cells": [
            _published(cell) for cell in cells.read(lines, range(start, min(total, start + size)))
        ],
        **_last_fields(document(job)),
        "page": number,
        "pages": pages,
    }


def _published(cell: dict[str, Any]) -> dict[str, Any]:
    """A cell of the JSONL as the document has it: its polygon is [y, x]."""
    fields = ("cell_id", "label_id", "polygon", "area", "centroid", "near_gap")
    return {name: cell[name] for name in fields if name in cell} | {
        "polygon": [[y, x] for x, y in cell["polygon"]]
    }


def _last_fields(artifact: Artifact) -> dict[str, Any]:
    """The fields of a result document that stand behind its cells, without reading those."""
    with open_stored(artifact) as file:
        file.seek(max(0, artifact.size - LAST_FIELDS), os.SEEK_SET)
        tail = file.read()
    begin = tail.rfind(b'"total_cells"')
    found: dict[str, Any] = orjson.loads(b"{" + tail[begin:]) if begin >= 0 else {}
    return found


def window(job: Job, box: cells.Box, most: int) -> dict[str, Any]:
    """The cells that touch `box`, at most `most`; of a running job those found so far."""
    rows = provisional.finished(job)
    if rows is not None:
        return provisional.window(rows, box, most)
    lines = cell_lines(job)
    index = cells.index_of(lines)
    numbers = index.inside(box, most)
    return {
        "cells": cells.read(lines, numbers[:most]),
        "total": len(index),
        "truncated": len(numbers) > most,
        "provisional": False,
    }


def one_cell(job: Job, cell_id: int) -> dict[str, Any]:
    """The cell with this id. Ids are ranks in file order, so it is found without a search."""
    lines = cell_lines(job)
    total = len(cells.index_of(lines))
    near = [number for number in (cell_id, cell_id - 1) if 0 <= number < total]
    for cell in cells.read(lines, near):
        if cell.get("cell_id") == cell_id:
            return cell
    raise NotFound(f"{job.key} has no cell {cell_id}: it has {total} cells.")


def parse_box(text: str) -> cells.Box:
    """`x0,y0,x1,y1` as a box. Raises ValidationError."""
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) != 4 or not all(math.isfinite(number) for number in numbers):
        raise ValidationError(
            {"bbox": ["Give x0,y0,x1,y1 in level-0 pixels, as in ?bbox=0,0,1000,1000."]}
        )
    x0, y0, x1, y1 = numbers
    return min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1)


def visualization(job: Job) -> dict[str, Any]:
    """What a viewer needs to show `job` over its slide; null where the job has no such thing."""
    return {
        "job": job_state(job),
        "slide": catalogue.shape(job.slide, probe=True) if job.slide else None,
        **_cells_of(job),
        "mask": _url(job, "tissue_mask"),
        "outline": _url(job, "tissue_geojson"),
        "overlay_tiles": _url(job, "overlay"),
        "chunks": _url(job, "chunks"),
    }


def _cells_of(job: Job) -> dict[str, Any]:
    """Bounds, counts and layer of the cells; while the job runs those of what is finished."""
    rows = provisional.finished(job)
    if rows is not None:
        found = provisional.counts(rows)
        bounds, count = found.pop("bounds"), found["cells"]
        return {
            "provisional": True,
            "bounds": bounds,
            "counts": found,
            "cells": {**_layer(job, count), "document": None, "geojson": None},
        }
    lines = of_kind(job, "cells_jsonl")
    return {
        "provisional": False,
        "bounds": cells.bounds_of(lines) if lines else None,
        "counts": job.summary,
        "cells": _layer(job, len(cells.index_of(lines))) if lines else None,
    }


def _layer(job: Job, count: int) -> dict[str, Any]:
    return {
        "count": count,
        "window": f"/api/jobs/{job.uuid}/cells",
        "document": _url(job, "segmentation"),
        "geojson": _url(job, "geojson"),
    }


def _url(job: Job, kind: str) -> str | None:
    artifact = of_kind(job, kind)
    return artifact_shape(job, artifact)["url"] if artifact else None
