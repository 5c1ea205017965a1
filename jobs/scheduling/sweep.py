"""What a scheduler does over and over: repair, promote, dispatch."""

from __future__ import annotations

import datetime as dt
import logging

from django.db.models.functions import Now
from django.utils import timezone

from jobs import events, services
from jobs.models import Job, Lease, Worker
from jobs.scheduling import dispatch, heartbeat, promotion
from jobs.signals import swept
from jobs.states import JobState, Reason

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
    """Take back what expired leases hold, and wake retries that are due. Touches ≤ W rows."""
    services.wake_retries()
    expired = Lease.objects.across_tenants("leases of all tenants").filter(expires_at__lt=Now())
    for lease in expired.select_related("job"):
        _expire(lease.job, lease)


def _expire(job: Job, lease: Lease) -> None:
    if job.status is JobState.RUNNING:
        log.warning("%s lost its worker %s", job, lease.worker)
        services.lose(
            job.pk,
            lease.attempt,
            f"Worker {lease.worker} stopped renewing its lease: it died or was cut off.",
        )
    elif job.status is JobState.QUEUED:
        log.info("%s was not taken by a worker in time: withdrawn", job)
        if services.hand_back(job.pk, lease.attempt, Reason.WITHDRAWN):
            dispatch.take_back(job)


def tidy() -> None:
    """Drop what is past its retention. Called now and then, not every round."""
    events.forget_old()
    Worker.objects.filter(seen_at__lt=timezone.now() - WORKER_FORGOTTEN).delete()
