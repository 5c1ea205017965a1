"""What RQ's pages are shown, and the blocking pop. Redis may be away at any moment: only the pop says so.

RQ keeps no record that matters: retries, time-outs and recovery rest on the database.
"""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Callable

import redis
from django.conf import settings
from django_rq import get_queue
from redis.backoff import NoBackoff
from redis.retry import Retry
from rq import Queue, worker_registration
from rq.executions import Execution, ExecutionRegistry
from rq.job import Job as Message
from rq.utils import now, utcformat
from rq.version import VERSION

from jobs.scheduling import dispatch

# One wait of an idle worker. Short, because Redis hands the next message to whoever has waited
# longest, also to a worker that was stopped or cut off meanwhile.
POP_S = 1
ANSWER_S = 2.0  # a Redis that does not answer in time must not hold up a worker
SHOWN_S = 60  # how long a worker or a running job stays on RQ's pages without a sign of life
SIGN_S = 20.0  # between two signs of life for RQ's pages
log = logging.getLogger(__name__)


def connect(*, answer_s: float) -> redis.Redis:
    """A client that fails at once instead of retrying: its callers know when to try again."""
    return redis.Redis.from_url(
        settings.REDIS_URL,
        socket_connect_timeout=ANSWER_S,
        socket_timeout=answer_s,
        retry=Retry(NoBackoff(), 0),
    )


def _about(queue_name: str) -> dict[str, str]:
    """What RQ's pages show of a worker."""
    return {
        "birth": utcformat(now()),
        "queues": queue_name,
        "pid": str(os.getpid()),
        "hostname": socket.gethostname(),
        "ip_address": "",
        "version": VERSION,
        "python_version": "",
    }


class Wire:
    """One worker's side of RQ: pops its queue, and shows itself and its job on RQ's pages."""

    def __init__(self, worker: str, queue_name: str, *, hash_key: str) -> None:
        self.worker = worker
        self.hash_key = hash_key
        self.about = _about(queue_name)
        self._popping = connect(answer_s=POP_S + ANSWER_S)
        self._showing = connect(answer_s=ANSWER_S)
        self.queue: Queue = get_queue(queue_name, connection=self._showing)
        self._popped: bytes | None = None  # the id of the message that was taken
        self._message: Message | None = None  # the same, once it is shown
        self._execution: Execution | None = None
        self._sign_due = 0.0

    @property
    def connection(self) -> redis.Redis:
        """The client for short commands."""
        return self._showing

    def pop(self) -> dispatch.Order | None:
        """The next order, None when none came in POP_S. Raises RedisError.

        In the same round trip the last one is taken off the wire.
        """
        with self._popping.pipeline(transaction=False) as pipe:
            self._put_over(pipe)
            if time.monotonic() >= self._sign_due:
                self._put_sign_of_life(pipe)
            pipe.blmove(self.queue.key, self.queue.intermediate_queue_key, POP_S, "LEFT", "RIGHT")
            # a refused word for RQ's pages must not lose the message that came with it
            *_, raw = pipe.execute(raise_on_error=False)
        if isinstance(raw, redis.RedisError):
            raise raw
        self._popped = self._message = self._execution = None
        return self._read(raw) if isinstance(raw, bytes) else None

    def _read(self, raw: bytes) -> dispatch.Order | None:
        """What a message asks for: its id says it all. One that is not ours is dropped."""
        self._popped = raw
        order = dispatch.read_id(raw)
        if order is None:
            log.warning("%s dropped the message %r: it is not of a job", self.worker, raw)
            self.show_over()
        return order

    # --- shown on RQ's pages; never raises -----------------------------------------------

    def show_running(self) -> None:
        """Show the popped job as this worker's, once; short jobs are over before that."""
        if self._message is None and self._popped is not None:
            try:
                self._message = Message.fetch(
                    self._popped.decode(),
                    connection=self._showing,
                    serializer=self.queue.serializer,
                )
            except Exception as error:  # RQ raises many kinds; the job runs on, unseen there
                log.debug("%s can not show %r: %s", self.worker, self._popped, error)
                return
            self._show(self._put_running)

    def show_still_running(self) -> None:
        """Keep a long job and its worker on the pages."""
        if time.monotonic() >= self._sign_due:
            self._show(self._put_still_running)

    def show_over(self) -> None:
        """Take the last job off the wire now, when no other is popped for a while."""
        if self._popped is not None and self._show(self._put_over):
            self._popped = self._message = self._execution = None

    def show_gone(self) -> None:
        """Take the worker off the pages."""
        self._show(self._put_gone)

    def _show(self, put: Callable[[redis.client.Pipeline], None]) -> bool:
        try:
            self._say(put)
        except redis.RedisError as error:
            log.warning("%s could not tell RQ's pages: %s", self.worker, error)
            return False
        return True

    def _say(self, put: Callable[[redis.client.Pipeline], None]) -> None:
        """Raises RedisError."""
        with self._showing.pipeline(transaction=False) as pipe:
            put(pipe)
            pipe.execute()

    def _put_running(self, pipe: redis.client.Pipeline) -> None:
        message = self._message
        if message is None:
            return
        pipe.lrem(self.queue.intermediate_queue_key, 1, message.id)
        self._execution = Execution.create(message, SHOWN_S, pipeline=pipe, worker_name=self.worker)
        message.prepare_for_execution(self.worker, pipeline=pipe)
        pipe.expire(message.key, SHOWN_S)  # a worker that dies leaves nothing behind for ever
        pipe.hset(self.hash_key, mapping={"state": "busy", "current_job": message.id})

    def _put_still_running(self, pipe: redis.client.Pipeline) -> None:
        self._put_sign_of_life(pipe)
        if self._message is not None and self._execution is not None:
            registry = self._message.started_job_registry
            self._execution.heartbeat(registry, SHOWN_S, pipeline=pipe)
            pipe.expire(self._message.key, SHOWN_S)

    def _put_over(self, pipe: redis.client.Pipeline) -> None:
        if self._popped is None:
            return
        pipe.lrem(self.queue.intermediate_queue_key, 1, self._popped)  # type: ignore[arg-type]
        pipe.delete(Message.redis_job_namespace_prefix.encode() + self._popped)
        if self._message is None:
            return
        if self._execution is not None:
            self._execution.delete(job=self._message, pipeline=pipe)
        pipe.delete(ExecutionRegistry.key_template.format(self._message.id))
        pipe.hset(self.hash_key, "state", "idle")
        pipe.hdel(self.hash_key, "current_job")

    def _put_gone(self, pipe: redis.client.Pipeline) -> None:
        pipe.srem(worker_registration.REDIS_WORKER_KEYS, self.hash_key)
        pipe.srem(worker_registration.WORKERS_BY_QUEUE_KEY % self.queue.name, self.hash_key)
        pipe.delete(self.hash_key)

    def _put_sign_of_life(self, pipe: redis.client.Pipeline) -> None:
        """The whole registration each time: a Redis that was emptied shows the worker again."""
        self._sign_due = time.monotonic() + SIGN_S
        pipe.hset(self.hash_key, mapping={**self.about, "last_heartbeat": utcformat(now())})
        pipe.expire(self.hash_key, SHOWN_S)
        pipe.sadd(worker_registration.REDIS_WORKER_KEYS, self.hash_key)
        pipe.sadd(worker_registration.WORKERS_BY_QUEUE_KEY % self.queue.name, self.hash_key)
