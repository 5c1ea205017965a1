"""R7: cancel, of jobs that wait, are queued or run."""

from __future__ import annotations

import pytest

from jobs import services
from jobs.models import Lease
from jobs.scheduling import promotion
from jobs.services import StaleTransition
from tests import factories
from tests.factories import jobs_of, states, workflow
from tests.jobs.scheduling.steps import finish, running, start_all

pytestmark = pytest.mark.django_db


def test_a_waiting_job_is_cancelled_at_once_and_the_next_runs() -> None:
    flow = workflow(factories.tenant(), [factories.job("a", "main"), factories.job("b", "main")])
    services.cancel(jobs_of(flow)["a"])
    start_all()
    assert running() == ["b"]
    with pytest.raises(StaleTransition):
        services.cancel(jobs_of(flow)["a"])


def test_a_running_job_whose_cancel_was_accepted_never_succeeds() -> None:
    flow = workflow(factories.tenant(), [factories.job("a")])
    pk, attempt = start_all()[0]
    services.cancel(jobs_of(flow)["a"])
    assert jobs_of(flow)["a"].reason == "cancelling"
    assert not finish(pk, attempt)
    assert services.finish_cancel(pk, attempt)
    assert states(flow) == {"a": "CANCELLED"}


def test_a_queued_job_that_is_cancelled_can_not_start() -> None:
    flow = workflow(factories.tenant(), [factories.job("a")])
    ((pk, attempt),) = promotion.promote()
    services.cancel(jobs_of(flow)["a"])
    assert services.start(pk, attempt, "cpu-0") is None
    assert not Lease.objects.across_tenants("test").exists()
