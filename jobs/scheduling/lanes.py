"""Lanes and edges: which job of a branch is its head, and what an ended job means for others."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from django.db import connection, transaction
from django.db.models import Exists, F, OuterRef, Subquery
from django.utils import timezone

from jobs.models import Branch, Edge, Job, UserSlot
from jobs.models.jobs import HEAD
from jobs.states import FIRST_ACTIVE, JobState, Reason
from tenants.models import Tenant

BATCH = 800  # parameters a statement, below every database's limit

# UNION, not UNION ALL: a diamond's foot is visited once
DESCENDANTS = """
    WITH RECURSIVE below(id) AS (
        SELECT downstream_id FROM jobs_edge WHERE upstream_id IN ({roots})
        UNION
        SELECT e.downstream_id FROM jobs_edge e JOIN below b ON e.upstream_id = b.id
    )
    SELECT id FROM below
"""


def raise_heads(tenant_id: int, branch_ids: Iterable[int]) -> None:
    """Make the first waiting job of each idle lane READY, and line its tenant up for a user slot.

    The caller holds the tenant's row. A lane whose first job still waits for upstream stays as
    it is: order within a branch is kept.
    """
    ids = sorted(set(branch_ids))
    for start in range(0, len(ids), BATCH):
        _raise_batch(ids[start : start + BATCH])
    line_up(tenant_id)


def _raise_batch(branch_ids: list[int]) -> None:
    jobs = Job.objects.across_tenants("lanes of one locked tenant")
    of_lane = jobs.filter(branch=OuterRef("pk"))
    first = of_lane.filter(state=JobState.PENDING.value).order_by("sequence").values("pk")[:1]
    lanes = Branch.objects.across_tenants("lanes of one locked tenant").filter(
        pk__in=branch_ids, paused=False
    )
    firsts = list(
        lanes.annotate(first=Subquery(first))
        .filter(~Exists(of_lane.filter(HEAD)), first__isnull=False)
        .values_list("first", flat=True)
    )
    jobs.filter(pk__in=firsts, state=JobState.PENDING.value, upstream_left=0).update(
        state=JobState.READY.value, ready_at=timezone.now()
    )


def line_up(tenant_id: int) -> None:
    """Put the tenant in line for a user slot while it has a ready job and no slot; else take it out."""
    holds = UserSlot.objects.filter(holder=OuterRef("pk"))
    ready = Job.objects.across_tenants("one locked tenant").filter(
        tenant=OuterRef("pk"), state=JobState.READY.value
    )
    tenant = Tenant.objects.filter(pk=tenant_id)
    tenant.filter(~Exists(holds), Exists(ready), waiting_since=None).update(
        waiting_since=timezone.now()
    )
    tenant.filter(~Exists(ready), waiting_since__isnull=False).update(waiting_since=None)


def set_paused(lane: Branch, paused: bool) -> None:
    """Pause or resume a lane. Its head stays its head; nothing new of it starts while paused."""
    with transaction.atomic():
        Tenant.objects.select_for_update(no_key=True).get(pk=lane.tenant_id)
        Branch.objects.across_tenants("one lane by id").filter(pk=lane.pk).update(paused=paused)
        raise_heads(lane.tenant_id, [lane.pk])


def release_dependents(job: Job) -> set[int]:
    """Count down the jobs that waited for `job`, which succeeded. Returns their branches."""
    edges = Edge.objects.across_tenants("edges of one locked job")
    below = edges.filter(upstream=job).values("downstream")
    jobs = Job.objects.across_tenants("dependents of one locked job").filter(
        pk__in=below, state=JobState.PENDING.value
    )
    jobs.update(upstream_left=F("upstream_left") - 1)
    return set(jobs.filter(upstream_left=0).values_list("branch_id", flat=True))


def descendants(job_ids: Sequence[int]) -> list[int]:
    """The ids of everything below these jobs."""
    below: set[int] = set()
    for start in range(0, len(job_ids), BATCH):
        roots = list(job_ids[start : start + BATCH])
        statement = DESCENDANTS.format(roots=", ".join(["%s"] * len(roots)))
        with connection.cursor() as cursor:
            cursor.execute(statement, roots)
            below.update(row[0] for row in cursor.fetchall())
    return sorted(below)


def end_dependents(job: Job) -> tuple[list[int], set[int]]:
    """Cancel everything below `job`, which will never succeed. Returns (job ids, branches)."""
    return _cancel_waiting(descendants([job.pk]), Reason.UPSTREAM_FAILED)


def halt_lane(job: Job) -> tuple[list[int], set[int]]:
    """Cancel the later jobs of the same workflow in `job`'s lane, and all below them (R6)."""
    later = Job.objects.across_tenants("lane of one locked job").filter(
        branch_id=job.branch_id,
        workflow_id=job.workflow_id,
        sequence__gt=job.sequence,
        state__lt=int(FIRST_ACTIVE),
    )
    halted = list(later.values_list("pk", flat=True))
    return _cancel_waiting([*halted, *descendants(halted)], Reason.BRANCH_HALTED)


def _cancel_waiting(job_ids: list[int], reason: Reason) -> tuple[list[int], set[int]]:
    ended: list[int] = []
    branches: set[int] = set()
    jobs = Job.objects.across_tenants("ids of one locked tenant")
    for start in range(0, len(job_ids), BATCH):
        waiting = jobs.filter(pk__in=job_ids[start : start + BATCH], state__lt=int(FIRST_ACTIVE))
        rows = list(waiting.values_list("pk", "branch_id"))
        waiting.update(
            state=JobState.CANCELLED.value,
            reason=reason.value,
            retry_at=None,
            finished_at=timezone.now(),
        )
        ended += [pk for pk, _ in rows]
        branches |= {branch for _, branch in rows}
    return ended, branches
