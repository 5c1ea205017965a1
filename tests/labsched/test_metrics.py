"""What schedulers count, and what ended jobs say, comes to /metrics and outlives its processes."""

from __future__ import annotations

import datetime as dt
import re
from pathlib import Path
from typing import Any

import pytest
from django.db import DatabaseError, connection
from django.db.models import F
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from jobs import services, wiring
from jobs.models import JobProgress, Slide, Tally, Worker
from jobs.running import gpu_memory
from jobs.scheduling import promotion, tally
from jobs.states import JobState, Reason
from labsched import metrics
from tests import factories
from tests.labsched.counting import LONG_AGO, of, samples
from workflows.models import Workflow

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("nothing_counted_yet")]
DOCS = Path(__file__).resolve().parents[2] / "docs" / "metrics.md"


def started(flow: Workflow) -> list[tuple[int, int]]:
    """The flow's jobs, all running."""
    words = promotion.promote()
    assert len(words) == of(flow).count()
    for pk, attempt in words:
        services.start(pk, attempt, "cpu-0")
    return words


def some_time_ago(flow: Workflow) -> None:
    """Let its ends be older than what may not be committed yet."""
    of(flow).filter(finished_at__isnull=False).update(finished_at=F("finished_at") - LONG_AGO)


# --- jobs that ended ---------------------------------------------------------------------


def test_a_success_shows_at_once_and_is_counted_once(flow: Workflow) -> None:
    for pk, attempt in started(flow):
        services.succeed(pk, attempt, artifacts=[], summary={"tiles": 40, "cells": 900})
    ready = timezone.now() - LONG_AGO * 4
    queued = ready + LONG_AGO
    of(flow).update(
        created_at=ready, ready_at=ready, queued_at=queued, started_at=queued + LONG_AGO
    )
    some_time_ago(flow)
    before = samples()
    assert before["job_latency_seconds_count"] == before["job_wait_seconds_count"] == 3
    assert before["job_wait_seconds_sum"] == 90
    assert before["job_wait_seconds_bucket{le=10.0}"] == 0
    assert before["job_wait_seconds_bucket{le=30.0}"] == 3
    assert before["imaging_tiles_total"] == 120
    assert before["imaging_cells_total"] == 2700
    assert 85 < before["imaging_busy_seconds_total"] < 95
    assert tally.keep()
    counted = [name for name in before if name.startswith(("job_", "imaging_"))]
    after = samples()
    assert {name: after[name] for name in counted} == pytest.approx(
        {name: before[name] for name in counted}
    )
    assert Tally.objects.get().counts[tally.TILES] == 120
    assert tally.keep()
    assert samples()["job_latency_seconds_count"] == 3


def test_a_failed_job_that_is_tried_again_takes_no_count_away(flow: Workflow) -> None:
    (pk, attempt), *others = started(flow)
    services.fail(pk, attempt, Reason.BAD_INPUT, "It is no slide.")
    assert samples()["job_latency_seconds_count"] == 0, "it may still come back"
    some_time_ago(flow)
    tally.keep()
    assert samples()["job_latency_seconds_count"] == 1
    of(flow).filter(pk=pk).update(state=JobState.PENDING.value, finished_at=None)
    for other in others:
        services.succeed(*other, artifacts=[], summary={})
    assert samples()["job_latency_seconds_count"] == 3


def test_a_reused_result_is_no_work(flow: Workflow) -> None:
    for pk, attempt in started(flow):
        summary = {"tiles": 40, "cells": 900}
        services.succeed(pk, attempt, artifacts=[], summary=summary, reason=Reason.REUSED)
    found = samples()
    assert found["imaging_tiles_total"] == found["imaging_cells_total"] == 0
    assert found["job_latency_seconds_count"] == 3


def test_a_job_that_was_never_promoted_waited_for_nothing(flow: Workflow) -> None:
    services.cancel_all(flow.tenant_id, flow.pk)
    some_time_ago(flow)
    tally.keep()
    found = samples()
    assert found["job_wait_seconds_count"] == found["job_latency_seconds_count"] == 0


def test_a_promotion_that_came_to_nothing_is_no_latency(flow: Workflow) -> None:
    for pk, attempt in promotion.promote():
        services.hand_back(pk, attempt)
    services.cancel_all(flow.tenant_id, flow.pk)
    assert of(flow).filter(state=JobState.CANCELLED.value, queued_at__isnull=False).count() == 3
    some_time_ago(flow)
    tally.keep()
    found = samples()
    assert found["job_wait_seconds_count"] == found["job_latency_seconds_count"] == 0


