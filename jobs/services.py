"""Every write to a job's state. Each function is one transaction: the move by compare-and-swap,
the jobs that depend on it, the next head of its lane and the event. Order of locks: tenant, then
rows by id."""

from __future__ import annotations

import contextlib
import datetime as dt
import uuid
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

from django.conf import settings
from django.db import transaction
from django.db.models.functions import Now
from django.utils import timezone

from jobs import blocks, events, moves, postgres, publishing, sql
from jobs.models import Job, Lease
from jobs.moves import StaleTransition as StaleTransition  # the exception of these services
from jobs.moves import Standing
from jobs.postgres import Succeeded
from jobs.publishing import StoredArtifact as StoredArtifact  # what these services are given
from jobs.scheduling import lanes
from jobs.states import JobState, Reason


def start(job_pk: int, attempt: int, worker: str, *, again: bool = False) -> Job | None:
    """QUEUED → RUNNING, the lease is `worker`'s. None when this attempt is no longer wanted.

    again  it was asked before, and the answer was lost with a connection: it may have begun already
    """
    move = postgres.start if sql.is_postgres() else _start
    job = move(job_pk, attempt, worker)
    if job is None and again and moves.is_begun(job_pk, attempt, worker):
        job = moves.started(job_pk)
    if job is not None:
        events.after_commit(job.tenant_id, (), work_may_start=False)
    return job


def _start(job_pk: int, attempt: int, worker: str) -> Job | None:
    with transaction.atomic():
        taken = moves.numbered(job_pk)
        if taken is None or not moves.start(job_pk, attempt, worker):
            transaction.set_rollback(True)
            return None
        events.job_moved(taken.event, job_pk)
        return moves.started(job_pk)


def succeed(
    job_pk: int,
    attempt: int,
    *,
    artifacts: Sequence[StoredArtifact],
    summary: dict[str, Any],
    reason: str = "",
    result_key: str = "",
) -> bool:
    """RUNNING → SUCCEEDED with its artifacts, in place of those of an earlier success with gaps.

    False when fenced or cancelled: publish nothing.
    """
    move = postgres.succeed if sql.is_postgres() else _succeed
    with transaction.atomic() if artifacts else contextlib.nullcontext():
        done = move(job_pk, attempt, summary, reason, result_key)
        if done is None:
            return False
        if artifacts:
            publishing.publish(done.tenant_id, job_pk, attempt, artifacts, reason)
        events.after_commit(done.tenant_id, [done.over] if done.over else (), work_may_start=True)
    return True


def _succeed(
    job_pk: int, attempt: int, summary: dict[str, Any], reason: str, result_key: str
) -> Succeeded | None:
    with transaction.atomic():
        taken = moves.numbered(job_pk)
        branch = taken and moves.succeed(job_pk, attempt, summary, reason, result_key)
        if taken is None or branch is None:
            transaction.set_rollback(True)
            return None
        branches = lanes.release_dependents(job_pk) | {branch}
        # it ran, so its tenant holds a user slot, and this transaction holds the tenant
        lanes.raise_heads(taken.tenant_id, branches, holds_slot=True)
        events.job_moved(taken.event, job_pk)
        over = moves.over_with(job_pk)
    return Succeeded(taken.tenant_id, over[0] if over else None)


def fail(job_pk: int, attempt: int, reason: Reason, error: str) -> bool:
    """End an attempt as failed: wait for a retry, or FAILED for good. False when fenced.

    Bad input is never tried again: the same slide would be refused the same way.
    """
    with transaction.atomic():
        job = moves.locked(job_pk)
        if job is None or not job.is_attempt(attempt):
            return False
        if job.cancel_asked:
            _end_cancelled(job)
        elif job.failures + 1 < job.max_attempts and reason is not Reason.BAD_INPUT:
            _wait_for_retry(job, error)
        else:
            _end_failed(job, reason, error)
    return True


