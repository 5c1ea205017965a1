"""Paused tenants, queues and lanes, and maintenance: nothing new starts, and all goes on afterwards."""

from __future__ import annotations

from typing import Any

import pytest

from jobs import services
from jobs.models import Branch, Queue, UserSlot
from jobs.scheduling import explain, lanes, promotion, slots, sweep
from jobs.states import JobState
from tenants.models import Tenant
from tests import factories
from tests.factories import jobs_of, workflow
from tests.jobs.scheduling.steps import finish, promoted_keys, running, start_all

pytestmark = pytest.mark.django_db


def test_a_paused_tenant_starts_nothing_and_holds_no_slot() -> None:
    user = factories.tenant(paused=True)
    flow = workflow(user, [factories.job("j")])
    assert promotion.promote() == []
    assert explain.why(jobs_of(flow)["j"])["reason"] == "paused"


def test_a_tenant_that_was_paused_while_it_held_a_slot_goes_on_when_resumed() -> None:
    user = factories.tenant()
    workflow(user, [factories.job(f"j{n}", "main") for n in range(2)])
    pair = start_all()[0]
    Tenant.objects.filter(pk=user.pk).update(paused=True)
    finish(*pair)
    assert start_all() == []
    Tenant.objects.filter(pk=user.pk).update(paused=False)
    start_all()
    assert running() == ["j1"]


def test_a_slot_is_not_kept_for_jobs_of_a_paused_queue(settings: Any) -> None:
    settings.MAX_ACTIVE_USERS = 1
    UserSlot.objects.filter(number__gt=1).delete()
    factories.capacity(cpu=2, gpu=1)
    UserSlot.objects.filter(number__gt=1).delete()
    stuck, free = factories.tenant(), factories.tenant()
    workflow(stuck, [factories.job("s", params={"queue": "gpu"})])
    Queue.objects.filter(name="gpu").update(paused=True)
    promotion.promote()
    workflow(free, [factories.job("f")])
    pair = start_all()[0]
    assert running() == ["f"]
    Queue.objects.filter(name="gpu").update(paused=False)
    finish(*pair)
    start_all()
    assert running() == ["s"]


def test_a_promoted_job_of_a_branch_that_is_paused_goes_back() -> None:
    flow = workflow(factories.tenant(), [factories.job("a", "main")])
    promotion.promote()
    Branch.objects.for_tenant(flow.tenant).update(paused=True)
    sweep.repair()
    row = jobs_of(flow)["a"]
    # not ready while its lane is paused
    assert (row.status, row.reason, row.failures) == (JobState.PENDING, "withdrawn", 0)


def test_in_maintenance_nothing_is_promoted_and_what_waits_says_so() -> None:
    flow = workflow(factories.tenant(), [factories.job("a")])
    slots.set_maintenance(True, "A new disk.")
    assert promotion.promote() == []
    told = explain.why(jobs_of(flow)["a"])
    assert told["reason"] == "maintenance"
    assert "A new disk." in told["detail"]
    slots.set_maintenance(False)
    assert len(promotion.promote()) == 1


def test_the_head_of_a_lane_paused_while_ready_waits_and_goes_on_when_resumed() -> None:
    flow = workflow(factories.tenant(), [factories.job("a", "main"), factories.job("b", "main")])
    lane = Branch.objects.for_tenant(flow.tenant).get()
    lanes.set_paused(lane, True)
    assert promotion.promote() == []
    lanes.set_paused(lane, False)
    assert promoted_keys() == ["a"]


def test_a_job_that_a_worker_began_is_not_taken_back_by_a_pause() -> None:
    flow = workflow(factories.tenant(), [factories.job("a")])
    ((pk, attempt),) = start_all()
    assert not services.hand_back(pk, attempt, only_queued=True)
    assert jobs_of(flow)["a"].status is JobState.RUNNING
