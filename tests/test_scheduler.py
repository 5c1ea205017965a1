"""The first rules of scheduling on real rows: order, limits, shares (R1-R5).

The others are in tests/jobs/scheduling, whole processes in tests/acceptance and tests/chaos; here every
step is one call.
"""

from __future__ import annotations

import datetime as dt
from typing import Any

import pytest
from django.db import IntegrityError, transaction
from django.utils import timezone

from jobs import services
from jobs.models import Job, Lease, UserSlot
from jobs.scheduling import explain, promotion
from jobs.states import JobState
from tenants.models import Tenant
from tests import factories
from tests.factories import jobs_of, states, workflow
from tests.jobs.scheduling.steps import finish, promoted_keys, running, small_house, start_all

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def rules(settings: Any) -> None:
    small_house(settings)


# --- R1: branches ------------------------------------------------------------------------


def test_jobs_of_one_branch_start_one_at_a_time_in_order() -> None:
    flow = workflow(factories.tenant(), [factories.job(f"j{n}", "main") for n in range(3)])
    started = []
    for _ in range(3):
        ((pk, attempt),) = start_all()
        started += running()
        finish(pk, attempt)
    assert started == ["j0", "j1", "j2"]
    assert set(states(flow).values()) == {"SUCCEEDED"}


def test_the_database_refuses_a_second_head_of_a_branch() -> None:
    flow = workflow(factories.tenant(), [factories.job(f"j{n}", "main") for n in range(2)])
    second = Job.objects.across_tenants("test").filter(pk=jobs_of(flow)["j1"].pk)
    with pytest.raises(IntegrityError), transaction.atomic():
        second.update(state=JobState.READY.value)


def test_a_branch_spans_workflows_but_not_tenants() -> None:
    ann, bob = factories.tenant(), factories.tenant()
    workflow(ann, [factories.job("a1", "main")])
    workflow(ann, [factories.job("a2", "main")])
    workflow(bob, [factories.job("b1", "main")])
    start_all()
    assert running() == ["a1", "b1"]


def test_a_job_without_a_branch_has_a_lane_of_its_own() -> None:
    workflow(factories.tenant(), [factories.job(f"j{n}") for n in range(3)])
    start_all()
    assert running() == ["j0", "j1", "j2"]


# --- R2: dependencies --------------------------------------------------------------------


def test_a_job_waits_for_every_upstream_job() -> None:
    jobs = [
        factories.job("join", after=["left", "right"]),
        factories.job("left"),
        factories.job("right"),
    ]
    workflow(factories.tenant(), jobs)
    first, second = start_all()
    assert running() == ["left", "right"]
    finish(*first)
    assert promotion.promote() == []
    finish(*second)
    start_all()
    assert running() == ["join"]


def test_a_dependency_on_a_later_job_of_the_same_branch_does_not_deadlock() -> None:
    flow = workflow(
        factories.tenant(), [factories.job("a", "main", after=["b"]), factories.job("b", "main")]
    )
    for _ in range(2):
        finish(*start_all()[0])
    assert states(flow) == {"a": "SUCCEEDED", "b": "SUCCEEDED"}


# --- R3, R4, R5: limits and shares -------------------------------------------------------


def test_leases_never_exceed_the_worker_limit() -> None:
    workflow(factories.tenant(), [factories.job(f"j{n}") for n in range(9)])
    assert len(start_all()) == 4
    assert Lease.objects.across_tenants("test").count() == 4


def test_nothing_is_promoted_to_a_queue_without_live_workers() -> None:
    factories.capacity(cpu=0)
    flow = workflow(factories.tenant(), [factories.job("j")])
    assert promotion.promote() == []
    assert explain.why(jobs_of(flow)["j"])["reason"] == "no_worker"


def test_the_fourth_user_waits_until_one_is_done() -> None:
    users = [factories.tenant() for _ in range(4)]
    flows = [workflow(user, [factories.job(f"u{n}")]) for n, user in enumerate(users)]
    promoted = start_all()
    assert running() == ["u0", "u1", "u2"]
    assert explain.why(jobs_of(flows[3])["u3"])["reason"] == "user_limit"
    finish(*promoted[1])
    start_all()
    assert running() == ["u0", "u2", "u3"]