def _wait_for_retry(job: Standing, error: str) -> None:
    """Back-off in the database; the job stays head of its lane, so order is kept."""
    delay_s = min(settings.RETRY_BACKOFF_S * 2**job.failures, settings.RETRY_BACKOFF_MAX_S)
    moves.put_off(job, dt.timedelta(seconds=delay_s), error=error, failures=job.failures + 1)
    _tell(job)


def _end_failed(job: Standing, reason: Reason, error: str) -> None:
    moves.end(job, JobState.FAILED, reason, error=error, failures=job.failures + 1)
    ended, branches = lanes.end_dependents(job)
    if job.on_failure == "halt":
        more, halted = lanes.halt_lane(job)
        ended += more
        branches |= halted
    lanes.raise_heads(job.tenant_id, branches | {job.branch_id})
    _tell(job, ended)


def hand_back(job_pk: int, attempt: int, *, only_queued: bool = False) -> bool:
    """Put an active job back to the head of its lane; it costs no attempt of its budget.

    only_queued  leave one alone that a worker began meanwhile
    """
    with transaction.atomic():
        job = moves.locked(job_pk)
        if job is None or not job.is_attempt(attempt):
            return False
        if only_queued and job.state is not JobState.QUEUED:
            return False
        if job.cancel_asked:
            _end_cancelled(job)
        else:
            _put_back(job, Reason.WITHDRAWN)
    return True


def _put_back(job: Standing, reason: Reason, *, error: str = "", failures: int = 0) -> None:
    """`failures` more than before."""
    moves.put_back(job, reason, error=error, failures=job.failures + failures)
    lanes.raise_heads(job.tenant_id, [job.branch_id])
    _tell(job)


def expire(job_pk: int, attempt: int) -> bool:
    """End a hold whose lease ran out: a RUNNING job is lost, a QUEUED one is withdrawn for free.

    False when the lease was renewed, or the job moved, since the sweep saw it.
    """
    with transaction.atomic():
        job = moves.locked(job_pk)
        if job is None or not job.is_attempt(attempt):
            return False
        leases = Lease.objects.across_tenants("leases of one locked job")
        lease = leases.filter(job=job_pk, attempt=attempt, shard=0, expires_at__lt=Now()).first()
        if lease is None:
            return False
        if job.cancel_asked:
            _end_cancelled(job)
        elif job.state is JobState.QUEUED:
            _put_back(job, Reason.WITHDRAWN)
        else:
            _lose(job, f"Worker {lease.worker} stopped renewing its lease: it died or was cut off.")
    return True


def _lose(job: Standing, error: str) -> None:
    """The job is tried again at once. It counts as a failure unless a block was finished since the
    last time: a job that gets on may lose any number of workers."""
    failures = 0 if blocks.finished_since_loss(job.pk) else 1
    Job.objects.across_tenants("one locked job").filter(pk=job.pk).update(lost_attempt=job.attempt)
    if failures and job.failures + 1 >= job.max_attempts:
        _end_failed(job, Reason.LOST, error)
    else:
        _put_back(job, Reason.LOST, error=error, failures=failures)


# --- cancelling --------------------------------------------------------------------------


def cancel(job: Job) -> Job:
    """Cancel by a person. Waiting jobs end at once, a running one is asked to stop (R7).

    Raises StaleTransition when the job is over already.
    """
    with transaction.atomic():
        row = moves.locked(job.pk)
        if row is None or row.state.terminal:
            state = row.state.public if row else "deleted"
            raise StaleTransition(f"{job.key} is over already ({state}).")
        if row.state is JobState.RUNNING:
            _ask_to_stop(row.tenant_id, [] if row.cancel_asked else [row.pk])
        else:
            _end_cancelled(row)
    rows = Job.objects.across_tenants("the caller holds this job")
    fresh: Job = rows.select_related("branch", "tenant", "progress_row").get(pk=job.pk)
    return fresh


