"""Scenarios 1-4: one run of four users; order, limits, the fourth user and the states seen outside."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

from tests import probelog
from tests.client import Client, Row, lane
from tests.conftest import Cast
from tests.probelog import Span
from tests.stack import Stack

ALLOWED = {
    ("PENDING", "QUEUED"),
    ("QUEUED", "RUNNING"),
    ("RUNNING", "SUCCEEDED"),
    ("PENDING", "RUNNING"),  # steps that polling missed
    ("PENDING", "SUCCEEDED"),
    ("QUEUED", "SUCCEEDED"),
    ("QUEUED", "PENDING"),  # withdrawn, handed back
    ("RUNNING", "PENDING"),
}
BRANCHES = {"A": 3, "B": 3, "C": 1, "D": 1}


@dataclass
class MixedRun:
    """What the run left behind: the log's executions and every answer that polling saw."""

    users: dict[str, Client]
    submitted: dict[str, list[str]] = field(default_factory=dict)  # short name → keys in order
    seen: dict[str, list[Row]] = field(default_factory=dict)  # short name → workflow answers
    spans: list[Span] = field(default_factory=list)

    def of(self, *names: str) -> list[Span]:
        return probelog.of_users(self.spans, [self.users[name].user for name in names])


class Poller(threading.Thread):
    """Reads every workflow a few times a second until each is over."""

    def __init__(self, run: MixedRun, workflows: dict[str, str]) -> None:
        super().__init__(daemon=True)
        self.run_record = run
        self.left = dict(workflows)
        self.stop_at = time.monotonic() + 90

    def run(self) -> None:
        while self.left and time.monotonic() < self.stop_at:
            for name, workflow_id in list(self.left.items()):
                seen = self.run_record.users[name].workflow(workflow_id)
                self.run_record.seen[name].append(seen)
                if seen["state"] in ("SUCCEEDED", "FAILED", "CANCELLED"):
                    del self.left[name]
            time.sleep(0.25)


@pytest.fixture(scope="module")
def mixed(probe_stack: Stack) -> Iterator[MixedRun]:
    yield run_once(probe_stack)
    probe_stack.settle()


def run_once(stack: Stack) -> MixedRun:
    """A and B: 3 branches of 5 jobs; C and D: 1 of 5; 0.5 s each; submitted in that order."""
    cast = Cast(stack)
    run = MixedRun(users=dict(zip("ABCD", cast("A", "B", "C", "D"), strict=True)))
    workflows = {}
    for name, client in run.users.items():
        jobs = [job for n in range(BRANCHES[name]) for job in lane(f"b{n}", 5, seconds=0.5)]
        workflows[name] = client.submit(jobs)["id"]
        run.submitted[name] = [job["job_id"] for job in jobs]
        run.seen[name] = []
    poller = Poller(run, workflows)
    poller.start()
    poller.join()
    run.spans = stack.spans(*run.users.values())
    return run


def test_1_all_forty_jobs_succeed_and_each_starts_once(mixed: MixedRun) -> None:
    ends = [job["state"] for seen in mixed.seen.values() for job in seen[-1]["jobs"]]
    assert ends == ["SUCCEEDED"] * 40
    assert len(mixed.spans) == 40
    assert len({span.job for span in mixed.spans}) == 40


def test_1_never_two_jobs_of_one_branch_at_once(mixed: MixedRun) -> None:
    probelog.check_lanes(mixed.spans)


def test_1_jobs_of_a_branch_start_in_the_order_of_submission(mixed: MixedRun) -> None:
    for name in BRANCHES:
        for (_, branch), spans in probelog.group(mixed.of(name), lambda s: s.lane).items():
            expected = [key for key in mixed.submitted[name] if key.startswith(f"{branch}-")]
            assert [span.key for span in spans] == expected


def test_2_no_more_jobs_run_than_there_are_workers(mixed: MixedRun) -> None:
    assert probelog.most_at_once(mixed.spans, by=lambda span: span.job) <= 4


def test_2_branches_of_one_user_run_at_once(mixed: MixedRun) -> None:
    assert probelog.most_at_once(mixed.of("A"), by=lambda span: span.branch) >= 2


def test_2_at_most_three_users_run_at_once(mixed: MixedRun) -> None:
    assert probelog.most_at_once(mixed.spans, by=lambda span: span.tenant) <= 3


def test_3_the_fourth_user_starts_when_the_first_of_three_is_done(
    mixed: MixedRun, probe_stack: Stack
) -> None:
    """Never early; late by more than half a second at most once, when something else took the
    machine: a scheduler that is slow is so every time."""
    late = seconds_late(mixed)
    assert late >= 0
    if late > 0.5:
        again = seconds_late(run_once(probe_stack))
        assert 0 <= again <= 0.5, f"{late:.2f} s, and {again:.2f} s once more"


def seconds_late(run: MixedRun) -> float:
    """From the last end of the first of A, B, C that is done to D's first start."""
    over = min(max(span.end or 0 for span in run.of(name)) for name in "ABC")
    return min(span.start for span in run.of("D")) - over


def test_4_jobs_only_make_allowed_moves(mixed: MixedRun) -> None:
    for history in histories(mixed, "state"):
        moves = {(a, b) for a, b in itertools.pairwise(history) if a != b}
        assert moves <= ALLOWED, history


def test_4_progress_of_jobs_and_workflows_never_falls(mixed: MixedRun) -> None:
    for history in histories(mixed, "progress"):
        assert history == sorted(history)
        assert all(0 <= value <= 1 for value in history)
    for seen in mixed.seen.values():
        progress = [answer["progress"] for answer in seen]
        assert progress == sorted(progress)
        assert progress[-1] == 1.0


def test_4_a_running_workflow_never_is_pending_again(mixed: MixedRun) -> None:
    order = ["PENDING", "RUNNING", "SUCCEEDED"]
    for seen in mixed.seen.values():
        ranks = [order.index(answer["state"]) for answer in seen]
        assert ranks == sorted(ranks)


def histories(mixed: MixedRun, field_name: str) -> list[list[object]]:
    """For each job the values of one field, in the order polling saw them."""
    found: dict[str, list[object]] = {}
    for seen in mixed.seen.values():
        for answer in seen:
            for job in answer["jobs"]:
                found.setdefault(job["id"], []).append(job[field_name])
    return list(found.values())
