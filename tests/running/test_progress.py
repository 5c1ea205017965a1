"""Overall progress and the time of phases, without a database."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.running.progress import Course, PhaseClock

PHASES = ("open", "segment", "export")
WEIGHTS = {"open": 1, "segment": 8, "export": 1}


def test_phases_weigh_what_they_cost() -> None:
    course = Course(PHASES, WEIGHTS)
    assert course.reach("open", 1, 1) == pytest.approx(0.1)
    assert course.reach("segment", 1, 2) == pytest.approx(0.5)
    assert course.reach("export", 1, 1) == pytest.approx(1.0)


def test_phases_without_weights_count_alike() -> None:
    assert Course(PHASES, {}).reach("segment", 0, 1) == pytest.approx(1 / 3)


def test_the_heaviest_phase_is_the_one_whose_tiles_are_told() -> None:
    assert Course(PHASES, WEIGHTS).main == "segment"


def test_an_attempt_begins_where_the_last_one_was() -> None:
    course = Course(PHASES, WEIGHTS, floor=0.4)
    assert course.reach("open", 1, 1) == 0.4
    assert course.reach("segment", 1, 2) == pytest.approx(0.5)


def test_an_unknown_phase_or_total_does_not_move_the_bar() -> None:
    course = Course(PHASES, WEIGHTS)
    assert course.reach("other", 1, 1) == 0.0
    assert course.reach("segment", 5, 0) == pytest.approx(0.1)


@given(
    st.lists(st.tuples(st.sampled_from([*PHASES, "other"]), st.integers(-3, 9), st.integers(-3, 9)))
)
def test_it_never_falls_and_stays_within_bounds(reports: list[tuple[str, int, int]]) -> None:
    course = Course(PHASES, WEIGHTS)
    seen = [0.0, *(course.reach(*report) for report in reports)]
    assert seen == sorted(seen)
    assert seen[-1] <= 1.0


def test_each_phase_gets_the_time_until_the_next_one_began() -> None:
    clock = PhaseClock(0.0)
    for phase, now in [("open", 1.0), ("segment", 3.0), ("segment", 4.0), ("export", 9.0)]:
        clock.enter(phase, now)
    assert clock.rows() == [
        {"name": "open", "seconds": 3.0},
        {"name": "segment", "seconds": 6.0},
        {"name": "export", "seconds": 0.0},
    ]
