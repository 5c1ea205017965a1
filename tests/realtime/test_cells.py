"""Ticks of cells that became readable: few, and none of their boxes is left out."""

from __future__ import annotations

import pytest
from asgiref.sync import sync_to_async

from jobs import services
from jobs.scheduling import promotion
from jobs.shapes import cells_tick
from jobs.signals import cells_found
from tests import factories
from tests.realtime.conftest import listening
from workflows.models import Workflow

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("house")]

BLOCKS = 20


@sync_to_async
def submitted(key: str) -> Workflow:
    return factories.workflow(factories.tenant(key), [factories.job("it")])


@sync_to_async
def find(flow: Workflow, block: int) -> None:
    """Three cells in the block of this number are readable from now on."""
    job = factories.jobs_of(flow)["it"]
    tick = cells_tick(job, f"0_{block}", 3, (block * 10, 0, block * 10 + 9, 9))
    cells_found.send_robust(None, tenant_id=flow.tenant_id, workflow_id=flow.pk, data=tick)


@sync_to_async
def finish() -> None:
    ((pk, attempt),) = promotion.promote()
    services.start(pk, attempt, "cpu-0")
    services.succeed(pk, attempt, artifacts=[], summary={})


async def test_a_viewer_hears_of_every_box_in_few_ticks() -> None:
    flow, other = await submitted("ann"), await submitted("bob")
    async with listening("user_id=ann") as feed:
        await feed.next()
        await find(other, 99)
        for block in range(BLOCKS):
            await find(flow, block)
        last = f"0_{BLOCKS - 1}"
        seen = await feed.until(lambda message: message["data"].get("chunk") == last)
    ticks = [message["data"] for message in seen if message["type"] == "cells"]
    assert 1 <= len(ticks) < BLOCKS / 2
    assert sum(tick["count"] for tick in ticks) == 3 * BLOCKS
    left, right = (pick(tick["bbox"][at] for tick in ticks) for pick, at in ((min, 0), (max, 2)))
    assert (left, right) == (0, BLOCKS * 10 - 1)
    assert {tuple(tick) for tick in ticks} == {("job", "chunk", "count", "bbox")}


async def test_no_tick_follows_the_end_of_its_job() -> None:
    flow = await submitted("ann")
    async with listening(f"user_id=ann&workflow={flow.pk}") as feed:
        await feed.next()
        await find(flow, 0)
        await find(flow, 1)
        await finish()
        seen = await feed.until(lambda message: message["data"].get("state") == "SUCCEEDED")
        assert await feed.silent() or (await feed.next())["type"] == "workflow"
    assert {message["type"] for message in seen} <= {"cells", "job", "workflow"}
