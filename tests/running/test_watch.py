"""When a running job is stopped from outside: pure moments, no clock."""

from __future__ import annotations

import math

import pytest

from jobs.running.watch import FENCE_GRACE_S, Limits, Verdict, Watch

LIMITS = Limits(lease_s=30, stall_s=120, cancel_grace_s=10, stop_grace_s=8, timeout_s=500)


def watch(**moments: float) -> Watch:
    return Watch(LIMITS, **{"began_at": 0.0, "renewed_at": 0.0, **moments})


def test_nothing_falls_while_leases_are_renewed_and_the_child_beats() -> None:
    assert watch(renewed_at=100).verdict(105, beat_at=104) is None


def test_the_next_look_is_at_the_first_deadline() -> None:
    assert watch(renewed_at=100).pause_s(105, beat_at=104) == pytest.approx(15)
    assert watch(renewed_at=100).pause_s(200, beat_at=104) == 0


@pytest.mark.parametrize(
    ("moments", "beat_at", "falls_at", "verdict"),
    [
        ({"renewed_at": 100}, 99, 120, Verdict.LEASE_LOST),
        ({"renewed_at": 290}, 180, 300, Verdict.STALLED),
        ({"renewed_at": 499, "began_at": 0}, 499, 500, Verdict.TIMEOUT),
        ({"renewed_at": 100, "cancel_asked_at": 101}, 99, 111, Verdict.CANCELLED),
        ({"renewed_at": 100, "stop_seen_at": 101}, 99, 109, Verdict.HANDED_BACK),
        ({"renewed_at": 100, "fenced_at": 101}, 99, 101 + FENCE_GRACE_S, Verdict.FENCED),
        ({"renewed_at": 100, "stop_seen_at": -math.inf}, 99, 100, Verdict.HANDED_BACK),
    ],
)
def test_each_verdict_falls_at_its_deadline_and_not_before(
    moments: dict[str, float], beat_at: float, falls_at: float, verdict: Verdict
) -> None:
    seen = watch(**moments)
    if seen.stop_seen_at != -math.inf:
        assert seen.verdict(falls_at - 0.01, beat_at) is None
    assert seen.verdict(falls_at, beat_at) is verdict


def test_a_job_that_is_not_ours_any_more_is_not_written_about() -> None:
    seen = watch(renewed_at=0, fenced_at=0, cancel_asked_at=0)
    assert seen.verdict(1000, beat_at=0) is Verdict.LEASE_LOST


def test_a_child_that_never_beat_has_its_time_from_the_start() -> None:
    assert watch(began_at=50, renewed_at=160).verdict(169, beat_at=0) is None
    assert watch(began_at=50, renewed_at=160).verdict(170, beat_at=0) is Verdict.STALLED
