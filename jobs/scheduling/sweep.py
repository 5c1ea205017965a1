"""What a scheduler does over and over: a round at each wake-up, a sweep at least every second."""

from __future__ import annotations

import datetime as dt
import functools
import logging
import time
from collections.abc import Callable

from django.db.models import Q
from django.db.models.functions import Now

from jobs import events, services, sql
from jobs.models import Lease, Queue, Worker
from jobs.scheduling import dispatch, heartbeat, promotion, shards, tally
from jobs.signals import swept, tidied
from jobs.states import JobState

WORKER_FORGOTTEN = dt.timedelta(minutes=10)
log = logging.getLogger(__name__)


def round_of_work() -> int:
    """Promote and dispatch. Returns how many jobs were promoted."""
    promoted = promotion.one_pass(deliver=dispatch.push)
    tally.promoted(promoted)
    return len(promoted)


def sweep() -> int:
    """Repair, then a round of work. Returns how many jobs were promoted."""
    began_at = time.monotonic()
    repair()
    promoted = round_of_work()
    shards.settle()
    dispatch.push_overdue()
    heartbeat.beat()
    tally.swept(began_at)
    swept.send_robust(sender=None)
    return promoted


def repair() -> None:
    """End expired leases, take back what was paused, wake retries that are due. Touches ≤ W rows."""
    services.wake_retries()
    leases = Lease.objects.across_tenants("leases of all tenants").select_related("job")
    for lease in leases.filter(expires_at__lt=Now()):
        if shards.drop(lease.pk) if lease.shard else _unless_held(services.expire, lease):
            log.warning("%s: the lease of %s ran out", lease.job, lease.worker or "nobody")
            tally.lease_ran_out(lease)
            _take_back(lease)  # also what a killed worker had popped
    paused = (
        Q(job__tenant__paused=True)
        | Q(job__branch__paused=True)
        | Q(queue__in=Queue.objects.filter(paused=True).values("name"))
    )
    for lease in leases.filter(paused, worker="", job__state=JobState.QUEUED.value):
        if _unless_held(functools.partial(services.hand_back, only_queued=True), lease):
            _take_back(lease)


def _unless_held(move: Callable[[int, int], bool], lease: Lease) -> bool:
    """Whether the move was made. One tenant's held row must not hold up the repair of all: the next
    sweep comes soon."""
    try:
        with sql.briefly():
            return move(lease.job_id, lease.attempt)
    except sql.RowHeld:
        return False


def _take_back(lease: Lease) -> None:
    attempt = lease.attempt or lease.job.attempt  # a helper that was asked back names none
    dispatch.take_back(dispatch.Message(lease.job_id, attempt, lease.queue, lease.shard))


def tidy() -> None:
    """Drop what is past its retention. Called now and then, not every round."""
    events.forget_old()
    Worker.objects.filter(seen_at__lt=Now() - WORKER_FORGOTTEN).delete()
    tidied.send_robust(sender=None)
