"""The only way out of FAILED and CANCELLED, and of a success with gaps: a retry by hand (R6).

What was finished is not computed again. The artifacts of a success with gaps stay what they are,
listed and readable, until the retry succeeds and replaces them, also when it fails instead.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from django.db import transaction
from django.db.models import F

from jobs import events
from jobs.models import Edge, Job, JobProgress
from jobs.scheduling import lanes
from jobs.services import StaleTransition
from jobs.states import JobState, Reason, may_be_retried
from tenants.models import Tenant

FRESH = {
    "state": JobState.PENDING.value,
    "reason": "",
    "error": "",
    "failures": 0,
    "cancel_requested_at": None,
    "finished_at": None,
    "started_at": None,
    "queued_at": None,
}
ENDED_BY_OTHERS = (Reason.UPSTREAM_FAILED.value, Reason.BRANCH_HALTED.value)


class UpstreamNotDone(StaleTransition):
    """The job can not run: one it depends on ended without success."""


class StillNeeded(StaleTransition):
    """The job's result is in use: one that depends on it has not ended."""


def retry(job: Job) -> Job:
    """Put an ended job at its lane's tail with a fresh budget, and what it ended behind it.

    Raises StaleTransition (it neither failed nor was cancelled nor has gaps), UpstreamNotDone or
    StillNeeded.
    """
    with transaction.atomic():
        events.lock(job.tenant_id)
        job.refresh_from_db()
        if not may_be_retried(job.status, job.reason):
            raise StaleTransition(
                f"{job.key} is {job.status.public}: only failed and cancelled jobs are retried, "
                "and those whose result has gaps."
            )
        _refuse_if_needed(job)
        dead = _dead_upstream([job])
        if names := [key for _, key in dead.get(job.pk, [])]:
            raise UpstreamNotDone(
                f"{job.key} waits for {', '.join(names[:5])}, which did not succeed: retry that "
                "first."
            )
        revived = [job, *_ended_by(job)]
        _reopen(job.tenant_id, revived)
        events.jobs_changed(job.tenant_id, [each.pk for each in revived])
        events.nudge(job.tenant_id, {job.workflow_id})
    job.refresh_from_db()
    return job


def _refuse_if_needed(job: Job) -> None:
    """Raise StillNeeded for a success that a live job was told of: it may be at work on it, and it
    stands before the tail of the lane, where the retry would go."""
    below = Job.objects.across_tenants("one locked tenant").live()
    needed_by = below.filter(edges_up__upstream=job.pk).values_list("key", flat=True)
    if job.status is JobState.SUCCEEDED and (names := list(needed_by[:5])):
        raise StillNeeded(
            f"{', '.join(names)} depends on {job.key} and has not ended: retry {job.key} after "
            "that, or cancel the other first."
        )


def _ended_by(job: Job) -> list[Job]:
    """The jobs below `job`, those it halted and those below them, that can run again with it."""
    if job.status is JobState.SUCCEEDED:
        return []
    ended = Job.objects.across_tenants("one locked tenant").filter(
        state=JobState.CANCELLED.value, reason__in=ENDED_BY_OTHERS
    )
    halted: list[int] = []
    if job.status is JobState.FAILED:
        lane = ended.filter(branch=job.branch_id, workflow=job.workflow_id)
        behind = lane.filter(reason=Reason.BRANCH_HALTED.value, sequence__gt=job.sequence)
        halted = list(behind.values_list("pk", flat=True))
    rows = _in_batches(ended, [*halted, *lanes.descendants([job.pk, *halted])])
    dead = _dead_upstream(rows)
    revived = {job.pk}
    # sequence order is a topological order (R2)
    for each in sorted(rows, key=lambda row: row.sequence):
        if all(upstream in revived for upstream, _ in dead.get(each.pk, [])):
            revived.add(each.pk)
    return [each for each in sorted(rows, key=lambda row: row.sequence) if each.pk in revived]


def _in_batches(rows: Any, ids: list[int]) -> list[Job]:
    unique = sorted(set(ids))
    return [
        row
        for start in range(0, len(unique), lanes.BATCH)
        for row in rows.filter(pk__in=unique[start : start + lanes.BATCH])
    ]


def _upstream(jobs: list[Job]) -> list[tuple[int, int, str, int]]:
    """(job, upstream job, its key, its state) for every edge into these jobs."""
    edges = Edge.objects.across_tenants("edges of one locked tenant").order_by("upstream_id")
    ids = [job.pk for job in jobs]
    return [
        edge
        for start in range(0, len(ids), lanes.BATCH)
        for edge in edges.filter(downstream__in=ids[start : start + lanes.BATCH]).values_list(
            "downstream_id", "upstream_id", "upstream__key", "upstream__state"
        )
    ]


def _dead_upstream(jobs: list[Job]) -> dict[int, list[tuple[int, str]]]:
    """For each job the (pk, key) of those it waits for that ended without success."""
    dead: dict[int, list[tuple[int, str]]] = {}
    for below, above, key, state in _upstream(jobs):
        if state > JobState.SUCCEEDED:
            dead.setdefault(below, []).append((above, key))
    return dead


def _reopen(tenant_id: int, revived: list[Job]) -> None:
    """Put the jobs at the tails of their lanes, in this order, with a fresh budget."""
    Tenant.objects.filter(pk=tenant_id).update(next_sequence=F("next_sequence") + len(revived))
    end = Tenant.objects.values_list("next_sequence", flat=True).get(pk=tenant_id)
    left = Counter(
        below for below, _, _, state in _upstream(revived) if state != JobState.SUCCEEDED
    )
    for sequence, each in enumerate(revived, end - len(revived)):
        each.sequence = sequence
        each.upstream_left = left[each.pk]
    jobs = Job.objects.across_tenants("one locked tenant")
    jobs.bulk_update(revived, ["sequence", "upstream_left"], batch_size=300)
    ids = [each.pk for each in revived]
    for start in range(0, len(ids), lanes.BATCH):
        batch = ids[start : start + lanes.BATCH]
        jobs.filter(pk__in=batch).update(**FRESH)
        JobProgress.objects.across_tenants("one locked tenant").filter(pk__in=batch).delete()
    lanes.raise_heads(tenant_id, {each.branch_id for each in revived})
