"""The numbers of `GET /api/metrics/dashboard`, counted from rows."""

from __future__ import annotations

import datetime as dt
from typing import Any

from django.conf import settings
from django.db.models import Avg, Count, DurationField, ExpressionWrapper, F
from django.db.models.functions import TruncMinute
from django.utils import timezone

from jobs.models import Job, Lease, Worker
from jobs.models.jobs import JobQuerySet
from jobs.shapes import moment
from jobs.states import PUBLIC_STATES, JobState

WINDOW = dt.timedelta(hours=1)
BRANCHES = 1000
"""Branches that are named, the fullest first."""


def numbers(jobs: JobQuerySet) -> dict[str, Any]:
    """Branches and jobs of the tenant that owns `jobs`, totals of all."""
    return {
        "active_users": active_users(),
        "max_active_users": settings.MAX_ACTIVE_USERS,
        "workers": workers(),
        "jobs": by_state(jobs),
        "queue_depth": queue_depth(jobs),
        "latency_per_minute": latency_per_minute(jobs),
    }


def active_users() -> int:
    """How many tenants have QUEUED or RUNNING jobs."""
    active = Job.objects.across_tenants("a total of all tenants").active()
    return int(active.values("tenant").distinct().count())


def workers() -> dict[str, int]:
    """Warm worker processes, and how many of them hold a job."""
    busy = Lease.objects.across_tenants("a total of all tenants").exclude(worker="")
    return {"total": Worker.objects.live().filter(warm=True).count(), "busy": busy.count()}


def by_state(jobs: JobQuerySet) -> dict[str, int]:
    """How many jobs are in each public state; every state is named."""
    found = dict.fromkeys(PUBLIC_STATES, 0)
    for code, count in jobs.order_by().values_list("state").annotate(Count("pk")):
        found[JobState(code).public] += count
    return found


def queue_depth(jobs: JobQuerySet) -> list[dict[str, Any]]:
    """How many jobs wait in each branch where any do."""
    rows = jobs.waiting().order_by().values_list("branch__name").annotate(pending=Count("pk"))
    return [
        {"branch": name, "pending": pending}
        for name, pending in rows.order_by("-pending", "branch__name")[:BRANCHES]
    ]


def latency_per_minute(jobs: JobQuerySet) -> list[dict[str, Any]]:
    """Jobs that ran and ended in each minute of the last hour, and their mean seconds from
    promotion to end."""
    took = ExpressionWrapper(F("finished_at") - F("queued_at"), output_field=DurationField())
    rows = (
        jobs.filter(finished_at__gte=timezone.now() - WINDOW, queued_at__isnull=False)
        .order_by()
        .annotate(minute=TruncMinute("finished_at"))
        .values("minute")
        .annotate(jobs=Count("pk"), mean=Avg(took))
        .order_by("minute")
    )
    return [
        {
            "minute": moment(row["minute"]),
            "jobs": row["jobs"],
            "seconds": round(row["mean"].total_seconds(), 3),
        }
        for row in rows
    ]
