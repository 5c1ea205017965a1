"""Event rows: what the live feed replays. Written in the transaction of the move they tell."""

from __future__ import annotations

import datetime as dt
import uuid
from collections.abc import Iterable
from typing import Any

from django.db import transaction
from django.db.models import F
from django.utils import timezone

from jobs.models import Event, Job
from jobs.shapes import job_state
from jobs.signals import jobs_moved
from tenants.models import Tenant

KEPT = dt.timedelta(hours=24)
MOST_KEPT = 10_000


def lock(tenant_id: int) -> Tenant:
    """Take the tenant's row: first lock of every move, so events commit in `seq` order."""
    # no_key: rows that only point at the tenant may still be written meanwhile
    return Tenant.objects.select_for_update(no_key=True).get(pk=tenant_id)


def record(tenant_id: int, kind: str, entries: list[tuple[uuid.UUID, dict[str, Any]]]) -> None:
    """Write one event an entry (workflow id, data). The caller holds the tenant's row."""
    if not entries:
        return
    Tenant.objects.filter(pk=tenant_id).update(next_event=F("next_event") + len(entries))
    end = Tenant.objects.values_list("next_event", flat=True).get(pk=tenant_id)
    now = timezone.now()
    Event.objects.bulk_create(
        [
            Event(tenant_id=tenant_id, seq=seq, kind=kind, workflow_id=workflow, at=now, data=data)
            for seq, (workflow, data) in enumerate(entries, end - len(entries))
        ],
        batch_size=500,
    )


def jobs_changed(tenant_id: int, job_ids: Iterable[int]) -> None:
    """Tell the feed, the workflows and the scheduler that these jobs moved."""
    ids = sorted(set(job_ids))
    rows = Job.objects.across_tenants("ids of one locked tenant").select_related(
        "branch", "progress_row"
    )
    entries = [
        (job.workflow_id, job_state(job))
        for start in range(0, len(ids), 500)
        for job in rows.filter(pk__in=ids[start : start + 500]).order_by("sequence")
    ]
    record(tenant_id, "job", entries)
    nudge(tenant_id, {workflow for workflow, _ in entries})


def nudge(tenant_id: int, workflow_ids: set[uuid.UUID]) -> None:
    """Send jobs_moved once this transaction has committed."""
    transaction.on_commit(
        lambda: jobs_moved.send_robust(sender=None, tenant_id=tenant_id, workflow_ids=workflow_ids),
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
