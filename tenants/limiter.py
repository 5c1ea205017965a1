"""Who may ask now (R11): buckets in Redis, one round trip a request; in this process while it is away.

A Redis that does not answer costs one request in a few seconds a quarter of a second, no more.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any
from weakref import WeakKeyDictionary

import redis
import redis.asyncio
from django.conf import settings
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import NoBackoff
from redis.retry import Retry

from tenants.limits import Bucket, LocalBuckets, Rate, Refusal

PREFIX = "labsched:rate:"
REFUSED = "labsched:rate-limited"
OTHER = "other"
CHARGED = "labsched.charged"
"""Where the scope of a request names the tenant whose bucket was charged at the door."""
LABELS = 1000
"""Tenants whose refusals are counted apart; the counts of the rest are added up."""
TIMEOUT_S = 0.25
PAUSE_S = 5.0
"""A Redis that failed is not asked again for so long."""
CONNECTIONS = 16
BUSY = "No connection available."
"""What a pool says whose connections are all in use."""

# KEYS: a bucket each. ARGV: token and span of each in µs, its label; then label and count of
# refusals that could not be told before. All buckets give a token, or none does.
TAKE = f"""
local function count(label, by)
  if not redis.call('ZSCORE', '{REFUSED}', label) and redis.call('ZCARD', '{REFUSED}') >= {LABELS} then
    local least = redis.call('ZPOPMIN', '{REFUSED}')
    redis.call('ZINCRBY', '{REFUSED}', least[2], '{OTHER}')
  end
  redis.call('ZINCRBY', '{REFUSED}', by, label)
end
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000000 + tonumber(time[2])
local taken, refuser, wait = {{}}, 0, 0
for i, key in ipairs(KEYS) do
  local token, span = tonumber(ARGV[3 * i - 2]), tonumber(ARGV[3 * i - 1])
  local full_at = tonumber(redis.call('GET', key) or '0')
  taken[i] = math.min(math.max(full_at, now), now + span) + token
  local over = taken[i] - now - span
  if over > 0.5 and refuser == 0 then refuser, wait = i, math.ceil(over) end
end
for i = 3 * #KEYS + 1, #ARGV, 2 do count(ARGV[i], ARGV[i + 1]) end
if refuser > 0 then
  count(ARGV[3 * refuser], 1)
  return {{refuser, wait}}
end
for i, key in ipairs(KEYS) do
  local ms = math.ceil((taken[i] - now) / 1000)
  redis.call('SET', key, string.format('%.17g', taken[i]), 'PX', math.max(1, ms))
end
return {{0, 0}}
"""

log = logging.getLogger(__name__)


# --- whose buckets -----------------------------------------------------------------------


def tenant_bucket(key: str) -> list[Bucket]:
    """The bucket of a tenant; none where the limit is off."""
    return _bucket("t:" + key, settings.RATE_LIMIT_PER_S, key, "You send")


def address_bucket(address: str) -> list[Bucket]:
    """The bucket of a client's address; none where the limit is off."""
    per_s = settings.RATE_LIMIT_ADDRESS_PER_S
    return _bucket("a:" + network_of(address), per_s, OTHER, "Your address sends")


def _bucket(name: str, per_s: float, label: str, who: str) -> list[Bucket]:
    if not per_s:
        return []
    return [Bucket(name, Rate(per_s), label, f"{who} more than {per_s:g} requests a second")]


def network_of(address: str) -> str:
    """What counts as one address: of IPv6 the network, because a client owns all of it."""
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address[:64] or "unknown"
    if isinstance(parsed, ipaddress.IPv4Address):
        return str(parsed)
    if parsed.ipv4_mapped is not None:
        return str(parsed.ipv4_mapped)
    return str(ipaddress.ip_network((parsed, 64), strict=False).network_address)


# --- taking tokens -----------------------------------------------------------------------


