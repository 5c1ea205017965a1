"""Event rows: what the live feed replays. Written in the transaction of the move they tell."""

from __future__ import annotations

import datetime as dt
import uuid
from collections.abc import Iterable
from typing import Any

from django.db import transaction
from django.utils import timezone

from jobs import sql
from jobs.models import Event
from jobs.scheduling import wake
from jobs.signals import jobs_moved
from jobs.states import FIRST_TERMINAL, JobState, Reason
from tenants.models import Tenant

KEPT = dt.timedelta(hours=24)
MOST_KEPT = 10_000
BATCH = 800  # parameters a statement, below every database's limit

TAKE_NUMBERS = """
    UPDATE tenants_tenant SET next_event = next_event + %s {also}
    WHERE id = %s RETURNING next_event
"""
# the reason of a waiting job is read off its row, as `shapes.reason_of` does
INSERT = f"""
    INSERT INTO jobs_event (tenant_id, seq, kind, workflow_id, job_id, at, state, reason, error,
        attempt, phase, progress, tiles_done, tiles_total, queued_at, started_at, finished_at, data)
    SELECT j.tenant_id, %s + row_number() OVER (ORDER BY j.sequence), 'job', j.workflow_id, j.id,
        {{now}}, j.state,
        CASE WHEN j.state <> {JobState.PENDING:d} THEN j.reason
             WHEN j.upstream_left > 0 THEN '{Reason.DEPENDENCY}' ELSE '{Reason.BRANCH}' END,
        j.error, j.attempt, COALESCE(p.phase, ''),
        CASE WHEN j.state >= {FIRST_TERMINAL:d} THEN 1.0 ELSE COALESCE(p.progress, 0.0) END,
        COALESCE(p.tiles_done, 0), COALESCE(p.tiles_total, 0),
        j.queued_at, j.started_at, j.finished_at, NULL
    FROM jobs_job j LEFT JOIN jobs_jobprogress p ON p.job_id = j.id
    WHERE j.id IN ({{ids}})
"""


def lock(tenant_id: int) -> Tenant:
    """Take the tenant's row: first lock of every move, so events commit in `seq` order."""
    # no_key: rows that only point at the tenant may still be written meanwhile
    return Tenant.objects.select_for_update(no_key=True).get(pk=tenant_id)


def record(tenant_id: int, kind: str, entries: list[tuple[uuid.UUID, dict[str, Any]]]) -> None:
    """Write one event an entry (workflow id, data). The caller holds the tenant's row."""
    if not entries:
        return
    before = _take_numbers(tenant_id, len(entries))
    now = timezone.now()
    Event.objects.bulk_create(
        [
            Event(tenant_id=tenant_id, seq=seq, kind=kind, workflow_id=workflow, at=now, data=data)
            for seq, (workflow, data) in enumerate(entries, before + 1)
        ],
        batch_size=500,
    )


def jobs_changed(tenant_id: int, job_ids: Iterable[int], *, served: bool = False) -> None:
    """Write an event for each of these jobs as it is now. The caller holds the tenant's row.

    served  they were promoted: the tenant was served now (R5)
    """
    ids = sorted(set(job_ids))
    for start in range(0, len(ids), BATCH):
        batch = ids[start : start + BATCH]
        before = _take_numbers(tenant_id, len(batch), served=served)
        insert = sql.text(INSERT.replace("{ids}", sql.marks(batch)))
        sql.run(insert, [before, *batch])


def job_moved(seq: int, job_pk: int) -> None:
    """Write the event of one job under a number that was taken with its tenant's row."""
    sql.run(sql.text(INSERT.replace("{ids}", "%s")), [seq - 1, job_pk])


def _take_numbers(tenant_id: int, count: int, *, served: bool = False) -> int:
    """Allocate the next `count` numbers of the tenant. The one before the first."""
    statement = TAKE_NUMBERS.replace("{also}", ", served_at = {now}" if served else "")
    ((following,),) = sql.rows(sql.text(statement), [count, tenant_id])
    return int(following) - 1 - count


def nudge(
    tenant_id: int, look_at: Iterable[uuid.UUID] = (), *, work_may_start: bool = True
) -> None:
    """Send jobs_moved once this transaction has committed, and wake the schedulers with it.

    look_at         the workflows that may have begun, ended or been reopened by it
    work_may_start  whether the schedulers have something to look for
    """
    if work_may_start:
        wake.notify()
    after_commit(tenant_id, look_at, work_may_start=work_may_start)


def after_commit(tenant_id: int, look_at: Iterable[uuid.UUID], *, work_may_start: bool) -> None:
    """Send jobs_moved once this transaction has committed; at once where there is none."""
    found = frozenset(look_at)
    transaction.on_commit(
        lambda: jobs_moved.send_robust(
            sender=None, tenant_id=tenant_id, look_at=found, work_may_start=work_may_start
        ),
        robust=True,
    )


def forget_old() -> int:
    """Drop events past their retention: a day, and the newest 10,000 a tenant. Returns how many."""
    rows = Event.objects.across_tenants("retention")
    gone = rows.filter(at__lt=timezone.now() - KEPT).delete()[0]
    many = Tenant.objects.filter(next_event__gt=MOST_KEPT)
    for tenant_id, next_event in many.values_list("pk", "next_event"):
        gone += rows.filter(tenant=tenant_id, seq__lt=next_event - MOST_KEPT).delete()[0]
    return gone
