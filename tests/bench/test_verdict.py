"""The verdict of a chaos run counts each violation, and excuses only what the history explains."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict

import pytest

from bench.chaos_bodies import Evidence
from bench.chaos_verdict import VIOLATIONS, judge
from tests.bench.stories import Story, clean


def counts(story: Story) -> dict[str, int]:
    """The violations that are not 0."""
    return {name: count for name, count in judge(story.evidence()).counts.items() if count}


def test_a_run_in_which_all_went_well_has_no_violation() -> None:
    verdict = judge(clean().evidence())
    assert verdict.counts == dict.fromkeys(VIOLATIONS, 0), verdict.findings
    assert verdict.clean


def test_the_figures_of_a_run() -> None:
    figures = judge(clean().evidence()).figures
    assert figures == {
        "jobs": 12,
        "attempts": 16,
        "kills": 2,
        "kills_holding_lease": 2,
        "stops": 2,
        "leases_lapsed_in_stops": 2,
        "zombies": 2,
        "redis_losses": 1,
        "redis_gap_s_max": 0.0,
        "recovery_s_p50": pytest.approx((6.5 + 0.29) / 2, abs=0.001),
        "recovery_s_max": 6.5,
    }


def test_kept_evidence_gives_the_same_verdict() -> None:
    evidence = clean().evidence()
    again = Evidence(**json.loads(json.dumps(asdict(evidence))))
    assert judge(again) == judge(evidence)


# --- one violation each ------------------------------------------------------------------


def no_row(story: Story) -> None:
    del story.rows["a2"]


def success_without_a_body(story: Story) -> None:
    story.job("e1", "ann/z")
    story.finishes("e1", 3.0, attempt=1)


def success_before_its_body_ended(story: Story) -> None:
    story.finishes("a1", 0.7)


def two_ok_ends(story: Story) -> None:
    story.begins("a1", 2.1, attempt=2)
    story.ends("a1", 2.2, attempt=2)
    story.finishes("a1", 2.3)
    story.log = [line for line in story.log if line["job"] != "a2"]
    story.finishes("a2", 2.3, "CANCELLED", reason="cancelled_by_user")
    story.submitted["a2"]["cancel"] = "answered"


def two_of_one_branch(story: Story) -> None:
    story.job("e1", "ann/z")
    story.job("e2", "ann/z")
    story.runs("e1", 3.0, 4.0)
    story.runs("e2", 3.9, 4.5)


def two_attempts_at_once(story: Story) -> None:
    story.job("e1", "ann/z", fails=1)
    story.begins("e1", 3.0)
    story.ends("e1", 4.0, ok=False)
    story.runs("e1", 3.9, 4.5, attempt=2)


def one_attempt_twice(story: Story) -> None:
    story.job("e1", "ann/z", fails=1)
    story.begins("e1", 3.0)
    story.ends("e1", 3.1, ok=False)
    story.runs("e1", 4.0, 4.5)


def a_start_while_a_lease_is_seen(story: Story) -> None:
    story.job("e1", "ann/z", cancel="asked")
    story.job("e2", "ann/z")
    story.begins("e1", 3.0)
    story.seen("e1", 3.1, 4.2)
    story.finishes("e1", 4.3, "CANCELLED")
    story.runs("e2", 4.0, 4.5)


def a_fourth_tenant(story: Story) -> None:
    for number, tenant in enumerate(("ann", "bob", "cid", "eva")):
        story.job(f"e{number}", f"{tenant}/z")
        story.runs(f"e{number}", 20.0 + number / 10, 21.0)


def a_fifth_body(story: Story) -> None:
    for number in range(5):
        story.job(f"e{number}", f"ann/z{number}")
        story.runs(f"e{number}", 20.0 + number / 10, 21.0)


def a_later_job_first(story: Story) -> None:
    story.job("e1", "ann/z")
    story.job("e2", "ann/z")
    story.runs("e2", 3.0, 3.5)
    story.runs("e1", 4.0, 4.5)


def never_over(story: Story) -> None:
    story.job("e1", "ann/z")


def before_its_upstream(story: Story) -> None:
    story.job("e1", "ann/z")
    story.job("e2", "ann/w", after=["e1"])
    story.runs("e1", 3.0, 4.0)
    story.runs("e2", 3.5, 3.6)


def success_after_cancel(story: Story) -> None:
    story.submitted["a1"]["cancel"] = "answered"


def cancelled_by_nobody(story: Story) -> None:
    story.submitted["d2"]["cancel"] = ""


def failed_for_nothing(story: Story) -> None:
    story.submitted["d1"]["fails"] = 0


@pytest.mark.parametrize(
    ("spoil", "violation"),
    [
        (no_row, "lost"),
        (success_without_a_body, "lost"),
        (success_before_its_body_ended, "lost"),
        (two_ok_ends, "completed_twice"),
        (two_of_one_branch, "branch_overlaps"),
        (two_attempts_at_once, "branch_overlaps"),
        (one_attempt_twice, "branch_overlaps"),
        (a_start_while_a_lease_is_seen, "branch_overlaps"),
        (a_fourth_tenant, "user_limit_violations"),
        (a_fifth_body, "worker_limit_violations"),
        (a_later_job_first, "fifo_inversions"),
        (never_over, "stuck"),
        (before_its_upstream, "early_starts"),
        (success_after_cancel, "wrong_ends"),
        (cancelled_by_nobody, "wrong_ends"),
        (failed_for_nothing, "wrong_ends"),
    ],
)
def test_one_violation_is_counted_once_and_as_nothing_else(
    spoil: Callable[[Story], None], violation: str
) -> None:
    story = clean()
    spoil(story)
    assert counts(story) == {violation: 1}, judge(story.evidence()).findings


# --- only what the history explains is excused -------------------------------------------


def zombie(until: float = 9.0, *, ok: bool = False, end: float = 9.5) -> Story:
    """e1's first body ends at `end`, beside e1's second and e2; it stood still from 0.5 to `until`."""
    story = Story()
    story.job("e1", "eva/x", fails=1)
    story.job("e2", "eva/x")
    story.begins("e1", 0.0)
    story.stop(0.5, until, "e1")
    story.runs("e1", 7.0, 7.5, attempt=2)
    story.runs("e2", 7.6, 9.1)
    story.ends("e1", end, ok=ok)
    return story


def test_a_stop_past_the_lease_excuses_a_zombie() -> None:
    assert counts(zombie()) == {}
    assert counts(zombie(ok=True)) == {}


def test_without_the_stop_the_same_log_is_two_overlaps() -> None:
    story = zombie()
    story.history.clear()
    assert counts(story) == {"branch_overlaps": 2}


def test_an_ok_end_without_the_stop_is_a_second_completion() -> None:
    story = zombie(ok=True)
    story.history.clear()
    assert counts(story) == {"branch_overlaps": 2, "completed_twice": 1}


@pytest.mark.parametrize("target", ["child", "scheduler"])
def test_a_stop_that_leaves_the_parent_renewing_excuses_nothing(target: str) -> None:
    story = zombie()
    story.history[0]["target"] = target
    assert counts(story) == {"branch_overlaps": 2}


def test_a_stop_within_the_lease_excuses_nothing() -> None:
    assert counts(zombie(until=5.0)) == {"branch_overlaps": 2}


def test_a_stop_that_held_another_attempt_excuses_nothing() -> None:
    story = zombie()
    story.history[0]["held"][0]["attempt"] = 2
    assert counts(story) == {"branch_overlaps": 2}


def test_a_zombie_that_goes_on_is_not_excused() -> None:
    assert counts(zombie(end=14.5)) == {"branch_overlaps": 2}


def test_a_lease_that_was_still_seen_keeps_its_body_current() -> None:
    story = zombie()
    story.seen("e1", 0.1, 7.2)  # over, but its row was not another's yet
    assert counts(story) == {"branch_overlaps": 1}


def test_a_body_that_woke_in_time_and_succeeded_was_current_all_along() -> None:
    story = Story()
    story.job("e1", "eva/x")
    story.job("e2", "eva/x")
    story.begins("e1", 0.0)
    story.stop(0.5, 7.0, "e1")
    story.runs("e2", 7.1, 7.2)
    story.ends("e1", 8.0)
    story.finishes("e1", 8.1)
    assert counts(story) == {"branch_overlaps": 1}


def test_a_start_line_written_after_waking_is_no_start() -> None:
    story = Story()
    story.job("e1", "eva/x", cancel="answered")
    story.job("e2", "eva/x")
    story.stop(0.5, 8.0, "e1")
    story.runs("e2", 7.0, 7.5)
    story.begins("e1", 8.0)
    story.ends("e1", 8.5, ok=False)
    story.finishes("e1", 6.9, "CANCELLED", reason="cancelled_by_user")
    assert counts(story) == {}


def test_a_kill_before_the_ok_end_does_not_excuse_it() -> None:
    story = Story()
    story.job("e1", "eva/x")
    story.begins("e1", 0.0)
    story.kill(0.5, "e1", target="child")
    story.ends("e1", 1.0)
    story.runs("e1", 2.0, 2.5, attempt=2)
    assert counts(story) == {"completed_twice": 1}


def ended_and_stood_still(*, died: bool) -> Story:
    """e1's first child ends ok, stands still before its word is written, and is tried again."""
    story = Story()
    story.job("e1", "eva/x")
    story.begins("e1", 0.0)
    story.ends("e1", 0.5)
    story.stop(0.6, 13.0, "e1", target="child")
    story.history[0]["died"] = died
    story.runs("e1", 13.5, 14.0, attempt=2)
    return story


def test_a_child_that_never_woke_said_nothing() -> None:
    assert counts(ended_and_stood_still(died=True)) == {}


def test_a_child_that_woke_under_its_lease_was_heard() -> None:
    assert counts(ended_and_stood_still(died=False)) == {"completed_twice": 1}


def test_a_failure_is_explained_by_each_fault_that_held_the_job() -> None:
    story = clean()
    story.submitted["d1"]["fails"] = 0
    story.kill(9.55, "d1")
    assert counts(story) == {}


def test_an_end_without_a_start_is_no_evidence() -> None:
    story = Story()
    story.job("e1", "eva/x")
    story.ends("e1", 1.0)
    with pytest.raises(ValueError, match="end without a start"):
        judge(story.evidence())
