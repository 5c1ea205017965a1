"""Two schedulers run, one decides at a time; either may die."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator

import pytest

from tests import probelog
from tests.client import Client, Row, lane
from tests.conftest import Cast
from tests.stack import Stack


@pytest.fixture
def stack(probe_stack: Stack) -> Iterator[Stack]:
    """A stack with the default lease: on SQLite a stopped scheduler may hold the write lock.

    With the short leases of this folder two seconds of that rightly cost a worker its lease.
    """
    probe_stack.start()
    yield probe_stack
    probe_stack.start()
    probe_stack.settle()


@pytest.fixture
def with_second(stack: Stack) -> Iterator[Stack]:
    second = stack.start_scheduler("scheduler-2")
    time.sleep(4)  # it is up and sweeping
    assert second.alive, second.tail()
    yield stack
    second.stop()
    del stack.processes["scheduler-2"]


def submit_for(clients: list[Client]) -> list[tuple[Client, Row]]:
    return [
        (client, client.submit([job for n in range(2) for job in lane(f"b{n}", 4, seconds=0.2)]))
        for client in clients
    ]


def check(stack: Stack, submitted: list[tuple[Client, Row]]) -> None:
    for client, made in submitted:
        assert client.wait(made["id"], timeout_s=60)["state"] == "SUCCEEDED"
    spans = stack.spans(*(client for client, _ in submitted))
    assert len(spans) == 8 * len(submitted), "each job starts once"
    probelog.check_lanes(spans)
    assert probelog.most_at_once(spans, by=lambda span: span.tenant) <= 3
    assert probelog.most_at_once(spans, by=lambda span: span.job) <= 4


def test_with_two_schedulers_every_rule_holds(with_second: Stack, cast: Cast) -> None:
    check(with_second, submit_for(cast("a", "b", "c", "d")))


def test_when_one_of_two_is_killed_or_stands_still_the_other_goes_on(
    with_second: Stack, cast: Cast
) -> None:
    submitted = submit_for(cast("a", "b", "c", "d"))
    time.sleep(0.5)
    with_second.processes["scheduler"].kill()
    check(with_second, submitted)


def test_a_scheduler_that_stood_still_does_no_harm_when_it_wakes(
    with_second: Stack, cast: Cast
) -> None:
    submitted = submit_for(cast("a", "b", "c", "d"))
    time.sleep(0.5)
    first = with_second.processes["scheduler"]
    first.send(signal.SIGSTOP)
    time.sleep(2)
    first.send(signal.SIGCONT)
    check(with_second, submitted)
