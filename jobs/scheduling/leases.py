"""Leases: a worker's hold on a running job, renewed by the worker, ended by the sweep (R8)."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass

from django.conf import settings
from django.db.models.functions import Now
from django.utils import timezone

from jobs.models import Job, Lease


@dataclass(frozen=True)
class Hold:
    """What a renewal learnt: whether the job is still this worker's, and whether to stop."""

    mine: bool
    cancel_requested_at: dt.datetime | None = None


def lease_end() -> dt.datetime:
    """When a lease taken now runs out."""
    return timezone.now() + dt.timedelta(seconds=settings.LEASE_S)


def renew(job_pk: int, attempt: int, worker: str) -> Hold:
    """Hold the job for another LEASE_S. `mine` is False when another attempt took over."""
    lease = Lease.objects.across_tenants("a worker knows only the job").filter(
        job=job_pk, attempt=attempt, worker=worker
    )
    if lease.update(expires_at=Now() + dt.timedelta(seconds=settings.LEASE_S)) != 1:
        return Hold(mine=False)
    job = Job.objects.across_tenants("a worker knows only the job").filter(pk=job_pk)
    return Hold(mine=True, cancel_requested_at=job.values_list("cancel_requested_at", flat=True)[0])