def test_a_slot_is_kept_between_two_jobs_of_a_user() -> None:
    users = [factories.tenant() for _ in range(4)]
    for n, user in enumerate(users):
        workflow(user, [factories.job(f"u{n}-{m}", "main") for m in range(2)])
    promoted = start_all()
    finish(*promoted[0])
    start_all()
    assert running() == ["u0-1", "u1-0", "u2-0"]


def test_the_database_refuses_an_active_job_without_a_user_slot() -> None:
    flow = workflow(factories.tenant(), [factories.job("j")])
    row = Job.objects.across_tenants("test").filter(pk=jobs_of(flow)["j"].pk)
    with pytest.raises(IntegrityError), transaction.atomic():
        row.update(state=JobState.QUEUED.value)


@pytest.mark.django_db(transaction=True)
def test_the_database_refuses_to_take_a_slot_from_an_active_user() -> None:
    workflow(factories.tenant(), [factories.job("j")])
    start_all()
    with pytest.raises(IntegrityError), transaction.atomic():
        UserSlot.objects.filter(holder__isnull=False).update(holder=None)


def test_no_slot_is_held_when_all_is_done() -> None:
    workflow(factories.tenant(), [factories.job("j")])
    finish(*start_all()[0])
    promotion.promote()
    assert not UserSlot.objects.filter(holder__isnull=False).exists()
    assert not Lease.objects.across_tenants("test").exists()


def test_a_waiting_user_who_cancels_all_leaves_the_line() -> None:
    users = [factories.tenant() for _ in range(4)]
    flows = [workflow(user, [factories.job(f"u{n}")]) for n, user in enumerate(users)]
    promoted = start_all()
    services.cancel(jobs_of(flows[3])["u3"])
    for pair in promoted:
        finish(*pair)
    assert start_all() == []
    assert not Tenant.objects.filter(waiting_since__isnull=False).exists()


def test_a_turn_that_is_over_drains_and_goes_to_the_next_in_line(settings: Any) -> None:
    settings.MAX_ACTIVE_USERS = 1
    settings.ACTIVE_USER_QUANTUM_S = 60
    UserSlot.objects.filter(number__gt=1).delete()
    greedy, patient = factories.tenant(), factories.tenant()
    workflow(greedy, [factories.job(f"g{n}", "main") for n in range(3)])
    workflow(patient, [factories.job("p")])
    promoted = start_all()
    UserSlot.objects.update(acquired_at=timezone.now() - dt.timedelta(seconds=61))
    finish(*promoted[0])
    start_all()
    assert running() == ["p"]


def test_workers_are_shared_between_active_users() -> None:
    ann, bob = factories.tenant(), factories.tenant()
    workflow(ann, [factories.job(f"a{n}") for n in range(8)])
    workflow(bob, [factories.job(f"b{n}") for n in range(8)])
    start_all()
    assert running() == ["a0", "a1", "b0", "b1"]


def of_member(tenant: Tenant, member: int, count: int, *, priority: int = 0) -> list[str]:
    """Submit `count` jobs, each in a lane of its own, as if `member` had; their keys."""
    keys = [f"m{member}-{priority}-{n}" for n in range(count)]
    flow = workflow(tenant, [{**factories.job(key), "priority": priority} for key in keys])
    Job.objects.for_tenant(tenant).filter(workflow=flow).update(member=member)
    return keys


def test_one_members_many_jobs_do_not_stand_before_anothers_one() -> None:
    user = factories.tenant()
    of_member(user, 1, 30)
    of_member(user, 2, 1)
    of_member(user, 3, 2)
    assert promoted_keys() == ["m1-0-0", "m2-0-0", "m3-0-0", "m1-0-1"]


def test_priority_comes_before_the_member_with_the_fewest_leases() -> None:
    user = factories.tenant()
    of_member(user, 1, 9)
    of_member(user, 2, 9, priority=-5)
    of_member(user, 1, 2, priority=7)
    of_member(user, 4, 1, priority=7)
    assert promoted_keys() == ["m1-7-0", "m4-7-0", "m1-7-1", "m1-0-0"]