def test_after_a_long_absence_ends_are_read_a_minute_at_a_time(flow: Workflow) -> None:
    tally.keep()
    words = started(flow)
    for pk, attempt in words:
        services.succeed(pk, attempt, artifacts=[], summary={"tiles": 1, "cells": 1})
    hour = dt.timedelta(hours=1)
    Tally.objects.update(ended_until=F("ended_until") - 9 * hour)
    for nth, (pk, _) in enumerate(words):
        of(flow).filter(pk=pk).update(finished_at=F("finished_at") - (nth + 1) * hour)
    for kept in (1, 2, 3):
        assert samples()["imaging_tiles_total"] == 3, "what is not kept yet is read"
        assert tally.keep()
        assert Tally.objects.get().counts[tally.TILES] == kept
    assert tally.keep()
    assert timezone.now() - Tally.objects.get().ended_until < tally.LAG + LONG_AGO
    assert samples()["imaging_tiles_total"] == 3


def test_the_history_is_read_once(flow: Workflow) -> None:
    """Whatever ended before: a scrape and a count look at the last seconds, by the index."""
    for pk, attempt in started(flow):
        services.succeed(pk, attempt, artifacts=[], summary={})
    some_time_ago(flow)
    tally.keep()
    with CaptureQueriesContext(connection) as queries:
        tally.read()
    (_, tail) = (query["sql"] for query in queries)
    assert "finished_at" in tail
    assert len(queries) == 2
    with connection.cursor() as cursor:
        if connection.vendor == "postgresql":
            cursor.execute("SET LOCAL enable_seqscan = off")  # three rows are read whole else
        explain = "EXPLAIN QUERY PLAN" if connection.vendor == "sqlite" else "EXPLAIN"
        cursor.execute(f"{explain} {tail.replace('%', '%%')}")
        plan = " ".join(str(row) for row in cursor.fetchall())
    assert "job_finished" in plan


# --- the row --------------------------------------------------------------------------


def test_two_schedulers_add_to_the_same_row(
    flow: Workflow, monkeypatch: pytest.MonkeyPatch
) -> None:
    tally.keep()
    tally.refused()
    read = tally._read

    def read_while_another_writes() -> Any:
        kept = read()
        moved = F("ended_until") + dt.timedelta(seconds=1)
        Tally.objects.update(ended_until=moved, counts={tally.REFUSED: 5})
        return kept

    Tally.objects.update(ended_until=F("ended_until") - LONG_AGO)
    with monkeypatch.context() as patch:
        patch.setattr(tally, "_read", read_while_another_writes)
        assert not tally.keep(), "the other one was first"
    assert tally.keep()
    assert samples()["scheduler_promotions_refused_total"] == 6


def test_a_database_that_refuses_loses_no_count(monkeypatch: pytest.MonkeyPatch) -> None:
    tally.keep()
    tally.refused()

    def refuse(execute: Any, statement: str, *rest: Any) -> Any:
        raise DatabaseError("away")

    monkeypatch.setitem(tally._kept, "at", -tally.KEEP_EVERY_S)
    with connection.execute_wrapper(refuse):
        wiring._keep_counts()
    Tally.objects.update(ended_until=F("ended_until") - LONG_AGO)
    assert tally.keep()
    assert samples()["scheduler_promotions_refused_total"] == 1


# --- gauges ------------------------------------------------------------------------------


def test_tiles_of_jobs_that_run_now(flow: Workflow) -> None:
    words = started(flow)
    slide = Slide.objects.create(tenant=flow.tenant, path="one.svs")
    of(flow).update(slide=slide, started_at=timezone.now() - LONG_AGO, job_type="cell_segmentation")
    for (pk, attempt), stale in zip(words, (0, 0, 1), strict=True):
        JobProgress.objects.create(
            job_id=pk, tenant=flow.tenant, attempt=attempt - stale, tiles_done=300, tiles_total=900
        )
    found = samples()["imaging_running_tiles_per_second{job_type=cell_segmentation}"]
    assert 15 < found <= 20, "an earlier attempt's tiles are not this one's"


def test_gpu_memory_is_what_the_worker_wrote(flow: Workflow) -> None:
    factories.capacity(cpu=1, gpu=2)
    Worker.objects.filter(name="gpu-0").update(device="NVIDIA H200")
    gpu_memory.tell("gpu-0", used=3 << 30, total=139 << 30)
    gpu_memory.tell("nobody", used=1, total=1)
    found = {name: value for name, value in samples().items() if name.startswith("gpu_memory")}
    assert found == {
        "gpu_memory_used_bytes{device=NVIDIA H200,worker=gpu-0}": 3 << 30,
        "gpu_memory_total_bytes{device=NVIDIA H200,worker=gpu-0}": 139 << 30,
    }
    Worker.objects.update(seen_at=timezone.now() - dt.timedelta(days=1))
    assert not [name for name in samples() if name.startswith("gpu_memory")]


# --- the whole ---------------------------------------------------------------------------


def test_the_docs_name_each_number_of_ours_and_no_other() -> None:
    own = {family.name for family in metrics.RowsCollector().collect()}
    counters = {f.name for f in metrics.RowsCollector().collect() if f.type == "counter"}
    exported = {f"{name}_total" if name in counters else name for name in own}
    told = set(re.findall(r"^\| `(\w+)", DOCS.read_text(), re.M))
    assert told == exported
