"""What the scheduler process does beside its rounds."""

from __future__ import annotations

import pytest

from jobs.management.commands import run_scheduler


def test_clean_up_goes_on_until_little_is_left() -> None:
    left = [100, 100, 7, 100]
    run_scheduler.collect(lambda most: left.pop(0))
    assert left == [100]


def test_clean_up_does_not_go_on_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_scheduler, "COLLECT_S", 0.05)
    rounds: list[int] = []

    def endless(most: int) -> int:
        rounds.append(most)
        return most

    run_scheduler.collect(endless)
    assert rounds
