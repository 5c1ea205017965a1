"""R6: a failed attempt, a failed job, what hangs on it, and a retry by hand."""

from __future__ import annotations

import datetime as dt

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from jobs import retrying, services
from jobs.models import Job
from jobs.scheduling import promotion, sweep
from jobs.states import JobState, Reason
from tests import factories
from tests.factories import jobs_of, states, workflow
from tests.jobs.scheduling.steps import finish, running, start_all

pytestmark = pytest.mark.django_db


def fail_for_good(pk: int, attempt: int) -> None:
    Job.objects.across_tenants("test").filter(pk=pk).update(max_attempts=1)
    assert services.fail(pk, attempt, Reason.ERROR, "It broke.")


def test_a_failed_attempt_waits_with_back_off_at_the_head_of_its_branch() -> None:
    flow = workflow(factories.tenant(), [factories.job("a", "main"), factories.job("b", "main")])
    pk, attempt = start_all()[0]
    services.fail(pk, attempt, Reason.ERROR, "It broke.")
    first = jobs_of(flow)["a"]
    assert (first.status, first.reason) == (JobState.RETRY_WAIT, "retry_wait")
    assert first.retry_at
    assert 1 < (first.retry_at - timezone.now()).total_seconds() <= 2
    assert promotion.promote() == []
    past = timezone.now() - dt.timedelta(seconds=1)  # SQLite's clock counts in milliseconds
    Job.objects.across_tenants("test").filter(pk=pk).update(retry_at=past)
    sweep.repair()
    assert start_all() == [(pk, attempt + 1)]


def test_after_the_last_attempt_dependents_end_and_the_branch_goes_on() -> None:
    flow = workflow(
        factories.tenant(),
        [
            factories.job("a", "main"),
            factories.job("below", "other", after=["a"]),
            factories.job("lowest", after=["below"]),
            factories.job("next", "main"),
        ],
    )
    fail_for_good(*start_all()[0])
    rows = jobs_of(flow)
    assert rows["a"].status is JobState.FAILED
    assert {rows[key].reason for key in ("below", "lowest")} == {"upstream_failed"}
    start_all()
    assert running() == ["next"]


def test_halt_ends_the_rest_of_the_branch_in_this_workflow_only() -> None:
    user = factories.tenant()
    flow = workflow(
        user, [factories.job("a", "main"), factories.job("b", "main")], on_failure="halt"
    )
    workflow(user, [factories.job("c", "main")])
    fail_for_good(*start_all()[0])
    assert jobs_of(flow)["b"].reason == "branch_halted"
    start_all()
    assert running() == ["c"]


def test_a_retry_after_a_halt_revives_what_hung_on_the_halted_jobs() -> None:
    jobs = [factories.job("a", "main"), factories.job("b", "main"), factories.job("c", after=["b"])]
    flow = workflow(factories.tenant(), jobs, on_failure="halt")
    fail_for_good(*start_all()[0])
    assert {jobs_of(flow)[key].reason for key in "bc"} == {"branch_halted"}
    retrying.retry(jobs_of(flow)["a"])
    for _ in range(3):
        finish(*start_all()[0])
    assert set(states(flow).values()) == {"SUCCEEDED"}


def test_a_retry_does_not_revive_what_another_failure_halted() -> None:
    jobs = [factories.job(key, "main") for key in "abc"]
    flow = workflow(factories.tenant(), jobs, on_failure="halt")
    services.cancel(jobs_of(flow)["a"])
    fail_for_good(*start_all()[0])
    retrying.retry(jobs_of(flow)["a"])
    assert states(flow) == {"a": "PENDING", "b": "FAILED", "c": "CANCELLED"}


def test_a_retry_of_a_long_chain_costs_a_few_statements() -> None:
    chain = [factories.job(f"j{n}", after=[f"j{n - 1}"] if n else []) for n in range(600)]
    flow = workflow(factories.tenant(), chain)
    fail_for_good(*start_all()[0])
    with CaptureQueriesContext(connection) as seen:
        retrying.retry(jobs_of(flow)["j0"])
    assert set(states(flow).values()) == {"PENDING"}
    assert len(seen) < 60


def test_bad_input_is_not_tried_again() -> None:
    flow = workflow(factories.tenant(), [factories.job("a")])
    services.fail(*start_all()[0], Reason.BAD_INPUT, "The slide is no slide.")
    row = jobs_of(flow)["a"]
    assert (row.status, row.reason, row.error) == (
        JobState.FAILED,
        "bad_input",
        "The slide is no slide.",
    )


def test_a_retry_by_hand_revives_what_the_failure_ended() -> None:
    flow = workflow(
        factories.tenant(), [factories.job("a", "main"), factories.job("b", after=["a"])]
    )
    pk, attempt = start_all()[0]
    fail_for_good(pk, attempt)
    retrying.retry(jobs_of(flow)["a"])
    assert set(states(flow).values()) == {"PENDING"}
    for _ in range(2):
        finish(*start_all()[0])
    assert set(states(flow).values()) == {"SUCCEEDED"}
    assert jobs_of(flow)["a"].attempt == attempt + 1


def test_a_retry_does_not_revive_what_a_person_cancelled() -> None:
    flow = workflow(factories.tenant(), [factories.job("a"), factories.job("b", after=["a"])])
    services.cancel(jobs_of(flow)["b"])
    fail_for_good(*start_all()[0])
    retrying.retry(jobs_of(flow)["a"])
    assert states(flow) == {"a": "PENDING", "b": "CANCELLED"}


def test_a_job_below_a_failed_one_is_not_retried_alone() -> None:
    flow = workflow(factories.tenant(), [factories.job("a"), factories.job("b", after=["a"])])
    fail_for_good(*start_all()[0])
    with pytest.raises(retrying.UpstreamNotDone, match="a, which did not succeed"):
        retrying.retry(jobs_of(flow)["b"])
