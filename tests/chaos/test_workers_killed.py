"""Workers die, hang and come back late: each job still ends once, by exactly one attempt."""

from __future__ import annotations

import signal
import time

import psutil
import pytest

from tests.client import Client, Row, by_key, probe, states, until
from tests.conftest import Cast
from tests.stack import Stack


def long_job(stack: Stack, ann: Client, **params: object) -> Row:
    """A job of some seconds that runs now, with a no-op behind it; the workflow."""
    made = ann.submit(
        [probe("long", "x", ticks=40, **{"seconds": 4, **params}), probe("next", "x")]
    )
    stack.wait_started(ann, "long")
    ann.wait_job(by_key(made)["long"]["id"], ["RUNNING"])
    return made


def finished_once(stack: Stack, ann: Client, made: Row, *, attempts: int) -> Row:
    """The workflow succeeded, `long` by its last attempt, and no body ran to its end twice.

    attempts  that it took at least: a promotion to a worker that died unnoticed is withdrawn and
              counts as one more, when the machine is slow to start the next worker
    """
    over = ann.wait(made["id"], timeout_s=60)
    assert states(over) == {"long": "SUCCEEDED", "next": "SUCCEEDED"}
    last = by_key(over)["long"]["attempt"]
    assert last >= attempts
    good = [span.attempt for span in stack.spans(ann) if span.ok and span.key == "long"]
    assert good[-1] == last
    assert len([attempt for attempt in good if attempt >= attempts]) == 1
    return over


def test_a_worker_killed_with_its_child_loses_the_lease_and_another_attempt_ends_the_job(
    stack: Stack, cast: Cast
) -> None:
    (ann,) = cast("ann")
    made = long_job(stack, ann)
    for worker in stack.workers():
        worker.kill()
    stack.start()
    finished_once(stack, ann, made, attempts=2)


def test_a_worker_whose_parent_alone_is_killed_leaves_no_child_that_works_on(
    stack: Stack, cast: Cast
) -> None:
    (ann,) = cast("ann")
    made = long_job(stack, ann, seconds=6)
    under = [child for worker in stack.workers() for child in worker.descendants()]
    for worker in stack.workers():
        worker.send(signal.SIGKILL)
    _gone, alive = psutil.wait_procs(under, timeout=3)
    assert not alive, "a child outlived its parent"
    stack.start()
    finished_once(stack, ann, made, attempts=2)


def test_a_killed_child_is_seen_at_once_by_its_parent(stack: Stack, cast: Cast) -> None:
    (ann,) = cast("ann")
    made = long_job(stack, ann)
    killed = time.monotonic()
    for worker in stack.workers():
        for child in worker.descendants():
            child.kill()

    def second_attempt() -> bool:
        return any(span.attempt == 2 for span in stack.spans(ann))

    until(second_attempt, timeout_s=30, what="a second attempt", every_s=0.05)
    assert time.monotonic() - killed < 20
    assert all(worker.alive for worker in stack.workers())
    assert len(stack.workers()) == 3
    finished_once(stack, ann, made, attempts=2)


def test_the_late_word_of_a_worker_that_slept_past_its_lease_changes_nothing(
    stack: Stack, cast: Cast
) -> None:
    (ann,) = cast("ann")
    made = long_job(stack, ann, seconds=5)
    job_id = by_key(made)["long"]["id"]
    sleeping = stack.workers()
    for worker in sleeping:
        worker.send_all(signal.SIGSTOP)
    stack.start_worker("cpu", 3)  # the one that is awake

    def second_attempt() -> bool:
        return any(span.attempt == 2 for span in stack.spans(ann))

    until(second_attempt, timeout_s=40, what="a second attempt after the lease ran out")
    for worker in sleeping:
        worker.send_all(signal.SIGCONT)
    seen = []
    while not seen or seen[-1]["state"] not in ("SUCCEEDED", "FAILED", "CANCELLED"):
        seen.append(ann.job(job_id))
        time.sleep(0.2)
    assert {job["attempt"] for job in seen} == {2}
    assert [job["progress"] for job in seen] == sorted(job["progress"] for job in seen)
    over = finished_once(stack, ann, made, attempts=2)
    time.sleep(1)
    assert ann.workflow(made["id"]) == over
    stack.processes.pop("cpu-3").stop()
    again = ann.submit([probe(f"n{n}", f"y{n}", seconds=0.3) for n in range(6)])
    assert ann.wait(again["id"])["state"] == "SUCCEEDED", "the woken workers are of use again"


@pytest.mark.parametrize("fail", ["exit", "hang", "oom"])
def test_a_body_that_exits_hangs_or_runs_out_of_memory_is_tried_again(
    stack: Stack, cast: Cast, fail: str
) -> None:
    (ann,) = cast("ann")
    jobs = [probe("long", "x", fail=fail, fail_attempts=1, seconds=0.3), probe("next", "x")]
    made = ann.submit(jobs)
    finished_once(stack, ann, made, attempts=2)


@pytest.mark.slow
def test_a_body_that_always_hangs_fails_as_stalled(stack: Stack, cast: Cast) -> None:
    (ann,) = cast("ann")
    made = ann.submit([probe("bad", "x", fail="hang"), probe("next", "x")])
    over = by_key(ann.wait(made["id"], timeout_s=90))
    assert over["bad"]["state"] == "FAILED"
    assert over["bad"]["reason"] == "stalled"
    assert over["bad"]["error"]
    assert over["next"]["state"] == "SUCCEEDED"
