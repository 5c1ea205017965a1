"""The wake-up of schedulers: a Redis list, and on PostgreSQL a notification with the commit itself.

A lost wake costs at most one sweep.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from functools import cache

import psycopg
import redis
from django.conf import settings
from django.db import connection
from redis.backoff import NoBackoff
from redis.retry import Retry

KEY = "labsched:wake"
CHANNEL = "labsched_wake"
ANSWER_S = 0.5  # a Redis that hangs must not hold up a request or a worker
MUTE_S = 1.0  # how long one that did is not asked again: the sweep comes as often
MANY = 100
LISTEN_S = 1.0  # one wait for a wake, after which a listener looks whether it is to end
AGAIN_S = 1.0
log = logging.getLogger(__name__)


@cache
def client() -> redis.Redis:
    """The process's own connection pool; short timeouts, so that a dead Redis delays nobody."""
    return _connect(ANSWER_S)


@cache
def _listening() -> redis.Redis:
    """The same for the wait, which blocks on the socket."""
    return _connect(LISTEN_S + ANSWER_S)


def _connect(answer_s: float) -> redis.Redis:
    return redis.Redis.from_url(
        settings.REDIS_URL,
        socket_connect_timeout=ANSWER_S,
        socket_timeout=answer_s,
        retry=Retry(NoBackoff(), 0),  # the default tries a refused command for 8 s
    )


def by_database() -> bool:
    """Whether the database itself carries the wake-up, with the commit that it is about."""
    return connection.vendor == "postgresql" and not settings.DATABASE_POOLED


def notify() -> None:
    """Ask for a pass when this transaction commits, where the database can; at once outside one."""
    if by_database():
        with connection.cursor() as cursor:
            cursor.execute(f"NOTIFY {CHANNEL}")


_mute = {"until": 0.0}


def wake() -> None:
    """Ask for a pass now, by Redis. Never raises: the sweep comes anyway."""
    if time.monotonic() < _mute["until"]:
        return
    try:
        if int(client().lpush(KEY, b"1")) > MANY:  # type: ignore[arg-type]
            client().ltrim(KEY, 0, 0)  # nobody listens; one wake is as good as many
    except redis.RedisError as error:
        _mute["until"] = time.monotonic() + MUTE_S
        log.warning("no wake-up was sent, the next sweep finds the work: %s", error)


class Alarm:
    """A scheduler's ear: one thread listens to Redis and, on PostgreSQL, another to the database."""

    def __init__(self) -> None:
        self._rung = threading.Event()
        self._closed = False
        self._threads = [threading.Thread(target=self._hear_redis, name="wake", daemon=True)]
        if connection.vendor == "postgresql":
            hear = threading.Thread(target=self._hear_database, name="notify", daemon=True)
            self._threads.append(hear)

    def start(self) -> None:
        """Begin to listen."""
        for thread in self._threads:
            thread.start()

    def wait(self, timeout_s: float) -> None:
        """Sleep until a wake came since the last call, or for `timeout_s`."""
        self._rung.wait(timeout_s)
        self._rung.clear()

    def ring(self) -> None:
        """End the wait that is under way. Not for a signal handler: it takes a lock."""
        self._rung.set()

    def close(self) -> None:
        """Let the threads end by themselves."""
        self._closed = True

    def _hear_redis(self) -> None:
        while not self._closed:
            try:
                # they all ask for the same pass; one that comes after this asks for another
                if _listening().blmpop(LISTEN_S, 1, KEY, direction="LEFT", count=2 * MANY):
                    self._rung.set()
            except redis.ResponseError as error:
                log.error(
                    "Redis refuses BLMPOP, which versions from 7 on have and this account must be "
                    "allowed; passes come with each sweep: %s",
                    error,
                )
                time.sleep(AGAIN_S)
            except redis.RedisError as error:
                log.warning("Redis does not answer, passes come with each sweep: %s", error)
                time.sleep(AGAIN_S)

    def _hear_database(self) -> None:
        while not self._closed:
            try:
                self._listen()
            except psycopg.Error as error:
                log.warning("the database sends no wake-ups, listening again: %s", error)
                time.sleep(AGAIN_S)

    def _listen(self) -> None:
        parameters = connection.get_connection_params()
        parameters = {
            name: value
            for name, value in parameters.items()
            if name not in ("cursor_factory", "context", "prepare_threshold")
        }
        name = f"labsched wake {os.getpid()}"
        with psycopg.connect(
            **{**parameters, "application_name": name}, autocommit=True
        ) as listener:
            listener.execute(f"LISTEN {CHANNEL}")
            self._rung.set()  # what came while nobody listened
            while not self._closed:
                for _ in listener.notifies(timeout=LISTEN_S, stop_after=1):
                    self._rung.set()
