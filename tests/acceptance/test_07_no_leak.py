"""Scenario 7: cancelled jobs hold no user slot."""

from __future__ import annotations

from tests.client import Client, by_key, probe, until
from tests.conftest import Cast
from tests.stack import Stack


def runs_then_cancelled(stack: Stack, clients: list[Client], *, seconds: float = 1) -> None:
    """Each client runs a job, with a no-op behind it in the branch that is cancelled."""
    for client in clients:
        made = client.submit([probe("runs", "main", seconds=seconds), probe("noop", "main")])
        assert client.cancel(by_key(made)["noop"]["id"]).status_code == 200
    for client in clients:
        stack.wait_started(client, "runs")


def last_end(stack: Stack, clients: list[Client]) -> float:
    """The moment the last of these users' jobs ended, waiting for it."""

    def all_ended() -> list[float]:
        ends = [span.end for span in stack.spans(*clients)]
        return [] if None in ends else [end for end in ends if end is not None]

    return max(until(all_ended, timeout_s=20, what="the running jobs end", every_s=0.02))


def test_7_a_slot_held_only_by_a_cancelled_job_goes_to_the_next_user(
    stack: Stack, cast: Cast
) -> None:
    *three, dan = cast("ann", "bob", "cyd", "dan")
    runs_then_cancelled(stack, three)
    made = dan.submit([probe("noop", "main")])
    over = last_end(stack, three)
    assert dan.wait(made["id"], every_s=0.05)["state"] == "SUCCEEDED"
    (span,) = stack.spans(dan)
    assert span.end is not None
    assert span.end - over < 1.0
    assert [s.key for s in stack.spans(*three)] == ["runs"] * 3
    until(lambda: dan.dashboard()["active_users"] == 0, timeout_s=5, what="no active user")


def test_7_a_user_who_cancels_his_only_waiting_job_holds_nothing(stack: Stack, cast: Cast) -> None:
    *three, dan, eve = cast("ann", "bob", "cyd", "dan", "eve")
    runs_then_cancelled(stack, three, seconds=2)  # dan has to cancel while they run
    waiting = dan.submit([probe("noop", "main")])
    assert dan.cancel(waiting["jobs"][0]["id"]).status_code == 200
    behind = eve.submit([probe("noop", "main")])
    over = last_end(stack, three)
    assert eve.wait(behind["id"], every_s=0.05)["state"] == "SUCCEEDED"
    (span,) = stack.spans(eve)
    assert span.end is not None
    assert span.end - over < 1.0
    assert stack.spans(dan) == []
    until(lambda: eve.dashboard()["active_users"] == 0, timeout_s=5, what="no active user")


def test_7_the_dashboard_counts_users_and_workers_as_they_are(stack: Stack, cast: Cast) -> None:
    ann, bob = cast("ann", "bob")
    for client in (ann, bob):
        client.submit([probe("second", "main", seconds=1.5)])
    for client in (ann, bob):
        stack.wait_started(client, "second")
    seen = ann.dashboard()
    assert seen["active_users"] == 2
    assert seen["max_active_users"] == 3
    assert seen["workers"] == {**seen["workers"], "total": 4, "busy": 2}
    assert seen["jobs"]["RUNNING"] == 1  # one's own jobs
    until(lambda: ann.dashboard()["active_users"] == 0, timeout_s=20, what="no active user")
    assert ann.dashboard()["workers"]["busy"] == 0
