"""R8, R9: lost workers, and the late words of old attempts."""

from __future__ import annotations

import datetime as dt

import pytest
from django.utils import timezone

from jobs import services
from jobs.models import Lease
from jobs.scheduling import leases, promotion, sweep
from jobs.states import JobState, Reason
from tests import factories
from tests.factories import jobs_of, states, workflow
from tests.jobs.scheduling.steps import finish, start_all

pytestmark = pytest.mark.django_db


def test_two_workers_can_not_both_take_a_job() -> None:
    workflow(factories.tenant(), [factories.job("a")])
    ((pk, attempt),) = promotion.promote()
    assert services.start(pk, attempt, "cpu-0") is not None
    assert services.start(pk, attempt, "cpu-1") is None


def expire(pk: int) -> None:
    Lease.objects.across_tenants("test").filter(job=pk).update(
        expires_at=timezone.now() - dt.timedelta(seconds=1)
    )
    sweep.repair()


def test_an_expired_lease_gives_the_job_to_another_attempt_and_fences_the_old_one() -> None:
    flow = workflow(factories.tenant(), [factories.job("a")])
    pk, attempt = start_all()[0]
    expire(pk)
    assert jobs_of(flow)["a"].reason == "lost"
    assert start_all() == [(pk, attempt + 1)]
    assert not finish(pk, attempt)
    assert not services.fail(pk, attempt, Reason.ERROR, "late")
    assert not leases.renew(pk, attempt, "cpu-0").mine
    assert leases.renew(pk, attempt + 1, "cpu-0").mine
    assert finish(pk, attempt + 1)


def test_a_lease_renewed_meanwhile_is_not_ended() -> None:
    flow = workflow(factories.tenant(), [factories.job("a")])
    pk, attempt = start_all()[0]
    assert not services.expire(pk, attempt)
    assert states(flow) == {"a": "RUNNING"}


def test_a_queued_job_that_no_worker_takes_is_withdrawn_for_free() -> None:
    flow = workflow(factories.tenant(), [factories.job("a")])
    ((pk, _),) = promotion.promote()
    expire(pk)
    row = jobs_of(flow)["a"]
    assert (row.status, row.reason, row.failures) == (JobState.READY, "withdrawn", 0)


def test_losing_the_worker_three_times_is_a_failure() -> None:
    flow = workflow(factories.tenant(), [factories.job("a")])
    for _ in range(3):
        ((pk, _),) = start_all()
        expire(pk)
    row = jobs_of(flow)["a"]
    assert (row.status, row.reason) == (JobState.FAILED, "lost")


def test_a_job_handed_back_costs_nothing() -> None:
    flow = workflow(factories.tenant(), [factories.job("a")])
    pk, attempt = start_all()[0]
    assert services.hand_back(pk, attempt)
    assert jobs_of(flow)["a"].failures == 0
    assert start_all() == [(pk, attempt + 1)]
