"""Scenario 10: the websocket tells every start and end, to those alone who may know."""

from __future__ import annotations

import uuid
from collections.abc import Callable

import pytest

from tests.client import by_key, probe
from tests.conftest import Cast
from tests.feed import Feed, Message, refusal
from tests.probelog import Span
from tests.stack import Stack

ENDS = ("SUCCEEDED", "FAILED", "CANCELLED")


def test_10_every_start_and_end_state_arrives(stack: Stack, cast: Cast) -> None:
    (ann,) = cast("ann")
    with Feed(stack.websocket_url, user_id=ann.user) as feed:
        feed.wait_for(lambda m: m.type == "snapshot", what="the snapshot")
        assert feed.messages[0].type == "snapshot"
        jobs = [
            probe("ticks", "x", seconds=2, ticks=40),
            probe("bad", "y", fail="error"),
            probe("stopped", "z", seconds=20, ticks=200),
        ]
        made = ann.submit(jobs)
        ids = {key: job["id"] for key, job in by_key(made).items()}
        stack.wait_started(ann, "stopped")
        assert ann.cancel(ids["stopped"]).status_code == 200
        for key, end in (("ticks", "SUCCEEDED"), ("bad", "FAILED"), ("stopped", "CANCELLED")):
            feed.wait_for(_tells(ids[key], end), what=f"{key} {end}", timeout_s=30)
        feed.wait_for(_workflow_over(made["id"]), what="the end of the workflow")

    assert feed.states_of(ids["ticks"])[-2:] == ["RUNNING", "SUCCEEDED"]
    assert feed.states_of(ids["bad"]).count("RUNNING") == 3
    assert feed.states_of(ids["stopped"])[-1] == "CANCELLED"
    told = [m.seq for m in feed.messages if m.type in ("job", "workflow")]
    assert told == sorted(set(told)), "seq rises with every state event"
    _check_ticks(feed, ids["ticks"], stack.spans(ann))


def _tells(job_id: str, state: str) -> Callable[[Message], bool]:
    return lambda m: m.type == "job" and m.data["id"] == job_id and m.data["state"] == state


def _workflow_over(workflow_id: str) -> Callable[[Message], bool]:
    def match(message: Message) -> bool:
        data = message.data
        return message.type == "workflow" and data["id"] == workflow_id and data["state"] in ENDS

    return match


def _check_ticks(feed: Feed, job_id: str, spans: list[Span]) -> None:
    """Ticks arrive within 200 ms (p95), at most 4 a second, rising."""
    span = next(s for s in spans if s.key == "ticks")
    assert span.end is not None
    a_tick_s = (span.end - span.start) / 40
    ticks = [
        m
        for m in feed.of_type("progress")
        if m.data.get("job") == job_id or m.data.get("id") == job_id
    ]
    assert 3 <= len(ticks) <= 12
    done = [m.data["tiles_done"] for m in ticks]
    assert done == sorted(done)
    late = sorted(m.arrived - span.start - m.data["tiles_done"] * a_tick_s for m in ticks)
    assert late[int(0.95 * (len(late) - 1))] < 0.2, late


def test_10_a_feed_of_one_workflow_tells_nothing_of_another(stack: Stack, cast: Cast) -> None:
    (ann,) = cast("ann")
    watched = ann.submit([probe("a", "x", seconds=0.5)])
    with Feed(stack.websocket_url, user_id=ann.user, workflow=watched["id"]) as feed:
        feed.wait_for(lambda m: m.type == "snapshot", what="the snapshot")
        other = ann.submit([probe("b", "y")])
        ann.wait(other["id"])
        ann.wait(watched["id"])
        feed.wait_for(_workflow_over(watched["id"]), what="the end of the watched workflow")
    assert {m.data["workflow_id"] for m in feed.of_type("job")} == {watched["id"]}
    assert {m.data["id"] for m in feed.of_type("workflow")} == {watched["id"]}


def test_10_after_a_gap_since_brings_every_state_event(stack: Stack, cast: Cast) -> None:
    (ann,) = cast("ann")
    with Feed(stack.websocket_url, user_id=ann.user) as before:
        snapshot = before.wait_for(lambda m: m.type == "snapshot", what="the snapshot")
    made = ann.submit([probe("missed", "x")])
    ann.wait(made["id"])
    job_id = made["jobs"][0]["id"]
    with Feed(stack.websocket_url, user_id=ann.user, since=snapshot.seq) as after:
        after.wait_for(_tells(job_id, "SUCCEEDED"), what="the end that was missed")
        after.wait_for(_workflow_over(made["id"]), what="the workflow's end that was missed")
    assert after.states_of(job_id)[-3:] == ["QUEUED", "RUNNING", "SUCCEEDED"]


def test_10_a_stranger_sees_nothing_of_ann(stack: Stack, cast: Cast) -> None:
    ann, eve = cast("ann", "eve")
    with Feed(stack.websocket_url, user_id=eve.user) as feed:
        feed.wait_for(lambda m: m.type == "snapshot", what="the snapshot")
        made = ann.submit([probe("secret", "x", seconds=0.5, ticks=10)])
        ann.wait(made["id"])
    assert made["id"] not in str(feed.messages)
    assert made["jobs"][0]["id"] not in str(feed.messages)


def test_10_without_an_identity_the_feed_is_refused(stack: Stack) -> None:
    assert refusal(stack.websocket_url) == 4401


@pytest.mark.parametrize("user", ["", "../../etc", "a b", "x" * 65])
def test_10_a_bad_identity_is_refused(stack: Stack, user: str) -> None:
    assert refusal(stack.websocket_url, user_id=user) == 4401


def test_10_a_wrong_token_is_refused(stack: Stack) -> None:
    assert refusal(stack.websocket_url, subprotocols=["bearer.wrong"]) == 4401


def test_10_a_foreign_and_an_unknown_workflow_close_alike(stack: Stack, cast: Cast) -> None:
    ann, eve = cast("ann", "eve")
    made = ann.submit([probe("a", "x")])
    for workflow in (made["id"], str(uuid.uuid4()), "*", "../x"):
        code = refusal(stack.websocket_url, user_id=eve.user, workflow=workflow)
        assert code == 4404, workflow
