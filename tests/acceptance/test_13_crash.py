"""Scenario 13: every process of the stack is killed at once, and nothing is lost."""

from __future__ import annotations

import time

from tests import probelog
from tests.acceptance.conftest import LEASE_S
from tests.client import by_key, probe, states, until
from tests.conftest import Cast
from tests.stack import Stack


def test_13_after_kill_9_running_jobs_run_again_and_waiting_ones_in_order(private: Stack) -> None:
    (ann, bob) = Cast(private)("ann", "bob")
    before = ann.submit([probe("finished", "old")])
    finished = ann.wait(before["id"])
    waiting = [probe(f"w{n}", "w", seconds=0.1) for n in range(10)]
    running = [probe("r1", "w", seconds=8, ticks=40), probe("r2", "r", seconds=8, ticks=40)]
    made = ann.submit([*running, *waiting])
    for key in ("r1", "r2"):
        private.wait_started(ann, key)

    private.kill_all()
    private.start()
    restarted = time.monotonic()

    def both_again() -> bool:
        return {s.key for s in private.spans(ann) if s.attempt == 2} >= {"r1", "r2"}

    until(both_again, timeout_s=LEASE_S + 5, what="r1 and r2 run again", every_s=0.05)
    assert time.monotonic() - restarted <= LEASE_S + 5

    over = ann.wait(made["id"], timeout_s=60)
    assert set(states(over).values()) == {"SUCCEEDED"}
    _check_order(private.spans(ann))
    assert ann.workflow(before["id"]) == finished, "what was over is as it was"
    assert bob.wait(bob.submit([probe("after", "x")])["id"])["state"] == "SUCCEEDED"
    until(private.idle, timeout_s=10, what="no active user")


def _check_order(spans: list[probelog.Span]) -> None:
    """After the restart: each waiting job ran once, in order, behind the one that runs again."""
    lane = [
        span for span in spans if span.branch == "w" and (span.attempt == 2 or span.key != "r1")
    ]
    assert [span.key for span in lane] == ["r1", *(f"w{n}" for n in range(10))]
    probelog.check_lanes(lane)


def test_13_a_restart_with_only_the_workers_killed_needs_nothing_else(private: Stack) -> None:
    (ann,) = Cast(private)("ann")
    made = ann.submit([probe("r", "x", seconds=4, ticks=20), probe("next", "x")])
    private.wait_started(ann, "r")
    for worker in private.workers():
        worker.kill()
    private.start()
    over = ann.wait(made["id"], timeout_s=LEASE_S + 40)
    assert states(over) == {"r": "SUCCEEDED", "next": "SUCCEEDED"}
    assert by_key(over)["r"]["attempt"] == 2
