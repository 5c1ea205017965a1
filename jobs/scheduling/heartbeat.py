"""When a scheduler last finished a pass: health reads it. It lives in Redis and may be lost."""

from __future__ import annotations

import datetime as dt

import redis
from django.utils import timezone

from jobs.scheduling import wake

KEY = "labsched:scheduler:last-pass"


def beat() -> None:
    """Note that a pass ended now."""
    try:
        wake.client().set(KEY, timezone.now().isoformat(), ex=60)
    except redis.RedisError:
        return  # health says itself that Redis is away


def last_pass() -> dt.datetime | None:
    """The end of the last pass of any scheduler; None when none is known. Raises RedisError."""
    value = wake.client().get(KEY)
    return dt.datetime.fromisoformat(value.decode()) if isinstance(value, bytes) else None
