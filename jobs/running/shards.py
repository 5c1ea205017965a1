"""A worker that helps with a job which another one runs: it computes parts that are not done yet.

The job hears nothing of it: a helper has no attempt to fail, writes no progress and no result. One
that dies, or is asked back, leaves what it finished, and somebody else does the rest.
"""

from __future__ import annotations

import functools
import logging
from typing import TYPE_CHECKING

from django.conf import settings
from django.db import DatabaseError, InterfaceError, transaction

from jobs import moves
from jobs.running.child import STARTED
from jobs.running.persist import persist
from jobs.scheduling.dispatch import Order
from jobs.scheduling.wake import wake

if TYPE_CHECKING:
    from jobs.models import Job
    from jobs.running.tasks import Worker

log = logging.getLogger(__name__)


def run_shard(job_pk: int, attempt: int, shard: int) -> None:
    """The function that RQ messages of helpers name."""
    from jobs.running.tasks import NobodyWatching

    help_with(Order(job_pk, attempt, shard), NobodyWatching())


def help_with(order: Order, worker: Worker) -> bool:
    """Help until nothing is left or no help is wanted. False when this process should run no other
    job."""
    from jobs.running import helping  # the parent needs no bodies of jobs

    keep = functools.partial(persist, for_s=settings.LEASE_S, beat=worker.beat)
    job = keep(lambda: _taken(order, worker.worker))
    if job is None:
        log.info("job %d attempt %d wants no help any more", order.job, order.attempt)
        return True
    worker.say(STARTED, {"stall_s": float(job.params.get("stall_s", 0.0))})
    try:
        return helping.run(job, order, worker)
    finally:
        keep(lambda: _leave(order, worker.worker))
        wake()


def _taken(order: Order, worker: str) -> Job | None:
    """The job, its part being this worker's now; None when it wants no help any more."""
    with transaction.atomic():
        return moves.started(order.job) if moves.take_shard(*order, worker) else None


def let_go(order: Order, worker: str, *, for_s: float) -> None:
    """Give up the hold of a helper whose child was killed, or died. The parent calls this."""
    try:
        persist(lambda: _leave(order, worker), for_s=for_s)
    except (DatabaseError, InterfaceError) as error:
        log.error("job %d, helper %d: left to the sweep, %s", order.job, order.shard, error)
    wake()


def _leave(order: Order, worker: str) -> bool:
    with transaction.atomic():  # on SQLite a transaction gets its turn sooner
        return moves.leave_shard(order.job, order.shard, worker)
