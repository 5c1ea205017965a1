"""Leases: a worker's hold on a running job, renewed by the worker, ended by the sweep (R8)."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass

from django.conf import settings
from django.db import transaction
from django.db.models import DurationField, ExpressionWrapper, F
from django.db.models.functions import Now

from jobs.models import Job, Lease


@dataclass(frozen=True)
class Hold:
    """What a renewal learnt: whether the job is still this worker's, and whether to stop."""

    mine: bool
    cancel_asked_s: float | None = None  # since a person asked to cancel, by the database's clock


def renew(job_pk: int, attempt: int, worker: str) -> Hold:
    """Hold the job for another LEASE_S. `mine` is False when another attempt took over."""
    lease = Lease.objects.across_tenants("a worker knows only the job").filter(
        job=job_pk, attempt=attempt, worker=worker
    )
    with transaction.atomic():  # on SQLite a transaction gets its turn sooner
        renewed = lease.update(expires_at=Now() + dt.timedelta(seconds=settings.LEASE_S))
    if renewed != 1:
        return Hold(mine=False)
    job = Job.objects.across_tenants("a worker knows only the job").filter(pk=job_pk)
    age = ExpressionWrapper(Now() - F("cancel_requested_at"), output_field=DurationField())
    asked: dt.timedelta | None = job.values_list(age, flat=True).first()
    return Hold(mine=True, cancel_asked_s=None if asked is None else asked.total_seconds())
