"""The arithmetic of rate limits: token buckets, and a bounded table of them in this process. Pure.

A bucket is one number: the moment at which it will be full again. A bucket that is full again is
forgotten, so a table holds only who asked within the last few seconds.
"""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

BURST_S = 2.0
"""A full bucket holds what the rate gives in this time."""
MOST_BUCKETS = 10_000
"""Buckets that a process keeps; whoever else comes while all are in use shares one."""
SHARED = "shared"


@dataclass(frozen=True)
class Rate:
    """So many requests a second in the long run, and at most `burst` at once."""

    per_s: float

    @property
    def burst(self) -> float:
        return max(1.0, BURST_S * self.per_s)

    @property
    def token_s(self) -> float:
        """Seconds in which one token comes back."""
        return 1.0 / self.per_s

    @property
    def span_s(self) -> float:
        """Seconds in which an empty bucket becomes full."""
        return self.burst * self.token_s


@dataclass(frozen=True)
class Bucket:
    """Whose requests are counted, how fast they may come, and what a refusal says and counts as."""

    name: str
    rate: Rate
    label: str
    sentence: str


@dataclass(frozen=True)
class Refusal:
    """A request that came too soon."""

    bucket: Bucket
    wait_s: float

    @property
    def retry_after(self) -> int:
        """Whole seconds until it is worth coming back, at least one."""
        return max(1, math.ceil(self.wait_s))

    @property
    def sentence(self) -> str:
        return f"{self.bucket.sentence}: try again in {self.retry_after} s."


def take(full_at: float, now: float, rate: Rate) -> tuple[float, float]:
    """Take one token from a bucket that will be full at `full_at`.

    returns   (when it will be full then, seconds to wait): the wait is 0 when there was a token,
              else nothing was taken
    """
    # never emptier than empty: a clock that was set back locks nobody out
    level_at = min(max(full_at, now), now + rate.span_s)
    taken = level_at + rate.token_s
    wait_s = taken - now - rate.span_s
    if wait_s > 1e-9:
        return level_at, wait_s
    return taken, 0.0


class LocalBuckets:
    """Buckets of this process, at most `most`; safe to use from several threads."""

    def __init__(self, most: int = MOST_BUCKETS) -> None:
        self.most = most
        self._full_at: OrderedDict[str, float] = OrderedDict()  # least recently used first
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._full_at)

    def take(self, buckets: Sequence[Bucket], now: float) -> Refusal | None:
        """Take a token from each bucket, or from none when one of them has none left."""
        with self._lock:
            taken: dict[str, float] = {}
            for bucket in buckets:
                name = self._name_of(bucket, now)
                taken[name], wait_s = take(self._full_at.get(name, now), now, bucket.rate)
                if wait_s:
                    return Refusal(bucket, wait_s)
            for name, full_at in taken.items():
                self._full_at[name] = full_at
                self._full_at.move_to_end(name)
        return None

    def _name_of(self, bucket: Bucket, now: float) -> str:
        """Where `bucket` is kept: under its own name while there is room."""
        if bucket.name in self._full_at or len(self._full_at) < self.most:
            return bucket.name
        oldest, full_at = next(iter(self._full_at.items()))
        if full_at <= now:
            del self._full_at[oldest]
            return bucket.name
        # never a fresh budget for an invented id: they share what is left
        return f"{SHARED}:{bucket.name[:1]}"
