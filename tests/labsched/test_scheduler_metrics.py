"""What schedulers do comes to /metrics: each sweep, promotion, lost lease and refusal."""

from __future__ import annotations

from typing import Any

import pytest
from django.utils import timezone

from jobs import services
from jobs.models import Lease, Tally
from jobs.scheduling import promotion, slots, sweep, tally, wake
from labsched import metrics
from tests import factories
from tests.labsched.counting import LONG_AGO, of, samples
from workflows.models import Workflow

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("nothing_counted_yet")]


def test_sweeps_and_promotions_are_timed(flow: Workflow) -> None:
    of(flow).update(ready_at=timezone.now() - LONG_AGO)
    assert sweep.sweep() == 3
    sweep.sweep()
    assert samples()["scheduler_sweep_seconds_count"] == 0, "it is in memory yet"
    assert tally.keep()
    found = samples()
    assert found["scheduler_sweep_seconds_count"] == 2
    assert 0 < found["scheduler_sweep_seconds_sum"] < 60
    assert found["scheduler_promotion_latency_seconds_count"] == 3
    assert 89 < found["scheduler_promotion_latency_seconds_sum"] < 150
    assert found["scheduler_promotion_latency_seconds_bucket{le=10.0}"] == 0


def test_a_promotion_that_was_taken_back_meanwhile_is_left_out(flow: Workflow) -> None:
    sweep.round_of_work()
    for job in factories.jobs_of(flow).values():
        services.hand_back(job.pk, job.attempt)
    tally.keep()
    assert samples()["scheduler_promotion_latency_seconds_count"] == 0


def test_lost_leases_are_counted_by_what_became_of_the_job(flow: Workflow) -> None:
    words = promotion.promote()
    services.start(*words[0], "cpu-0")
    leases = Lease.objects.across_tenants("test")
    leases.update(expires_at=timezone.now() - LONG_AGO)
    sweep.repair()
    tally.keep()
    found = samples()
    assert found["scheduler_lease_losses_total{queue=cpu,state=RUNNING}"] == 1
    assert found["scheduler_lease_losses_total{queue=cpu,state=QUEUED}"] == 2
    assert found["scheduler_lease_losses_total{queue=gpu,state=RUNNING}"] == 0


def test_a_refused_promotion_raises_a_number(
    flow: Workflow, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slots.Bounds, "free_run_slots", property(lambda _: [1, 1, 1]))
    assert len(promotion.promote()) == 1  # the database keeps one lease a run slot
    tally.keep()
    assert samples()["scheduler_promotions_refused_total"] == 2


def test_a_scrape_answers_without_redis(flow: Workflow, settings: Any) -> None:
    settings.REDIS_URL = "redis://127.0.0.1:1/0"
    wake.client.cache_clear()
    metrics.limiter.cache_clear()
    try:
        assert sweep.sweep() == 3
        tally.keep()
        assert samples()["scheduler_sweep_seconds_count"] == 1
    finally:
        wake.client.cache_clear()
        metrics.limiter.cache_clear()


def test_counts_are_kept_by_the_sweep_and_not_by_every_one(monkeypatch: pytest.MonkeyPatch) -> None:
    slots.seed()
    sweep.sweep()
    assert not Tally.objects.exists()
    monkeypatch.setitem(tally._kept, "at", -tally.KEEP_EVERY_S)
    sweep.sweep()
    assert Tally.objects.get().counts["scheduler_sweep_seconds sum"] > 0
