"""The only way out of FAILED and CANCELLED: a retry by hand (R6)."""

from __future__ import annotations

from django.db import transaction
from django.db.models import F

from jobs import events
from jobs.models import Edge, Job, JobProgress
from jobs.scheduling import lanes
from jobs.services import StaleTransition
from jobs.states import JobState, Reason
from tenants.models import Tenant

ENDED_BY_OTHERS = (Reason.UPSTREAM_FAILED.value, Reason.BRANCH_HALTED.value)


class UpstreamNotDone(StaleTransition):
    """The job can not run: one it depends on ended without success."""


def retry(job: Job) -> Job:
    """Put an ended job at its lane's tail with a fresh budget, and what it ended behind it.

    Raises StaleTransition (it is not FAILED or CANCELLED) or UpstreamNotDone.
    """
    with transaction.atomic():
        events.lock(job.tenant_id)
        job.refresh_from_db()
        if job.status not in (JobState.FAILED, JobState.CANCELLED):
            raise StaleTransition(
                f"{job.key} is {job.status.public}: only failed and cancelled jobs are retried."
            )
        if names := _unmet(job, set()):
            raise UpstreamNotDone(
                f"{job.key} waits for {', '.join(names)}, which did not succeed: retry that first."
            )
        revived = [job, *_ended_by(job)]
        _reopen(job.tenant_id, revived)
        events.jobs_changed(job.tenant_id, [each.pk for each in revived])
    job.refresh_from_db()
    return job


def _unmet(job: Job, revived: set[int]) -> list[str]:
    """Keys of the upstream jobs that ended without success and do not come back with this one."""
    upstream = Job.objects.across_tenants("edges of one locked job").filter(
        edges_down__downstream=job
    )
    dead = upstream.filter(state__gt=int(JobState.SUCCEEDED)).exclude(pk__in=revived)
    return list(dead.order_by("sequence").values_list("key", flat=True)[:5])


def _ended_by(job: Job) -> list[Job]:
    """The jobs below `job`, those halted behind it and those below them, that can run again."""
    jobs = Job.objects.across_tenants("one locked tenant")
    ended = jobs.filter(state=JobState.CANCELLED.value, reason__in=ENDED_BY_OTHERS)
    halted = ended.filter(
        branch=job.branch_id,
        workflow=job.workflow_id,
        reason=Reason.BRANCH_HALTED.value,
        sequence__gt=job.sequence,
    )
    below = {pk for root in [job, *halted] for pk in lanes.descendants(root)}
    ids = sorted(below)
    rows = [
        each
        for start in range(0, len(ids), lanes.BATCH)
        for each in ended.filter(pk__in=ids[start : start + lanes.BATCH])
    ]
    # sequence order is a topological order (R2)
    unique = {each.pk: each for each in [*rows, *halted]}
    revived = {job.pk}
    result = []
    for each in sorted(unique.values(), key=lambda row: row.sequence):
        if not _unmet(each, revived):
            revived.add(each.pk)
            result.append(each)
    return result


def _reopen(tenant_id: int, revived: list[Job]) -> None:
    tenant = Tenant.objects.get(pk=tenant_id)
    Tenant.objects.filter(pk=tenant_id).update(next_sequence=F("next_sequence") + len(revived))
    for sequence, each in enumerate(revived, tenant.next_sequence):
        open_edges = Edge.objects.across_tenants("one locked job").filter(downstream=each)
        left = open_edges.exclude(upstream__state=JobState.SUCCEEDED.value).count()
        Job.objects.across_tenants("one locked job").filter(pk=each.pk).update(
            state=JobState.PENDING.value,
            reason="",
            error="",
            failures=0,
            sequence=sequence,
            upstream_left=left,
            cancel_requested_at=None,
            finished_at=None,
            started_at=None,
            queued_at=None,
        )
    ids = [each.pk for each in revived]
    for start in range(0, len(ids), lanes.BATCH):
        JobProgress.objects.across_tenants("one locked tenant").filter(
            pk__in=ids[start : start + lanes.BATCH]
        ).delete()
    lanes.raise_heads(tenant_id, {each.branch_id for each in revived})
