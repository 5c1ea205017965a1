"""Scenario 15: a tenant above its rate is held at it and nobody else notices, with and without Redis."""

from __future__ import annotations

import http.client
import re
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

import psutil
import pytest
import requests

from tests.client import Client, probe
from tests.conftest import Cast
from tests.stack import Stack

RATE = 20
ADDRESS_RATE = 30
SECONDS = 30
INVENTED = 10_000  # tests/tenants/test_limits.py invents 100,000 without the way through HTTP
CONNECTIONS = 4
GROWTH = 50 << 20


@pytest.fixture(scope="module")
def limited() -> Iterator[Stack]:
    """A stack of one worker with low limits."""
    limits = {"RATE_LIMIT_PER_S": RATE, "RATE_LIMIT_ADDRESS_PER_S": ADDRESS_RATE}
    with Stack(cpu_workers=1, settings=limits, pages=True) as stack:
        yield stack


@pytest.fixture(params=["with Redis", "without Redis"])
def bounded(limited: Stack, request: pytest.FixtureRequest) -> Iterator[Stack]:
    """The stack, once whole and once after its Redis was killed."""
    limited.start()
    if request.param == "without Redis":
        limited.processes["redis"].kill()
    time.sleep(2.5)  # every bucket is full again
    yield limited
    limited.start()


def paced(client: Client, per_s: float, seconds: float) -> list[requests.Response]:
    """What the client was answered while it asked at this pace, as well as it could."""
    answers, due = [], time.monotonic()
    end = due + seconds
    while due < end:
        time.sleep(max(0.0, due - time.monotonic()))
        answers.append(client.get("/api/jobs?page_size=1"))
        due += 1 / per_s
    return answers


@pytest.mark.slow
def test_15_twice_the_rate_is_held_at_the_rate(bounded: Stack) -> None:
    ann, bob = Cast(bounded)("ann", "bob")
    pool = ThreadPoolExecutor(5)
    fast = [pool.submit(paced, Client(bounded.url, ann.user), RATE / 2, SECONDS) for _ in range(4)]
    slow = pool.submit(paced, bob, 1, SECONDS)
    answers = [answer for each in fast for answer in each.result()]
    pool.shutdown()
    accepted = [answer for answer in answers if answer.status_code == 200]
    refused = [answer for answer in answers if answer.status_code == 429]
    assert len(accepted) + len(refused) == len(answers) >= 1.8 * RATE * SECONDS
    assert len(accepted) == pytest.approx(RATE * SECONDS, rel=0.1)
    assert all(int(answer.headers["Retry-After"]) >= 1 for answer in refused)
    assert "more than 20 requests a second" in refused[0].json()["detail"]
    assert {answer.status_code for answer in slow.result()} == {200}
    bounded.start()  # refusals are counted in Redis: those of before its return are told, too
    time.sleep(5.5)
    bob.get("/api/jobs")
    assert counted(bounded, ann.user) == len(refused)


def counted(stack: Stack, user: str) -> float:
    """What /metrics says of a user's refusals."""
    text = requests.get(f"{stack.url}/metrics", timeout=30).text
    found = re.search(rf'^scheduler_rate_limited_total{{user_id="{user}"}} (\S+)$', text, re.M)
    return float(found[1]) if found else 0.0


@pytest.mark.slow
def test_15_invented_ids_cost_no_memory(bounded: Stack) -> None:
    (ann,) = Cast(bounded)("ann")
    made = ann.submit([probe("a", "x")])
    web = psutil.Process(bounded.processes["web"].pid)
    invent(bounded, "warm", 2000)
    before = web.memory_info().rss
    began = time.monotonic()
    statuses = invent(bounded, "invented", INVENTED)
    most = ADDRESS_RATE * (time.monotonic() - began + 2)
    grown = web.memory_info().rss - before
    assert set(statuses) <= {200, 429}
    assert statuses[200] <= 1.1 * most, "fresh ids have no fresh budget"
    assert grown < GROWTH, f"{grown >> 20} MiB"
    time.sleep(2)
    assert ann.workflow(made["id"])["name"] == made["name"]
    known = "from tenants.models import Tenant; print('KNOWN', Tenant.objects.filter(key__contains='invented').count())"
    assert "KNOWN 0" in bounded.manage("shell", "--verbosity", "0", "-c", known)


def invent(stack: Stack, name: str, count: int) -> dict[int, int]:
    """How often each status was answered to `count` requests, each by a new id."""
    seen: dict[int, int] = {}
    lock = threading.Lock()

    def ask(part: int) -> None:
        link = http.client.HTTPConnection(urlsplit(stack.url).netloc, timeout=30)
        for number in range(part, count, CONNECTIONS):
            link.request("GET", "/api/jobs", headers={"X-User-ID": f"{name}-{number}"})
            answer = link.getresponse()
            answer.read()
            with lock:
                seen[answer.status] = seen.get(answer.status, 0) + 1
        link.close()

    with ThreadPoolExecutor(CONNECTIONS) as pool:
        list(pool.map(ask, range(CONNECTIONS)))
    return seen


def test_15_a_page_reloads_five_times_with_all_that_is_on_it(bounded: Stack) -> None:
    (ann,) = Cast(bounded)("ann")
    for _ in range(5):
        page = ann.get("/")
        assert page.status_code == 200
        files = set(re.findall(r'(?:src|href)="(/static/[^"]+)"', page.text))
        assert len(files) >= 2
        assert {ann.get(path).status_code for path in files} == {200}
        assert ann.get("/api/workflows").status_code == 200


def test_15_a_redis_that_hangs_slows_nobody_by_seconds(limited: Stack) -> None:
    limited.start()
    (ann,) = Cast(limited)("ann")
    ann.get("/api/jobs")
    limited.processes["redis"].send(signal.SIGSTOP)
    try:
        took = []
        for _ in range(60):
            began = time.monotonic()
            assert ann.get("/api/jobs").status_code in (200, 429)
            took.append(time.monotonic() - began)
            time.sleep(0.1)
    finally:
        limited.processes["redis"].send(signal.SIGCONT)
    assert max(took) < 1.5, sorted(took)[-5:]
    assert sorted(took)[30] < 0.2
