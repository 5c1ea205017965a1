"""The outbox: a lease that no worker took is a message to be on the wire, and is pushed again when lost.

The row is the record and Redis a wire: the same message may be pushed twice, its attempt number
makes the second one harmless.
"""

from __future__ import annotations

import logging
import re
import uuid
import zlib
from collections import defaultdict
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any, NamedTuple

import django_rq
import redis
from rq import Queue
from rq.job import Job as RQJob
from rq.job import JobStatus
from rq.utils import now, utcformat

from jobs import sql
from jobs.scheduling.wake import client

TASK = "jobs.running.tasks.run_job"
HELP = "jobs.running.shards.run_shard"
LOST_AFTER_S = 1.5  # no worker began it: its message is pushed again
TTL_S = 3600  # a message that nobody reads does not stay for ever
MESSAGE = re.compile(rb"job-(\d+)-(\d+)(?:-([1-9]\d*))?")
log = logging.getLogger(__name__)

# a lease that somebody else works on is left for the next time
OVERDUE = """
    UPDATE jobs_lease SET pushed_at = {now} WHERE id IN (
        SELECT id FROM jobs_lease
        WHERE worker = '' AND pushed_at < {later} AND expires_at > {now}
        ORDER BY id {skip})
    RETURNING job_id, attempt, queue, shard
"""


class Order(NamedTuple):
    """What a worker is asked for: an attempt of a job, or (shard above 0) help with one that runs."""

    job: int
    attempt: int
    shard: int = 0


class Message(NamedTuple):
    """What goes over the wire: an order, for a queue."""

    job: int
    attempt: int
    queue: str
    shard: int = 0


class Promoted(NamedTuple):
    """A job that was handed to its queue."""

    job: int
    attempt: int
    queue: str
    tenant: int
    workflow: uuid.UUID
    shard: int = 0


def message_id(job_pk: int, attempt: int, shard: int = 0) -> str:
    """The RQ id of one attempt, or of help with it."""
    return f"job-{job_pk}-{attempt}-{shard}" if shard else f"job-{job_pk}-{attempt}"


def read_id(raw: bytes) -> Order | None:
    """The order that an RQ id names; None for one that is not ours."""
    found = MESSAGE.fullmatch(raw)
    return Order(int(found[1]), int(found[2]), int(found[3] or 0)) if found else None


def push(promoted: Iterable[Message | Promoted]) -> None:
    """Put what was promoted on the wire, in one round trip. Without Redis the sweep does it later."""
    by_queue: dict[str, list[Message | Promoted]] = defaultdict(list)
    for each in promoted:
        by_queue[each.queue].append(each)
    if not by_queue:
        return
    try:
        with client().pipeline(transaction=False) as pipe:
            for name, jobs in by_queue.items():
                _enqueue(_queue(name), jobs, pipe)
            pipe.execute()
    except redis.RedisError as error:
        log.warning("Redis does not answer, promoted jobs wait in the database: %s", error)


def _queue(name: str) -> Queue:
    """The RQ queue over this process's own connection, which never waits long for Redis."""
    queue: Queue = django_rq.get_queue(name, connection=client())
    return queue


def _enqueue(queue: Queue, jobs: list[Message | Promoted], pipe: redis.client.Pipeline) -> None:
    """What RQ's `enqueue_many` writes, with all that is the same in every message made once."""
    at = utcformat(now())
    names = [message_id(each.job, each.attempt, each.shard) for each in jobs]
    pipe.sadd(queue.redis_queues_keys, queue.key)
    for each, name in zip(jobs, names, strict=True):
        args = (each.job, each.attempt, each.shard) if each.shard else (each.job, each.attempt)
        task = HELP if each.shard else TASK
        fields = {
            **_form(queue.name, task),
            "created_at": at,
            "enqueued_at": at,
            "description": name,
            "data": zlib.compress(queue.serializer.dumps((task, None, args, {}))),
        }
        pipe.hset(RQJob.key_for(name), mapping=fields)
    pipe.rpush(queue.key, *names)


@cache
def _form(queue_name: str, task: str) -> Mapping[str, Any]:
    """The fields of a message, as RQ writes them."""
    job = _queue(queue_name).create_job(
        task, result_ttl=TTL_S, failure_ttl=TTL_S, timeout=-1, status=JobStatus.QUEUED
    )
    return {**job.to_dict(), "status": JobStatus.QUEUED.value}


def push_overdue() -> int:
    """Push again what no worker began in time: its message was lost with Redis, or with a worker
    that swallowed it. Returns how many. Touches as many rows as there are leases."""
    rows = sql.rows(sql.text(OVERDUE), [-LOST_AFTER_S])
    overdue = [Message(*row) for row in rows]
    take_back(*overdue)
    push(overdue)
    return len(overdue)


def take_back(*messages: Message) -> None:
    """Remove the messages of leases that are over. Attempt and shard fence them too."""
    if not messages:
        return
    try:
        with client().pipeline(transaction=False) as pipe:
            for message in messages:
                name = message_id(message.job, message.attempt, message.shard)
                queue = _queue(message.queue)
                pipe.lrem(queue.key, 0, name)
                pipe.lrem(queue.intermediate_queue_key, 0, name)
                pipe.delete(RQJob.key_for(name))
            pipe.execute()
    except redis.RedisError as error:
        log.debug("nothing is taken back: %s", error)
