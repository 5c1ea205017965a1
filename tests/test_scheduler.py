"""The rules of scheduling on real rows: promotion, slots, leases, failure, cancel, loss.

Whole processes are in tests/acceptance and tests/chaos; here every step is one call.
"""

from __future__ import annotations

import datetime as dt
from typing import Any

import pytest
from django.db import IntegrityError, connection, transaction
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from jobs import retrying, services
from jobs.models import Branch, Event, Job, Lease, Queue, UserSlot
from jobs.scheduling import explain, lanes, leases, promotion, slots, sweep
from jobs.services import StaleTransition
from jobs.states import JobState, Reason
from tenants.models import Tenant
from tests import factories
from tests.factories import jobs_of, states, workflow
from workflows.models import Workflow

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def rules(settings: Any) -> None:
    """The defaults of the acceptance scenarios, whatever this machine's environment says."""
    settings.LABSCHED_ENABLE_PROBE_JOBS = True
    settings.MAX_WORKERS = 4
    settings.MAX_ACTIVE_USERS = 3
    settings.ACTIVE_USER_QUANTUM_S = 0
    settings.RETRY_BACKOFF_S = 2
    factories.capacity()


def start_all() -> list[tuple[int, int]]:
    """Promote and start what the rules allow. Returns (job, attempt) of each."""
    promoted = promotion.promote()
    for pk, attempt in promoted:
        assert services.start(pk, attempt, "cpu-0") is not None
    return promoted


def finish(pk: int, attempt: int) -> bool:
    return services.succeed(pk, attempt, artifacts=[], summary={})


def running() -> list[str]:
    rows = Job.objects.across_tenants("test").filter(state=JobState.RUNNING.value)
    return sorted(rows.values_list("key", flat=True))


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


# --- R6: failure -------------------------------------------------------------------------


def fail_for_good(pk: int, attempt: int) -> None:
    Job.objects.across_tenants("test").filter(pk=pk).update(max_attempts=1)
    assert services.fail(pk, attempt, Reason.ERROR, "It broke.")


def test_a_failed_attempt_waits_with_back_off_at_the_head_of_its_branch() -> None:
    flow = workflow(factories.tenant(), [factories.job("a", "main"), factories.job("b", "main")])
    pk, attempt = start_all()[0]
    services.fail(pk, attempt, Reason.ERROR, "It broke.")
    first = jobs_of(flow)["a"]
    assert (first.status, first.reason) == (JobState.RETRY_WAIT, "retry_wait")
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


# --- R7: cancel --------------------------------------------------------------------------


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


# --- R8, R9: loss and fencing ------------------------------------------------------------


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


# --- events and cost ---------------------------------------------------------------------


def test_events_number_every_move_without_gaps() -> None:
    user = factories.tenant()
    workflow(user, [factories.job("a", "main"), factories.job("b", "main")])
    for _ in range(2):
        finish(*start_all()[0])
    rows = list(Event.objects.for_tenant(user).order_by("seq"))
    assert [row.seq for row in rows] == list(range(1, len(rows) + 1))
    told = [(row.job.key, JobState(row.state).public) for row in rows if row.job and row.state]
    assert told == [(key, state) for key in "ab" for state in ("QUEUED", "RUNNING", "SUCCEEDED")]


def queries_of_a_pass(waiting: int) -> int:
    flow = workflow(
        factories.tenant(), [factories.job(f"j{n}", f"b{n % 10}") for n in range(waiting)]
    )
    with CaptureQueriesContext(
        connection,
    ) as seen:
        promotion.promote()
    Workflow.objects.across_tenants("test").filter(pk=flow.pk).delete()
    promotion.promote()  # takes the slot back
    return len(seen)


def test_a_pass_costs_what_it_promotes_and_not_what_waits() -> None:
    assert queries_of_a_pass(20) == queries_of_a_pass(400)


# --- members, maintenance, paused lanes -------------------------------------------------


def of_member(tenant: Tenant, member: int, count: int, *, priority: int = 0) -> list[str]:
    """Submit `count` jobs, each in a lane of its own, as if `member` had; their keys."""
    keys = [f"m{member}-{priority}-{n}" for n in range(count)]
    flow = workflow(tenant, [{**factories.job(key), "priority": priority} for key in keys])
    Job.objects.for_tenant(tenant).filter(workflow=flow).update(member=member)
    return keys


def promoted_keys() -> list[str]:
    ids = [pk for pk, _ in promotion.promote()]
    found = Job.objects.across_tenants("test").in_bulk(ids)
    return [found[pk].key for pk in ids]


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
