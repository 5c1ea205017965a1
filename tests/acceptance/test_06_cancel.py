"""Scenario 6: what is cancelled does not run, what runs is stopped."""

from __future__ import annotations

import time

from tests.client import Client, by_key, probe
from tests.conftest import Cast
from tests.stack import Stack


def keep_busy(stack: Stack, *clients: Client, seconds: float) -> None:
    """Give each client one running job."""
    for client in clients:
        client.submit([probe("busy", "main", seconds=seconds, ticks=10)])
    for client in clients:
        stack.wait_started(client, "busy")


def test_6_a_cancelled_waiting_job_never_starts_and_the_next_one_runs(
    stack: Stack, cast: Cast
) -> None:
    ann, bob, cyd, dan = cast("ann", "bob", "cyd", "dan")
    keep_busy(stack, ann, bob, cyd, seconds=2)
    made = dan.submit([probe("j1", "main"), probe("j2", "main")])
    first = by_key(made)["j1"]["id"]

    answer = dan.cancel(first)
    assert answer.status_code == 200
    assert answer.json()["state"] == "CANCELLED"
    assert answer.json()["reason"] == "cancelled_by_user"

    over = by_key(dan.wait(made["id"]))
    assert over["j1"]["state"] == "CANCELLED"
    assert over["j2"]["state"] == "SUCCEEDED"
    assert [span.key for span in stack.spans(dan)] == ["j2"]
    assert dan.cancel(first).status_code == 409


def test_6_a_running_job_ends_cancelled_within_two_seconds_of_its_next_tick(
    stack: Stack, cast: Cast
) -> None:
    (ann,) = cast("ann")
    made = ann.submit([probe("long", "main", seconds=20, ticks=40), probe("next", "main")])
    long_job = by_key(made)["long"]["id"]
    stack.wait_started(ann, "long")
    ann.wait_job(long_job, ["RUNNING"])

    asked = time.monotonic()
    answer = ann.cancel(long_job)
    assert answer.status_code == 200
    seen = ann.wait_job(long_job, ["CANCELLED", "SUCCEEDED", "FAILED"])
    took = time.monotonic() - asked

    assert seen["state"] == "CANCELLED"
    assert seen["artifacts"] == []
    assert took < 0.5 + 2.0  # a tick is half a second
    assert ann.cancel(long_job).status_code == 409
    assert by_key(ann.wait(made["id"]))["next"]["state"] == "SUCCEEDED"


def test_6_a_second_cancel_of_a_finished_job_changes_nothing(stack: Stack, cast: Cast) -> None:
    (ann,) = cast("ann")
    made = ann.submit([probe("done", "main")])
    done = by_key(ann.wait(made["id"]))["done"]
    answer = ann.cancel(done["id"])
    assert answer.status_code == 409
    assert answer.json()["detail"]
    assert ann.job(done["id"])["state"] == "SUCCEEDED"


def test_6_a_cancelled_workflow_cancels_all_its_jobs(stack: Stack, cast: Cast) -> None:
    (ann,) = cast("ann")
    jobs = [probe("a", "x", seconds=10, ticks=40), probe("b", "x"), probe("c", "y", after=["b"])]
    made = ann.submit(jobs)
    stack.wait_started(ann, "a")
    assert ann.post(f"/api/workflows/{made['id']}/cancel").status_code == 200
    over = ann.wait(made["id"], timeout_s=15)
    assert {job["state"] for job in over["jobs"]} == {"CANCELLED"}
    assert over["state"] == "CANCELLED"
    assert over["progress"] == 1.0
    assert ann.post(f"/api/workflows/{made['id']}/cancel").status_code == 409