class Limiter:
    """Takes tokens in Redis, and in this process while Redis does not answer."""

    def __init__(self, url: str, *, pause_s: float = PAUSE_S) -> None:
        self.url = url
        self.pause_s = pause_s
        self.local = LocalBuckets()
        self._ask_again_at = 0.0  # in time.monotonic(); 0 while Redis answers
        self._untold: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._redis = redis.Redis.from_pool(
            redis.BlockingConnectionPool.from_url(url, retry=Retry(NoBackoff(), 0), **_options())
        )
        self._script = self._redis.register_script(TAKE)
        # a connection of asyncio belongs to its loop
        self._of_loop: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()

    def take(self, buckets: Sequence[Bucket]) -> Refusal | None:
        """Take a token from each bucket, or from none: then the refusal says which had none."""
        if not buckets:
            return None
        if not self._may_ask():
            return self._take_here(buckets)
        untold = self._take_untold()
        try:
            answer = self._script(_keys(buckets), _arguments(buckets, untold))
        except (redis.RedisError, OSError) as error:
            return self._failed(error, buckets, untold)
        return self._answered(answer, buckets)

    async def take_async(self, buckets: Sequence[Bucket]) -> Refusal | None:
        """`take` for code that runs in an event loop."""
        if not buckets:
            return None
        if not self._may_ask():
            return self._take_here(buckets)
        untold = self._take_untold()
        try:
            answer = await self._async_script()(_keys(buckets), _arguments(buckets, untold))
        except (redis.RedisError, OSError) as error:
            return self._failed(error, buckets, untold)
        return self._answered(answer, buckets)

    def refusals(self) -> dict[str, float]:
        """How many requests of each tenant were refused; OTHER are unknown ones. {} without Redis."""
        if not self._may_ask():
            return {}
        try:
            found: Any = self._redis.zrange(REFUSED, 0, -1, withscores=True)
        except (redis.RedisError, OSError) as error:
            self._pause(error)
            return {}
        self._ask_again_at = 0.0
        return {label.decode(): count for label, count in found}

    async def close_async(self) -> None:
        """Close the connections of the running loop."""
        found = self._of_loop.pop(_loop(), None)
        if found is not None:
            await found.registered_client.aclose()

    def close(self) -> None:
        self._redis.close()
        self._redis.connection_pool.disconnect()

    # --- whether Redis answers -----------------------------------------------------------

    def _may_ask(self) -> bool:
        """While Redis is away, one request in `pause_s` finds out whether it is back."""
        if not self._ask_again_at:
            return True
        with self._lock:
            if time.monotonic() < self._ask_again_at:
                return False
            self._ask_again_at = time.monotonic() + self.pause_s
            return True

    def _failed(
        self, error: Exception, buckets: Sequence[Bucket], untold: Counter[str]
    ) -> Refusal | None:
        self._pause(error)
        with self._lock:
            self._untold.update(untold)
        return self._take_here(buckets)

    def _pause(self, error: Exception) -> None:
        if str(error) == BUSY:  # it is us who are slow: that says nothing about Redis
            return
        if not self._ask_again_at:
            log.warning("rate limits are held by this process alone, without Redis: %s", error)
        self._ask_again_at = time.monotonic() + self.pause_s

    def _answered(self, answer: Sequence[int], buckets: Sequence[Bucket]) -> Refusal | None:
        if self._ask_again_at:
            log.info("rate limits are shared again: Redis answers")
            self._ask_again_at = 0.0
        refuser, wait_us = answer
        return Refusal(buckets[refuser - 1], wait_us / 1e6) if refuser else None

    def _take_here(self, buckets: Sequence[Bucket]) -> Refusal | None:
        refusal = self.local.take(buckets, time.monotonic())
        if refusal is not None:
            with self._lock:
                label = refusal.bucket.label
                known = label in self._untold or len(self._untold) < LABELS
                self._untold[label if known else OTHER] += 1
        return refusal

    def _take_untold(self) -> Counter[str]:
        """Refusals that Redis has not heard of, to be told with the next question."""
        if not self._untold:
            return Counter()
        with self._lock:
            untold, self._untold = self._untold, Counter()
        return untold

    def _async_script(self) -> Any:
        script = self._of_loop.get(_loop())
        if script is None:
            pool = redis.asyncio.BlockingConnectionPool.from_url(
                self.url, retry=AsyncRetry(NoBackoff(), 0), **_options()
            )
            script = redis.asyncio.Redis.from_pool(pool).register_script(TAKE)
            self._of_loop[_loop()] = script
        return script


def _options() -> dict[str, Any]:
    return {
        "max_connections": CONNECTIONS,
        "timeout": TIMEOUT_S,
        "socket_connect_timeout": TIMEOUT_S,
        "socket_timeout": TIMEOUT_S,
    }


def _loop() -> Any:
    return asyncio.get_running_loop()


def _keys(buckets: Sequence[Bucket]) -> list[str]:
    return [PREFIX + bucket.name for bucket in buckets]


def _arguments(buckets: Sequence[Bucket], untold: Counter[str]) -> list[str | float]:
    arguments: list[str | float] = []
    for bucket in buckets:
        arguments += [bucket.rate.token_s * 1e6, bucket.rate.span_s * 1e6, bucket.label]
    for label, count in untold.items():
        arguments += [label, count]
    return arguments


def charge(request: Any, tenant: str) -> Refusal | None:
    """Charge the bucket of the tenant that this Django request turned out to come from, once."""
    return limiter().take(_uncharged(getattr(request, "scope", {}), tenant))


async def charge_socket(scope: Mapping[str, Any], tenant: str) -> Refusal | None:
    """`charge` for a websocket that is about to open."""
    return await limiter().take_async(_uncharged(scope, tenant))


def _uncharged(scope: Mapping[str, Any], tenant: str) -> list[Bucket]:
    return [] if scope.get(CHARGED) == tenant else tenant_bucket(tenant)


@cache
def limiter() -> Limiter:
    """The limiter of this process."""
    return Limiter(settings.REDIS_URL)
