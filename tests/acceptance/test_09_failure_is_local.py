"""Scenario 9: a failed job harms its dependents only, or its branch where the submission says so."""

from __future__ import annotations

from tests.client import by_key, probe, states
from tests.conftest import Cast
from tests.stack import Stack


def test_9_by_default_the_branch_goes_on_after_a_failure(stack: Stack, cast: Cast) -> None:
    (ann,) = cast("ann")
    jobs = [probe("bad", "x", fail="error"), probe("ok", "x"), probe("other", "y")]
    over = ann.wait(ann.submit(jobs)["id"])
    assert states(over) == {"bad": "FAILED", "ok": "SUCCEEDED", "other": "SUCCEEDED"}
    assert over["state"] == "FAILED"
    assert over["progress"] == 1.0
    bad = by_key(over)["bad"]
    assert bad["attempt"] == bad["max_attempts"] == 3
    assert bad["error"]
    assert "Traceback" not in bad["error"]
    assert bad["reason"] == "error"


def test_9_halt_cancels_the_later_jobs_of_the_branch_and_nothing_else(
    stack: Stack, cast: Cast
) -> None:
    (ann,) = cast("ann")
    jobs = [
        probe("bad", "x", fail="error"),
        probe("ok", "x"),
        probe("after", "z", after=["ok"]),
        probe("other", "y"),
    ]
    made = ann.submit(jobs, on_failure="halt")
    next_one = ann.submit([probe("next", "x")])
    over = ann.wait(made["id"])
    assert states(over) == {
        "bad": "FAILED",
        "ok": "CANCELLED",
        "after": "CANCELLED",
        "other": "SUCCEEDED",
    }
    assert by_key(over)["ok"]["reason"] == "branch_halted"
    assert over["state"] == "FAILED"
    assert over["progress"] == 1.0
    assert ann.wait(next_one["id"])["state"] == "SUCCEEDED", "another workflow's job of the branch"


def test_9_a_failure_that_passes_is_retried_and_the_branch_waits(stack: Stack, cast: Cast) -> None:
    (ann,) = cast("ann")
    made = ann.submit([probe("flaky", "x", fail="error", fail_attempts=1), probe("next", "x")])
    over = ann.wait(made["id"])
    assert states(over) == {"flaky": "SUCCEEDED", "next": "SUCCEEDED"}
    assert by_key(over)["flaky"]["attempt"] == 2
    assert [(s.key, s.attempt, s.ok) for s in stack.spans(ann)] == [
        ("flaky", 1, False),
        ("flaky", 2, True),
        ("next", 1, True),
    ]


def test_9_progress_ends_at_one_with_failed_and_cancelled_jobs(stack: Stack, cast: Cast) -> None:
    (ann,) = cast("ann")
    jobs = [
        probe("bad", "x", fail="exit"),
        probe("child", "y", after=["bad"]),
        probe("hold", "z", seconds=0.5),
        probe("gone", "z"),
    ]
    made = ann.submit(jobs)
    ann.cancel(by_key(made)["gone"]["id"])
    over = ann.wait(made["id"])
    assert over["progress"] == 1.0
    assert over["state"] == "FAILED"
    assert over["finished_at"]


def test_9_a_retry_by_hand_runs_what_failed_and_what_waited_for_it(
    stack: Stack, cast: Cast
) -> None:
    (ann,) = cast("ann")
    jobs = [probe("bad", "x", fail="error", fail_attempts=3), probe("child", "y", after=["bad"])]
    made = ann.submit(jobs)
    over = ann.wait(made["id"])
    assert states(over) == {"bad": "FAILED", "child": "CANCELLED"}
    answer = ann.post(f"/api/jobs/{by_key(over)['bad']['id']}/retry")
    assert answer.status_code == 200
    again = ann.wait(made["id"])
    assert states(again) == {"bad": "SUCCEEDED", "child": "SUCCEEDED"}
    assert again["state"] == "SUCCEEDED"
    assert by_key(again)["bad"]["attempt"] == 4
