"""Every write to a job's state. Each function is one transaction: the move by compare-and-swap,
the jobs that depend on it, the next head of its lane and the event. Order of locks: tenant, then
rows by id."""

from __future__ import annotations

import datetime as dt
import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from django.conf import settings
from django.db import transaction
from django.db.models.functions import Now
from django.utils import timezone

from jobs import events
from jobs.models import Artifact, Job, Lease
from jobs.scheduling import lanes
from jobs.states import TRANSITIONS, JobState, Reason


class StaleTransition(Exception):
    """The job is not where the move expects it; nothing was written."""


@dataclass(frozen=True)
class StoredArtifact:
    """A file that an attempt put into the storage."""

    name: str
    kind: str
    path: str
    size: int
    sha256: str
    main: bool = False


def start(job_pk: int, attempt: int, worker: str) -> Job | None:
    """QUEUED → RUNNING, the lease is `worker`'s. None when this attempt is no longer wanted."""
    with transaction.atomic():
        job = _locked(job_pk)
        if job is None or not _move(job, JobState.QUEUED, attempt, JobState.RUNNING, started=True):
            return None
        _leases(job).filter(attempt=attempt).update(
            worker=worker, expires_at=Now() + dt.timedelta(seconds=settings.LEASE_S)
        )
        events.jobs_changed(job.tenant_id, [job.pk])
    job.refresh_from_db()
    return job


def succeed(
    job_pk: int,
    attempt: int,
    *,
    artifacts: Iterable[StoredArtifact],
    summary: dict[str, Any],
    reason: str = "",
) -> bool:
    """RUNNING → SUCCEEDED with its artifacts. False when fenced or cancelled: publish nothing."""
    with transaction.atomic():
        job = _locked(job_pk)
        if job is None or job.cancel_requested_at is not None:
            return False
        if not _move(
            job, JobState.RUNNING, attempt, JobState.SUCCEEDED, summary=summary, reason=reason
        ):
            return False
        Artifact.objects.bulk_create(
            [
                Artifact(tenant_id=job.tenant_id, job=job, attempt=attempt, **vars(artifact))
                for artifact in artifacts
            ]
        )
        branches = lanes.release_dependents(job) | {job.branch_id}
        _after(job, [], branches)
    return True


def fail(job_pk: int, attempt: int, reason: Reason, error: str) -> bool:
    """End an attempt as failed: wait for a retry, or FAILED for good. False when fenced.

    Bad input is never tried again: the same slide would be refused the same way.
    """
    with transaction.atomic():
        job = _locked(job_pk)
        if job is None or job.attempt != attempt or not job.status.active:
            return False
        if job.cancel_requested_at is not None:
            return _end_cancelled(job)
        failures = job.failures + 1
        if failures < job.max_attempts and reason is not Reason.BAD_INPUT:
            return _wait_for_retry(job, failures, error)
        _move(
            job,
            job.status,
            attempt,
            JobState.FAILED,
            reason=reason.value,
            error=error,
            failures=failures,
        )
        ended, branches = lanes.end_dependents(job)
        if job.on_failure == "halt":
            more, halted = lanes.halt_lane(job)
            ended += more
            branches |= halted
        _after(job, ended, branches | {job.branch_id})
    return True


def _wait_for_retry(job: Job, failures: int, error: str) -> bool:
    """Back-off in the database; the job stays head of its lane, so order is kept."""
    delay_s = min(settings.RETRY_BACKOFF_S * 2 ** (failures - 1), settings.RETRY_BACKOFF_MAX_S)
    moved = _move(
        job,
        job.status,
        job.attempt,
        JobState.RETRY_WAIT,
        reason=Reason.RETRY_WAIT.value,
        error=error,
        failures=failures,
        retry_at=timezone.now() + dt.timedelta(seconds=delay_s),
    )
    events.jobs_changed(job.tenant_id, [job.pk])
    return moved


def hand_back(job_pk: int, attempt: int, reason: Reason = Reason.WITHDRAWN) -> bool:
    """Put an active job back to the head of its lane; it costs no attempt of its budget."""
    with transaction.atomic():
        job = _locked(job_pk)
        if job is None or job.attempt != attempt or not job.status.active:
            return False
        if job.cancel_requested_at is not None:
            return _end_cancelled(job)
        _move(
            job, job.status, attempt, JobState.READY, reason=reason.value, ready_at=timezone.now()
        )
        events.jobs_changed(job.tenant_id, [job.pk])
    return True


def expire(job_pk: int, attempt: int) -> bool:
    """End a hold whose lease ran out: a RUNNING job is lost, a QUEUED one is withdrawn for free.

    False when the lease was renewed, or the job moved, since the sweep saw it.
    """
    with transaction.atomic():
        job = _locked(job_pk)
        if job is None or job.attempt != attempt or not job.status.active:
            return False
        lease = _leases(job).filter(attempt=attempt, expires_at__lt=Now()).first()
        if lease is None:
            return False
        if job.status is JobState.QUEUED:
            return hand_back(job_pk, attempt)
        return _lose(
            job, f"Worker {lease.worker} stopped renewing its lease: it died or was cut off."
        )


def _lose(job: Job, error: str) -> bool:
    """The attempt counts as failed; the job is tried again at once."""
    if job.cancel_requested_at is not None or job.failures + 1 >= job.max_attempts:
        return fail(job.pk, job.attempt, Reason.LOST, error)
    _move(
        job,
        job.status,
        job.attempt,
        JobState.READY,
        reason=Reason.LOST.value,
        error=error,
        failures=job.failures + 1,
        ready_at=timezone.now(),
    )
    events.jobs_changed(job.tenant_id, [job.pk])
    return True


