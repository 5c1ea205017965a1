"""Cells of a job that still runs, over HTTP and as a viewer hears of them."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from rest_framework.test import APIClient

from jobs import blocks, provisional, services
from jobs.imaging.blocks import BlockFacts
from jobs.imaging.cells import Cells
from jobs.models import Block, Job
from jobs.running.checkpoints import JobBlocks
from jobs.scheduling import promotion
from jobs.shapes import merged_ticks
from jobs.states import Reason
from realtime import receivers
from realtime.courier import Courier
from tests import factories

pytestmark = pytest.mark.django_db(transaction=True)

SIDE = 100  # pixels a side of a block


@pytest.fixture(autouse=True)
def lab(settings: Any, tmp_path: Path) -> None:
    settings.LABSCHED_ENABLE_PROBE_JOBS = True
    settings.TRUST_USER_HEADER = True
    settings.LABSCHED_DATA = tmp_path
    storage: dict[str, Any] = {"BACKEND": "django.core.files.storage.FileSystemStorage"}
    storage["OPTIONS"] = {"location": str(tmp_path)}
    settings.STORAGES = {**settings.STORAGES, "default": storage}


@pytest.fixture
def job() -> Job:
    """A job of ann that runs."""
    factories.capacity()
    factories.workflow(factories.tenant("ann"), [factories.job("it")])
    ((pk, attempt),) = promotion.promote()
    started = services.start(pk, attempt, "cpu-0")
    assert started is not None
    return started


def get(job: Job, path: str, who: str = "ann") -> Any:
    client = APIClient(headers={"X-User-ID": who})
    return client.get(f"/api/jobs/{job.uuid}/{path}")


def squares(x: float, y: float, count: int = 2) -> Cells:
    """Squares of 10 pixels, 20 apart, from (x, y) to the right."""
    ring = np.array([[0, 0], [10, 0], [10, 10], [0, 10]], float)
    corners = np.concatenate([ring + np.array([x + 20 * n, y]) for n in range(count)])
    middle = corners.reshape(count, 4, 2).mean(axis=1)
    return Cells(
        seeds=middle.astype(np.int32),
        corners=corners,
        starts=np.arange(count + 1) * 4,
        area_l0=np.full(count, 100.0),
        centroid_l0=middle,
        replaced=np.zeros(count, bool),
        values=np.zeros((count, 0)),
        origin_l0=np.array([x, y]),
    )


def put(job: Job, row: int, col: int, cells: Cells | None = None, *, name: str = "n") -> None:
    """Finish a block."""
    found = squares(SIDE * col, SIDE * row) if cells is None else cells
    facts = BlockFacts(len(found), len(found.gaps_l0), found.box_l0, "")
    JobBlocks(job).put(name, (row, col), found.encoded(), facts)


def test_without_a_plan_there_is_nothing_to_see_yet(job: Job) -> None:
    assert get(job, "cells?bbox=0,0,10,10").status_code == 409


def test_cells_are_seen_from_the_first_plan_on(job: Job) -> None:
    JobBlocks(job).plan("n", lambda: b"")
    nothing = {"cells": [], "total": 0, "truncated": False, "provisional": True}
    assert get(job, "cells?bbox=0,0,1000,1000").json() == nothing
    put(job, 0, 0)
    put(job, 0, 1)
    put(job, 1, 1)
    seen = get(job, "cells?bbox=5,5,101,9").json()
    assert [cell["polygon"][0] for cell in seen["cells"]] == [[0, 0], [20, 0], [100, 0]]
    assert (seen["total"], seen["truncated"], seen["provisional"]) == (6, False, True)
    first = seen["cells"][0]
    assert (first["cell_id"], first["label_id"]) == (None, None)
    assert (first["area"], first["centroid"]) == (100.0, [5.0, 5.0])
    few = get(job, "cells?bbox=0,0,1000,1000&limit=4").json()
    assert (len(few["cells"]), few["truncated"]) == (4, True)


def test_single_cells_and_results_wait_for_the_end(job: Job) -> None:
    put(job, 0, 0)
    for path in ("cells/1", "result", "results"):
        assert get(job, path).status_code == 409


def test_another_tenant_sees_nothing(job: Job) -> None:
    put(job, 0, 0)
    assert get(job, "cells?bbox=0,0,10,10", who="bob").status_code == 404


@pytest.mark.parametrize("how", ["cancelled", "failed", "handed back"])
def test_they_are_hidden_when_the_job_runs_no_more(job: Job, how: str) -> None:
    put(job, 0, 0)
    if how == "cancelled":
        services.cancel(job)
        services.finish_cancel(job.pk, 1)
    elif how == "failed":
        services.fail(job.pk, 1, Reason.BAD_INPUT, "no")
    else:
        services.hand_back(job.pk, 1)
    expected = 409 if how == "handed back" else 404
    assert get(job, "cells?bbox=0,0,10,10").status_code == expected
    assert visualization(job)["cells"] is None


def visualization(job: Job) -> Any:
    client = APIClient(headers={"X-User-ID": "ann"})
    return client.get(f"/api/visualization/{job.uuid}/visualization").json()


def test_a_viewer_is_told_the_counts_so_far(job: Job) -> None:
    assert visualization(job)["provisional"] is False
    JobBlocks(job).plan("n", lambda: b"")
    shown = visualization(job)
    assert (shown["provisional"], shown["bounds"]) == (True, None)
    put(job, 0, 0)
    put(job, 2, 1)
    shown = visualization(job)
    assert shown["counts"] == {"cells": 4, "gaps": 0, "blocks": 2}
    assert shown["bounds"] == [0, 0, 130, 210]
    assert (shown["cells"]["count"], shown["cells"]["geojson"]) == (4, None)


def test_only_the_latest_plan_is_seen(job: Job) -> None:
    put(job, 0, 0, name="of the slide before")
    put(job, 0, 0, name="n")
    assert get(job, "cells?bbox=0,0,1000,1000").json()["total"] == 2


def test_only_blocks_that_touch_the_window_are_read(job: Job) -> None:
    put(job, 0, 0)
    put(job, 0, 1)
    rows = Block.objects.for_tenant(job.tenant)
    rows.filter(col=1).update(sha256="another")  # to read it would leave it out
    assert len(get(job, "cells?bbox=0,0,50,50").json()["cells"]) == 2
    assert len(get(job, "cells?bbox=0,0,500,50").json()["cells"]) == 2


def test_the_work_for_one_window_is_bounded(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provisional, "MOST_BLOCKS", 3)
    for col in range(6):
        put(job, 0, col)
    seen = get(job, "cells?bbox=0,0,1000,1000").json()
    assert (len(seen["cells"]), seen["total"], seen["truncated"]) == (6, 12, True)
    with CaptureQueriesContext(
        connection,
    ) as few:
        get(job, "cells?bbox=0,0,10,10")
    with CaptureQueriesContext(connection) as many:
        get(job, "cells?bbox=0,0,1000,1000")
    assert len(few) == len(many)


def test_an_empty_block_is_no_trouble(job: Job) -> None:
    put(job, 0, 0, squares(0, 0, 1))
    empty = squares(0, 0, 1)
    nobody = Cells(
        **{
            name: getattr(empty, name)[:0]
            for name in ("seeds", "corners", "area_l0", "centroid_l0", "replaced", "values")
        },
        starts=np.zeros(1, np.int64),
        origin_l0=np.zeros(2),
    )
    put(job, 0, 1, nobody)
    assert len(get(job, "cells?bbox=0,0,1000,1000").json()["cells"]) == 1


def tick(left: float, count: int) -> dict[str, Any]:
    return {"job": "j", "chunk": f"0_{left:g}", "count": count, "bbox": [left, 0, left + 1, 1]}


def test_a_block_that_the_storage_does_not_give_is_left_out_and_that_is_said(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(job, 0, 0)
    put(job, 0, 1)
    rows = list(Block.objects.for_tenant(job.tenant).order_by("col"))
    given = blocks.content_of

    def away(path: str, sha256: str) -> bytes:
        if path == rows[0].path:
            raise ConnectionResetError("the bucket is away")
        return given(path, sha256)

    monkeypatch.setattr(blocks, "content_of", away)
    seen = get(job, "cells?bbox=0,0,1000,1000").json()
    assert [cell["polygon"][0] for cell in seen["cells"]] == [[100, 0], [120, 0]]
    assert (seen["total"], seen["truncated"]) == (4, True)


def test_two_ticks_are_one_that_leaves_nothing_out() -> None:
    both = merged_ticks(tick(5, 2), tick(1, 3))
    assert both == {"job": "j", "chunk": "0_1", "count": 5, "bbox": [1, 0, 6, 1]}


def test_a_tick_that_could_not_be_sent_yet_is_told_with_the_next() -> None:
    courier = Courier()
    courier.loop = asyncio.new_event_loop()
    courier.loop.close()  # nothing leaves
    courier.asleep = True
    for left in (1, 7):
        message = {"type": "feed.cells", "workflow": "w", "data": tick(left, 1)}
        courier.post("g", message, about="j", merge=receivers._both)
    ((_, waiting),) = courier.waiting.items()
    assert (waiting["data"]["bbox"], waiting["data"]["count"]) == ([1, 0, 8, 1], 2)
