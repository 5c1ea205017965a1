"""Scenario 8: every graph is either refused, or ends."""

from __future__ import annotations

from typing import Any

import pytest

from tests.client import Row, by_key, probe, states
from tests.conftest import Cast
from tests.probelog import Span
from tests.stack import Stack


def started_after(spans: list[Span], later: str, earlier: str) -> bool:
    """Whether `later` began when `earlier` was over."""
    found = {span.key: span for span in spans}
    end = found[earlier].end
    return end is not None and found[later].start >= end


def test_8_fan_out_and_fan_in_over_branches_run_in_order(stack: Stack, cast: Cast) -> None:
    (ann,) = cast("ann")
    middle = [probe(f"m{n}", f"lane{n}", after=["root"], seconds=0.2) for n in range(4)]
    last = probe("last", "end", after=[job["job_id"] for job in middle])
    made = ann.submit([probe("root", "start", seconds=0.2), *middle, last])
    assert ann.wait(made["id"])["state"] == "SUCCEEDED"
    spans = stack.spans(ann)
    assert len(spans) == 6
    assert all(started_after(spans, f"m{n}", "root") for n in range(4))
    assert all(started_after(spans, "last", f"m{n}") for n in range(4))


def test_8_dependents_of_a_failed_job_end_without_running(stack: Stack, cast: Cast) -> None:
    (ann,) = cast("ann")
    jobs = [
        probe("bad", "x", fail="error"),
        probe("child", "y", after=["bad"]),
        probe("grandchild", "z", after=["child"]),
        probe("free", "w"),
    ]
    over = ann.wait(ann.submit(jobs)["id"], timeout_s=60)
    assert states(over) == {
        "bad": "FAILED",
        "child": "CANCELLED",
        "grandchild": "CANCELLED",
        "free": "SUCCEEDED",
    }
    found = by_key(over)
    assert found["child"]["reason"] == found["grandchild"]["reason"] == "upstream_failed"
    assert {span.key for span in stack.spans(ann)} == {"bad", "free"}


def test_8_dependents_of_a_cancelled_job_end_without_running(stack: Stack, cast: Cast) -> None:
    (ann,) = cast("ann")
    jobs = [
        probe("hold", "x", seconds=1.5),
        probe("gone", "x"),
        probe("child", "y", after=["gone"]),
    ]
    made = ann.submit(jobs)
    assert ann.cancel(by_key(made)["gone"]["id"]).status_code == 200
    over = ann.wait(made["id"])
    assert states(over) == {"hold": "SUCCEEDED", "gone": "CANCELLED", "child": "CANCELLED"}
    assert {span.key for span in stack.spans(ann)} == {"hold"}


def test_8_a_dependency_on_a_later_job_of_the_same_branch_runs_in_dependency_order(
    stack: Stack, cast: Cast
) -> None:
    (ann,) = cast("ann")
    jobs = [probe("second", "x", after=["first"]), probe("first", "x"), probe("third", "x")]
    made = ann.submit(jobs)
    assert [job["job_id"] for job in made["jobs"]] == ["second", "first", "third"]
    assert ann.wait(made["id"])["state"] == "SUCCEEDED"
    assert started_after(stack.spans(ann), "second", "first")


def test_8_lanes_that_cross_between_workflows_do_not_wait_in_a_circle(
    stack: Stack, cast: Cast
) -> None:
    (ann,) = cast("ann")
    one = ann.submit([probe("a1", "x", seconds=0.2), probe("a2", "y", after=["a1"])])
    two = ann.submit([probe("b1", "y", seconds=0.2), probe("b2", "x", after=["b1"])])
    assert ann.wait(one["id"])["state"] == "SUCCEEDED"
    assert ann.wait(two["id"])["state"] == "SUCCEEDED"


def test_8_ids_may_hold_dots_dashes_and_underscores(stack: Stack, cast: Cast) -> None:
    (ann,) = cast("ann")
    keys = ["a.b", "a-b", "a_b", "A.9-_x"]
    made = ann.submit([probe(key, "x") for key in keys])
    assert set(states(ann.wait(made["id"]))) == set(keys)


@pytest.mark.parametrize(
    ("jobs", "culprits"),
    [
        pytest.param([probe("me", after=["me"])], ["me"], id="self"),
        pytest.param([probe("a", after=["b"]), probe("b", after=["a"])], ["a", "b"], id="cycle"),
        pytest.param(
            [probe("a", "x"), probe("b", "x", after=["c"]), probe("c", "x", after=["b"])],
            ["b", "c"],
            id="cycle-in-branch",
        ),
        pytest.param([probe("a", after=["ghost"])], ["ghost"], id="unknown"),
        pytest.param([probe("twin"), probe("twin")], ["twin"], id="duplicate"),
        pytest.param([probe("a"), probe("b", after=["a", "a"])], ["a"], id="duplicate-edge"),
        pytest.param([probe("bad id")], ["job_id"], id="bad-id"),
    ],
)
def test_8_an_invalid_graph_is_refused_naming_the_culprits(
    stack: Stack, cast: Cast, jobs: list[Row], culprits: list[str]
) -> None:
    (ann,) = cast("ann")
    answer = ann.post("/api/workflows", {"name": "refused", "jobs": jobs})
    assert 400 <= answer.status_code < 500
    assert all(name in answer.text for name in culprits), answer.text
    assert ann.read("/api/workflows")["results"] == [], "nothing may be half-written"


@pytest.mark.parametrize("direction", ["forwards", "backwards"])
def test_8_a_chain_of_5000_jobs_is_accepted_and_ends(
    stack: Stack, cast: Cast, direction: str
) -> None:
    (ann,) = cast("ann")
    made = ann.submit(chain(5000, backwards=direction == "backwards"), timeout_s=120)
    assert len(made["jobs"]) == 5000
    stack.wait_started(ann, "n0")
    assert ann.post(f"/api/workflows/{made['id']}/cancel", timeout=120).status_code == 200
    over = ann.wait(made["id"], timeout_s=60, every_s=2)
    assert {job["state"] for job in over["jobs"]} <= {"SUCCEEDED", "CANCELLED"}
    assert over["progress"] == 1.0


def chain(length: int, *, backwards: bool) -> list[dict[str, Any]]:
    """n0 ← n1 ← …, listed from the first or from the last; the first takes a second."""
    jobs = [probe("n0", "n0", seconds=1)]
    jobs += [probe(f"n{n}", f"lane{n % 7}", after=[f"n{n - 1}"]) for n in range(1, length)]
    return jobs[::-1] if backwards else jobs


def test_8_a_chain_as_deep_as_a_lane_runs_to_its_end_either_way_round(
    stack: Stack, cast: Cast
) -> None:
    ann, bob = cast("ann", "bob")
    one = ann.submit(chain(20, backwards=False))
    two = bob.submit(chain(20, backwards=True))
    for client, made in ((ann, one), (bob, two)):
        assert client.wait(made["id"])["state"] == "SUCCEEDED"
        keys = [span.key for span in stack.spans(client)]
        assert keys == [f"n{n}" for n in range(20)]
