"""What a scheduler does over and over: repair, promote, dispatch."""

from __future__ import annotations

import datetime as dt
import logging

from django.db.models import Q
from django.db.models.functions import Now

from jobs import events, services
from jobs.models import Lease, Queue, Worker
from jobs.scheduling import dispatch, heartbeat, promotion
from jobs.signals import swept
from jobs.states import JobState

WORKER_FORGOTTEN = dt.timedelta(minutes=10)
log = logging.getLogger(__name__)


def sweep() -> int:
    """One round. Returns how many jobs were promoted."""
    repair()
    promoted = promotion.promote()
    dispatch.dispatch_waiting()
    heartbeat.beat()
    swept.send_robust(sender=None)
    return len(promoted)


def repair() -> None:
    """End expired leases, take back what was paused, wake retries that are due. Touches ≤ W rows."""
    services.wake_retries()
    leases = Lease.objects.across_tenants("leases of all tenants").select_related("job")
    for lease in leases.filter(expires_at__lt=Now()):
        queued = lease.job.status is JobState.QUEUED
        if services.expire(lease.job_id, lease.attempt):
            log.warning("%s: the lease of %s ran out", lease.job, lease.worker or "nobody")
            if queued:
                dispatch.take_back(lease.job)
    paused = (
        Q(job__tenant__paused=True)
        | Q(job__branch__paused=True)
        | Q(queue__in=Queue.objects.filter(paused=True).values("name"))
    )
    for lease in leases.filter(paused, job__state=JobState.QUEUED.value):
        if services.hand_back(lease.job_id, lease.attempt):
            dispatch.take_back(lease.job)


def tidy() -> None:
    """Drop what is past its retention. Called now and then, not every round."""
    events.forget_old()
    Worker.objects.filter(seen_at__lt=Now() - WORKER_FORGOTTEN).delete()
