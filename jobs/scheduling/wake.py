"""The wake-up of schedulers: one Redis list. A lost wake costs at most one sweep."""

from __future__ import annotations

import logging
import time
from functools import cache

import redis
from django.conf import settings
from redis.backoff import NoBackoff
from redis.retry import Retry

KEY = "labsched:wake"
SOCKET_TIMEOUT_S = 5.0  # above the longest sweep, because the wait blocks on the socket
log = logging.getLogger(__name__)


@cache
def client() -> redis.Redis:
    """The process's own connection pool; short timeouts, so that a dead Redis delays nobody."""
    return redis.Redis.from_url(
        settings.REDIS_URL,
        socket_connect_timeout=1,
        socket_timeout=SOCKET_TIMEOUT_S,
        retry=Retry(NoBackoff(), 0),  # the default tries a refused command for 8 s
    )


def wake() -> None:
    """Ask for a pass now. Never raises: the sweep comes anyway."""
    try:
        pipe = client().pipeline(transaction=False)
        pipe.lpush(KEY, b"1")
        pipe.ltrim(KEY, 0, 0)  # one wake is as good as many
        pipe.execute()
    except redis.RedisError as error:
        log.warning("no wake-up was sent, the next sweep finds the work: %s", error)


def wait(timeout_s: float) -> None:
    """Sleep until someone wakes the schedulers, or for `timeout_s`."""
    try:
        client().blpop([KEY], timeout=timeout_s)
    except redis.RedisError as error:
        log.warning("Redis does not answer, sweeping every %.1f s: %s", timeout_s, error)
        time.sleep(timeout_s)
