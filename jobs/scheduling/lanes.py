"""Lanes and edges: which job of a branch is its head, and what an ended job means for others."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from django.db import connection, transaction
from django.utils import timezone

from jobs import sql
from jobs.models import Branch, Job
from jobs.moves import Standing
from jobs.states import FIRST_ACTIVE, FIRST_HEAD, LAST_HEAD, JobState, Reason
from tenants.models import Tenant

BATCH = 800  # parameters a statement, below every database's limit

# the first waiting job of each of these lanes that has no head
RAISE = f"""
    UPDATE jobs_job SET state = {JobState.READY:d}, ready_at = {{now}}
    WHERE state = {JobState.PENDING:d} AND upstream_left = 0 AND id IN (
        SELECT (SELECT f.id FROM jobs_job f
                WHERE f.branch_id = b.id AND f.state = {JobState.PENDING:d}
                ORDER BY f.sequence LIMIT 1)
        FROM jobs_branch b
        WHERE b.id IN ({{lanes}}) AND NOT b.paused AND NOT EXISTS (
            SELECT 1 FROM jobs_job h WHERE h.branch_id = b.id
            AND h.state >= {FIRST_HEAD:d} AND h.state <= {LAST_HEAD:d}))
"""
# state codes are literals: with a parameter SQLite does not see that the partial index serves
HAS_READY = f"""
    EXISTS (SELECT 1 FROM jobs_job j WHERE j.tenant_id = tenants_tenant.id
        AND j.state = {JobState.READY:d})
"""
JOIN_LINE = f"""
    UPDATE tenants_tenant SET waiting_since = {{now}} WHERE id = %s AND waiting_since IS NULL
    AND NOT EXISTS (SELECT 1 FROM jobs_userslot s WHERE s.holder_id = tenants_tenant.id)
    AND {HAS_READY}
"""
LEAVE_LINE = f"""
    UPDATE tenants_tenant SET waiting_since = NULL WHERE id = %s AND waiting_since IS NOT NULL
    AND NOT {HAS_READY}
"""
RELEASE = f"""
    UPDATE jobs_job SET upstream_left = upstream_left - 1
    WHERE state = {JobState.PENDING:d}
    AND id IN (SELECT downstream_id FROM jobs_edge WHERE upstream_id = %s)
    RETURNING branch_id, upstream_left
"""

# UNION, not UNION ALL: a diamond's foot is visited once
DESCENDANTS = """
    WITH RECURSIVE below(id) AS (
        SELECT downstream_id FROM jobs_edge WHERE upstream_id IN ({roots})
        UNION
        SELECT e.downstream_id FROM jobs_edge e JOIN below b ON e.upstream_id = b.id
    )
    SELECT id FROM below
"""


def raise_heads(tenant_id: int, branch_ids: Iterable[int], *, holds_slot: bool = False) -> None:
    """Make the first waiting job of each idle lane READY, and line its tenant up for a user slot.

    The caller holds the tenant's row. A lane whose first job still waits for upstream stays as
    it is: order within a branch is kept.

    holds_slot  the tenant is known to hold a user slot: there is no line for it to join
    """
    ids = sorted(set(branch_ids))
    for start in range(0, len(ids), BATCH):
        batch = ids[start : start + BATCH]
        sql.run(sql.text(RAISE.replace("{lanes}", sql.marks(batch))), batch)
    if not holds_slot:
        line_up(tenant_id)


def line_up(tenant_id: int) -> None:
    """Put the tenant in line for a user slot while it has a ready job and no slot; else take it out."""
    if sql.run(sql.text(JOIN_LINE), [tenant_id]) == 0:
        sql.run(LEAVE_LINE, [tenant_id])


def set_paused(lane: Branch, paused: bool) -> None:
    """Pause or resume a lane. While it is paused its first job is not ready, so no pass sees it."""
    jobs = Job.objects.across_tenants("one lane by id")
    with transaction.atomic():
        Tenant.objects.select_for_update(no_key=True).get(pk=lane.tenant_id)
        Branch.objects.across_tenants("one lane by id").filter(pk=lane.pk).update(paused=paused)
        if paused:
            jobs.filter(branch=lane.pk, state=JobState.READY.value).update(
                state=JobState.PENDING.value
            )
        raise_heads(lane.tenant_id, [lane.pk])


def release_dependents(job_pk: int) -> set[int]:
    """Count down the jobs that waited for this one, which succeeded. The branches of those that
    wait for nothing more."""
    return {branch for branch, left in sql.rows(RELEASE, [job_pk]) if left == 0}


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


def end_dependents(job: Standing) -> tuple[list[int], set[int]]:
    """Cancel everything below `job`, which will never succeed. Returns (job ids, branches)."""
    return _cancel_waiting(descendants([job.pk]), Reason.UPSTREAM_FAILED)


def halt_lane(job: Standing) -> tuple[list[int], set[int]]:
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
