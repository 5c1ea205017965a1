"""A worker that helps with a running job, in this process: what it leaves, and when it stops."""

from __future__ import annotations

import datetime as dt
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from django.db import connection
from django.utils import timezone

from jobs import services, types
from jobs.imaging.blocks import BlockFacts
from jobs.imaging.contract import Report
from jobs.models import Block, Job, Lease
from jobs.running import shards
from jobs.running.checkpoints import JobBlocks
from jobs.running.tasks import NobodyWatching
from jobs.scheduling import promotion
from jobs.scheduling.dispatch import Order
from jobs.types.base import Task
from tests import factories

pytestmark = pytest.mark.django_db(transaction=True)

FACTS = BlockFacts(1, 0, (0.0, 0.0, 9.0, 9.0), "cpu bf16")
Body = Callable[[Task, Report, int], None]


@pytest.fixture(autouse=True)
def lab(settings: Any, tmp_path: Path) -> None:
    settings.LABSCHED_ENABLE_PROBE_JOBS = True
    settings.LABSCHED_DATA = tmp_path
    storage: dict[str, Any] = {"BACKEND": "django.core.files.storage.FileSystemStorage"}
    storage["OPTIONS"] = {"location": str(tmp_path)}
    settings.STORAGES = {**settings.STORAGES, "default": storage}


@pytest.fixture
def job() -> Job:
    """A job that runs, follows plan `n`, and is to be helped with by a worker."""
    factories.capacity()
    factories.workflow(factories.tenant(), [factories.job("it")])
    ((pk, attempt),) = promotion.promote()
    started = services.start(pk, attempt, "cpu-0")
    assert started is not None
    JobBlocks(started).plan("n", lambda: b"plan")
    own = Lease.objects.for_tenant(started.tenant).get(job=pk)
    free = set(range(1, 5)) - {own.run_slot_id}
    own.pk, own.shard, own.worker, own.run_slot_id = None, 1, "", min(free)
    own.expires_at = timezone.now() + dt.timedelta(minutes=1)
    own.save(force_insert=True)
    return started


@pytest.fixture
def body(monkeypatch: pytest.MonkeyPatch) -> Callable[[Body], None]:
    """Says what a helper of probes does."""

    def say(run: Body) -> None:
        kind = replace(types.get("probe"), help=run)
        monkeypatch.setitem(types._all(), "probe", kind)

    return say


def help_with(job: Job) -> bool:
    return shards.help_with(Order(job.pk, job.attempt, 1), NobodyWatching())


def holds(job: Job) -> list[int]:
    rows = Lease.objects.for_tenant(job.tenant).order_by("shard")
    return list(rows.filter(job=job.pk).values_list("shard", flat=True))


def blocks_of(job: Job) -> set[tuple[int, int]]:
    rows = Block.objects.for_tenant(job.tenant).filter(job=job.pk, row__gte=0)
    return set(rows.values_list("row", "col"))


def one_block(task: Task, report: Report, shard: int, *, plan: str = "n") -> None:
    assert task.blocks is not None
    task.blocks.plan(plan, lambda: b"a helper's own")
    report("run", 0, 1)
    task.blocks.put(plan, (shard, 0), b"cells", FACTS)


def test_what_a_helper_finished_is_the_jobs_and_it_leaves(
    job: Job, body: Callable[[Body], None]
) -> None:
    body(one_block)
    assert help_with(job)
    assert blocks_of(job) == {(1, 0)}
    assert holds(job) == [0]
    assert Job.objects.for_tenant(job.tenant).get().status.public == "RUNNING"


def test_a_helper_that_would_follow_another_plan_leaves_and_computes_nothing(
    job: Job, body: Callable[[Body], None], caplog: pytest.LogCaptureFixture
) -> None:
    body(lambda task, report, shard: one_block(task, report, shard, plan="of another device"))
    assert help_with(job)
    assert (blocks_of(job), holds(job)) == (set(), [0])
    assert Block.objects.for_tenant(job.tenant).count() == 1  # the job's plan
    assert "another device or model" in caplog.text


def test_a_helper_that_is_asked_back_stops_and_its_blocks_stay(
    job: Job, body: Callable[[Body], None]
) -> None:
    def for_ever(task: Task, report: Report, shard: int) -> None:
        one_block(task, report, shard)
        give_up_at = time.monotonic() + 30
        while time.monotonic() < give_up_at:
            report("run", 1, 2)
            time.sleep(0.02)
        raise AssertionError("it was not stopped")

    def recall() -> None:
        Lease.objects.for_tenant(job.tenant).filter(shard=1).update(attempt=0)
        connection.close()  # this thread's own

    body(for_ever)
    asked = threading.Timer(0.2, recall)
    asked.start()
    began_at = time.monotonic()
    assert help_with(job)
    asked.join()
    assert time.monotonic() - began_at < 10
    assert (blocks_of(job), holds(job)) == ({(1, 0)}, [0])


def test_a_helper_that_fails_costs_the_job_nothing(job: Job, body: Callable[[Body], None]) -> None:
    def fail(task: Task, report: Report, shard: int) -> None:
        raise RuntimeError("out of order")

    body(fail)
    assert help_with(job)
    row = Job.objects.for_tenant(job.tenant).get()
    assert (row.status.public, row.failures, holds(job)) == ("RUNNING", 0, [0])


def test_no_help_is_taken_up_that_nobody_wants_any_more(
    job: Job, body: Callable[[Body], None]
) -> None:
    services.cancel(job)
    body(one_block)
    assert help_with(job)
    assert blocks_of(job) == set()
