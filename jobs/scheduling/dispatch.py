"""The outbox: a QUEUED row without `dispatched_at` is pushed to RQ, and pushed again when lost.

The row is the record and Redis a wire: the same message may be pushed twice, its attempt number
makes the second one harmless.
"""

from __future__ import annotations

import datetime as dt
import logging

import django_rq
import redis
from django.db.models import Q
from django.utils import timezone
from rq import Queue
from rq.exceptions import DuplicateJobError, NoSuchJobError
from rq.job import Job as Message

from jobs.models import Job
from jobs.scheduling.wake import client
from jobs.states import JobState

TASK = "jobs.running.tasks.run_job"
LOST_AFTER = dt.timedelta(seconds=2)  # no worker began it: its message is pushed again
RESULT_TTL_S = 60
log = logging.getLogger(__name__)


def message_id(job_pk: int, attempt: int) -> str:
    """The RQ id of one attempt."""
    return f"job-{job_pk}-{attempt}"


def _queue(name: str) -> Queue:
    """The RQ queue over this process's own connection, which never waits long for Redis."""
    queue: Queue = django_rq.get_queue(name, connection=client())
    return queue


def dispatch_waiting() -> int:
    """Push every promoted job that is not on the wire. Returns how many went. Touches ≤ W rows."""
    queued = Job.objects.across_tenants("the outbox of all tenants").filter(
        state=JobState.QUEUED.value
    )
    old = timezone.now() - LOST_AFTER
    due = queued.filter(Q(dispatched_at=None) | Q(dispatched_at__lt=old)).order_by("queued_at")
    try:
        return sum(
            _push(job) for job in due.only("pk", "uuid", "key", "queue", "attempt", "dispatched_at")
        )
    except redis.RedisError as error:
        log.warning("Redis does not answer, promoted jobs wait in the database: %s", error)
        return 0


def _push(job: Job) -> bool:
    queue = _queue(job.queue)
    if job.dispatched_at is not None:
        # a worker that was stopped or cut off may have swallowed it; a second one is harmless
        take_back(job)
    try:
        queue.enqueue(
            TASK,
            args=(job.pk, job.attempt),
            job_id=message_id(job.pk, job.attempt),
            unique=True,
            result_ttl=RESULT_TTL_S,
            failure_ttl=RESULT_TTL_S,
            job_timeout=-1,
        )
    except DuplicateJobError:
        log.debug("%s attempt %d is on the wire already", job, job.attempt)
    Job.objects.across_tenants("the outbox of all tenants").filter(
        pk=job.pk, attempt=job.attempt, state=JobState.QUEUED.value
    ).update(dispatched_at=timezone.now())
    return True


def take_back(job: Job) -> None:
    """Remove the message of a job that goes back to its lane. Its attempt number fences it too."""
    try:
        queue = _queue(job.queue)
        message = Message.fetch(
            message_id(job.pk, job.attempt),
            connection=queue.connection,
            serializer=queue.serializer,
        )
        message.delete()
    except (NoSuchJobError, redis.RedisError) as error:
        log.debug("nothing to take back for %s: %s", job, error)
