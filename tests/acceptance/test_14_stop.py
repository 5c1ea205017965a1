"""Scenario 14: SIGTERM ends every process soon, and a job under way is finished or handed back."""

from __future__ import annotations

import signal

from tests.client import probe, states
from tests.conftest import Cast
from tests.stack import Stack

EXIT_WITHIN_S = 15


def test_14_sigterm_to_the_whole_stack_loses_no_job(private: Stack) -> None:
    (ann,) = Cast(private)("ann")
    made = ann.submit([probe("two", "x", seconds=2, ticks=4), probe("next", "x")])
    private.wait_started(ann, "two")

    took = private.stop_all(timeout_s=30)
    assert max(took.values()) < EXIT_WITHIN_S, took

    private.start()
    over = ann.wait(made["id"], timeout_s=60)
    assert states(over) == {"two": "SUCCEEDED", "next": "SUCCEEDED"}
    ends = [span.key for span in private.spans(ann) if span.ok]
    assert ends == ["two", "next"], "each body ran to its end once"


def test_14_a_long_job_is_handed_back_free_of_charge(private: Stack) -> None:
    (ann,) = Cast(private)("ann")
    made = ann.submit([probe("long", "x", seconds=25, ticks=100)])
    private.wait_started(ann, "long")
    workers = private.workers()
    for worker in workers:
        worker.send(signal.SIGTERM)
    took = [worker.stop(timeout_s=30) for worker in workers]
    assert max(took) < EXIT_WITHIN_S
    seen = ann.wait_job(made["jobs"][0]["id"], ["PENDING"], timeout_s=5)
    assert seen["attempt"] == 1
    assert not seen["error"]
    assert ann.cancel(seen["id"]).status_code == 200
    private.start()
    assert ann.wait(ann.submit([probe("again", "y")])["id"])["state"] == "SUCCEEDED"
