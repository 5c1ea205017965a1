"""Redis is a wire: emptied or killed in the middle, it takes nothing with it."""

from __future__ import annotations

import time

from tests import probelog
from tests.client import Client, lane, states, until
from tests.conftest import Cast
from tests.feed import Feed
from tests.stack import Stack


def three_lanes(ann: Client) -> str:
    made = ann.submit([job for n in range(3) for job in lane(f"b{n}", 4, seconds=0.6)])
    return str(made["id"])


def all_ran_once(stack: Stack, ann: Client, workflow_id: str) -> None:
    over = ann.wait(workflow_id, timeout_s=90)
    assert set(states(over).values()) == {"SUCCEEDED"}
    spans = stack.spans(ann)
    probelog.check_lanes(spans)
    finished = [span.key for span in spans if span.ok]
    assert sorted(finished) == sorted(set(finished)), "a body ran to its end twice"
    assert len(set(finished)) == 12


def test_flushall_in_the_middle_loses_nothing(stack: Stack, cast: Cast) -> None:
    (ann,) = cast("ann")
    workflow_id = three_lanes(ann)
    for _ in range(4):
        time.sleep(0.5)
        stack.redis().flushall()
    all_ran_once(stack, ann, workflow_id)


def test_work_goes_on_soon_after_redis_was_emptied(stack: Stack, cast: Cast) -> None:
    (ann,) = cast("ann")
    stack.redis().flushall()
    made = ann.submit(lane("x", 1))
    accepted = time.monotonic()
    span = stack.wait_started(ann, "x-0")
    assert span.start - accepted < 3.0  # one sweep, and a noisy machine
    ann.wait(made["id"])


def test_redis_killed_and_started_again_needs_no_other_process_restarted(
    stack: Stack, cast: Cast
) -> None:
    (ann,) = cast("ann")
    pids = {name: p.pid for name, p in stack.processes.items() if name != "redis"}
    workflow_id = three_lanes(ann)
    time.sleep(0.8)
    stack.processes["redis"].kill()
    time.sleep(3)
    assert ann.get(f"/api/workflows/{workflow_id}").status_code == 200, "the record needs no Redis"
    health = stack.health()
    assert health is not None
    assert health.status_code == 503
    stack.start_redis()
    all_ran_once(stack, ann, workflow_id)
    until(lambda: _status(stack) == 200, timeout_s=30, what="health is 200 again")
    assert {name: p.pid for name, p in stack.processes.items() if name != "redis"} == pids
    assert all(process.alive for process in stack.processes.values())


def _status(stack: Stack) -> int:
    answer = stack.health()
    return 0 if answer is None else answer.status_code


def test_watchers_stay_and_hear_again_after_redis_came_back(stack: Stack, cast: Cast) -> None:
    (ann,) = cast("ann")
    with Feed(stack.websocket_url, user_id=ann.user) as feed:
        feed.wait_for(lambda m: m.type == "snapshot", what="the snapshot")
        stack.processes["redis"].kill()
        time.sleep(1)
        stack.start_redis()
        made = ann.submit(lane("x", 1, seconds=0.3))
        ann.wait(made["id"])
        job_id = made["jobs"][0]["id"]
        feed.wait_for(
            lambda m: m.type == "job" and m.data["id"] == job_id and m.data["state"] == "SUCCEEDED",
            what="the end, told to a watcher that was there before",
        )