def cancel(job: Job) -> Job:
    """Cancel by a person. Waiting jobs end at once, a running one is asked to stop (R7).

    Raises StaleTransition when the job is over already.
    """
    with transaction.atomic():
        row = _locked(job.pk)
        if row is None or row.status.terminal:
            raise StaleTransition(f"{job.key} is over already ({_public(row)}).")
        if row.status is JobState.RUNNING:
            _ask_to_stop(row)
        else:
            _end_cancelled(row)
    return _fresh(job)


def cancel_all(tenant_id: int, workflow_id: uuid.UUID) -> int:
    """Cancel every job of a workflow that is not over, by a person. Returns how many."""
    with transaction.atomic():
        events.lock(tenant_id)
        live = Job.objects.across_tenants("one locked tenant").filter(workflow=workflow_id).live()
        running = list(live.filter(state=JobState.RUNNING.value))
        for job in running:
            _ask_to_stop(job)
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
            dispatched_at=None,
            finished_at=timezone.now(),
        )
        lanes.raise_heads(tenant_id, {branch for _, branch in rows})
        events.jobs_changed(tenant_id, [pk for pk, _ in rows])
    return len(rows) + len(running)


def _ask_to_stop(job: Job) -> None:
    if job.cancel_requested_at is None:
        Job.objects.across_tenants("one locked job").filter(pk=job.pk).update(
            cancel_requested_at=Now(), reason=Reason.CANCELLING.value
        )
        events.jobs_changed(job.tenant_id, [job.pk])


def finish_cancel(job_pk: int, attempt: int) -> bool:
    """RUNNING → CANCELLED after its worker stopped. False when fenced or not asked for."""
    with transaction.atomic():
        job = _locked(job_pk)
        if job is None or job.attempt != attempt or job.cancel_requested_at is None:
            return False
        return job.status.active and _end_cancelled(job)


def _end_cancelled(job: Job) -> bool:
    moved = _move(
        job, job.status, job.attempt, JobState.CANCELLED, reason=Reason.CANCELLED_BY_USER.value
    )
    ended, branches = lanes.end_dependents(job)
    _after(job, ended, branches | {job.branch_id})
    return moved


def _after(job: Job, also_ended: list[int], branches: set[int]) -> None:
    lanes.raise_heads(job.tenant_id, branches)
    events.jobs_changed(job.tenant_id, [job.pk, *also_ended])


def _move(
    job: Job,
    source: JobState,
    attempt: int,
    to: JobState,
    *,
    started: bool = False,
    **fields: Any,
) -> bool:
    """Move `job` by compare-and-swap, and drop its leases when it stops being active."""
    if to not in TRANSITIONS[source]:
        raise StaleTransition(f"{job.key} can not go from {source.name} to {to.name}.")
    now = timezone.now()
    values: dict[str, Any] = {"state": to.value, "reason": "", **fields}
    if started:
        values |= {"started_at": now, "error": ""}
    if to.terminal:
        values |= {"finished_at": now, "retry_at": None}
    if not to.active:
        values |= {"user_slot": None, "dispatched_at": None}
    mine = Job.objects.across_tenants("one job, named by its fence").filter(
        pk=job.pk, state=source.value, attempt=attempt
    )
    if mine.update(**values) != 1:
        return False
    if not to.active:
        _leases(job).delete()
    return True


def _leases(job: Job) -> Any:
    return Lease.objects.across_tenants("leases of one locked job").filter(job=job.pk)


def _locked(job_pk: int) -> Job | None:
    """The job as it is now, its tenant's row taken first."""
    jobs = Job.objects.across_tenants("the caller names one job")
    tenant_id = jobs.filter(pk=job_pk).values_list("tenant_id", flat=True).first()
    if tenant_id is None:
        return None
    events.lock(tenant_id)
    found: Job | None = jobs.select_for_update().filter(pk=job_pk).first()
    return found


def _fresh(job: Job) -> Job:
    rows = Job.objects.across_tenants("the caller holds this job")
    fresh: Job = rows.select_related("branch", "tenant", "progress_row").get(pk=job.pk)
    return fresh


def _public(job: Job | None) -> str:
    return job.status.public if job else "deleted"


def wake_retries() -> int:
    """RETRY_WAIT → READY for every back-off that is over. Returns how many."""
    due = (
        Job.objects.across_tenants("back-offs of all tenants")
        .filter(state=JobState.RETRY_WAIT.value, retry_at__lte=timezone.now())
        .values_list("tenant_id", "pk")
    )
    by_tenant: dict[int, list[int]] = {}
    for tenant_id, pk in due[:1000]:
        by_tenant.setdefault(tenant_id, []).append(pk)
    return sum(_wake_retries_of(tenant_id, ids) for tenant_id, ids in sorted(by_tenant.items()))


def _wake_retries_of(tenant_id: int, ids: list[int]) -> int:
    with transaction.atomic():
        events.lock(tenant_id)
        woken: int = (
            Job.objects.across_tenants("one locked tenant")
            .filter(pk__in=ids, state=JobState.RETRY_WAIT.value)
            .update(state=JobState.READY.value, ready_at=timezone.now(), retry_at=None)
        )
        lanes.line_up(tenant_id)
        events.nudge(tenant_id, set())
    return woken