def cancel_all(tenant_id: int, workflow_id: uuid.UUID) -> int:
    """Cancel every job of a workflow that is not over, by a person. Returns how many."""
    with transaction.atomic():
        events.lock(tenant_id)
        live = Job.objects.across_tenants("one locked tenant").filter(workflow=workflow_id).live()
        running = live.filter(state=JobState.RUNNING.value)
        asked = dict(running.values_list("pk", "cancel_requested_at"))
        _ask_to_stop(tenant_id, [pk for pk, at in asked.items() if at is None])
        waiting = live.exclude(state=JobState.RUNNING.value)
        rows = list(waiting.values_list("pk", "branch_id"))
        Lease.objects.across_tenants("one locked tenant").filter(
            job__workflow=workflow_id, job__state=JobState.QUEUED.value
        ).delete()
        waiting.update(
            state=JobState.CANCELLED.value,
            reason=Reason.CANCELLED_BY_USER.value,
            user_slot=None,
            retry_at=None,
            finished_at=timezone.now(),
        )
        lanes.raise_heads(tenant_id, {branch for _, branch in rows})
        events.jobs_changed(tenant_id, [pk for pk, _ in rows])
        events.nudge(tenant_id, {workflow_id})
    return len(rows) + len(asked)


def _ask_to_stop(tenant_id: int, job_pks: list[int]) -> None:
    jobs = Job.objects.across_tenants("one locked tenant").filter(pk__in=job_pks)
    jobs.update(cancel_requested_at=Now(), reason=Reason.CANCELLING.value)
    events.jobs_changed(tenant_id, job_pks)
    events.nudge(tenant_id, work_may_start=False)


def finish_cancel(job_pk: int, attempt: int) -> bool:
    """RUNNING → CANCELLED after its worker stopped. False when fenced or not asked for."""
    with transaction.atomic():
        job = moves.locked(job_pk)
        if job is None or not job.is_attempt(attempt) or not job.cancel_asked:
            return False
        _end_cancelled(job)
    return True


def _end_cancelled(job: Standing) -> None:
    moves.end(job, JobState.CANCELLED, Reason.CANCELLED_BY_USER)
    ended, branches = lanes.end_dependents(job)
    lanes.raise_heads(job.tenant_id, branches | {job.branch_id})
    _tell(job, ended)


def _tell(job: Standing, also_ended: Iterable[int] = ()) -> None:
    """Write the events of a move, and nudge those who act on it."""
    events.jobs_changed(job.tenant_id, [job.pk, *also_ended])
    events.nudge(job.tenant_id, moves.over_with(job.pk))


# --- back-offs ---------------------------------------------------------------------------


def wake_retries() -> int:
    """RETRY_WAIT → READY for every back-off that is over. Returns how many."""
    due = (
        Job.objects.across_tenants("back-offs of all tenants")
        .filter(state=JobState.RETRY_WAIT.value, retry_at__lte=Now())
        .values_list("tenant_id", "pk")
    )
    by_tenant: dict[int, list[int]] = defaultdict(list)
    for tenant_id, pk in due[:1000]:
        by_tenant[tenant_id].append(pk)
    return sum(_wake_retries_of(tenant_id, ids) for tenant_id, ids in sorted(by_tenant.items()))


def _wake_retries_of(tenant_id: int, ids: list[int]) -> int:
    branches: list[int] = []
    with contextlib.suppress(sql.RowHeld), sql.briefly():  # else by the next sweep
        events.lock(tenant_id)
        jobs = Job.objects.across_tenants("one locked tenant").filter(pk__in=ids)
        due = jobs.filter(state=JobState.RETRY_WAIT.value)
        branches = list(due.values_list("branch_id", flat=True))
        due.update(state=JobState.PENDING.value, retry_at=None)
        lanes.raise_heads(tenant_id, branches)
        events.nudge(tenant_id)
    return len(branches)
