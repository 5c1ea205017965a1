"""The geometry of a workflow's picture, and the words of pages. Pure."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs import words
from jobs.states import PUBLIC_STATES, Reason
from workflows.drawing import NODE_H, NODE_W, Step, draw, shortened


def test_jobs_of_a_lane_stand_in_a_row_and_after_what_they_need() -> None:
    picture = draw(
        [Step("a", "x", ()), Step("b", "x", ()), Step("c", "y", ()), Step("d", None, ("b", "c"))]
    )
    a, b, c, d = (picture.places[key] for key in "abcd")
    assert a.y == b.y
    assert a.x == c.x < b.x < d.x
    assert [lane.label for lane in picture.lanes] == ["x", "y", "a lane of its own"]
    assert {(arrow.upstream, arrow.downstream) for arrow in picture.arrows} == {
        ("b", "d"),
        ("c", "d"),
    }
    assert [(link.upstream, link.downstream) for link in picture.links] == [("a", "b")]


def test_two_jobs_without_a_branch_share_no_lane() -> None:
    picture = draw([Step("a", None, ()), Step("b", None, ())])
    assert picture.places["a"].y != picture.places["b"].y


def test_an_edge_to_a_job_that_is_not_drawn_is_left_out() -> None:
    assert draw([Step("b", "x", ("gone",))]).arrows == ()


def test_nothing_is_drawn_of_nothing() -> None:
    assert draw([]).places == {}


@st.composite
def workflows(draw_: st.DrawFn) -> list[Step]:
    count = draw_(st.integers(1, 25))
    return [
        Step(
            f"j{n}",
            draw_(st.sampled_from(["a", "b", "c", None])),
            tuple(draw_(st.sets(st.sampled_from([f"j{m}" for m in range(n)]), max_size=3)))
            if n
            else (),
        )
        for n in range(count)
    ]


@given(workflows())
def test_no_two_boxes_overlap_and_all_lie_inside(steps: list[Step]) -> None:
    picture = draw(steps)
    corners = [(place.x, place.y) for place in picture.places.values()]
    assert len(set(corners)) == len(steps)
    for x, y in corners:
        assert 0 <= x <= picture.width - NODE_W
        assert 0 <= y <= picture.height - NODE_H
    for step in steps:
        for upstream in step.upstream:
            assert picture.places[upstream].right < picture.places[step.key].x
    for arrow in picture.arrows:
        assert re.fullmatch(r"M[-\d .CHLQ]+", arrow.path)


def test_an_arrow_that_passes_a_box_goes_over_it() -> None:
    steps = [Step("a", "x", ()), Step("b", "y", ("a",)), Step("c", "y", ("a", "b"))]
    picture = draw(steps)
    between = picture.places["b"]
    (path,) = (
        each.path for each in picture.arrows if each.downstream == "c" and each.upstream == "a"
    )
    numbers = [int(number) for number in re.findall(r"-?\d+", path)]
    points = list(zip(numbers[::2], numbers[1::2], strict=True))
    over = [y for x, y in points if between.x <= x <= between.right]
    assert all(y < between.y for y in over)
    assert max(x for x, _ in points) < picture.places["c"].x


@given(st.text(max_size=200), st.integers(4, 60))
def test_a_shortened_name_fits(text: str, most: int) -> None:
    assert len(shortened(text, most)) <= most or len(text) <= most
    assert shortened(text, len(text) + 1) == text


def test_every_state_and_reason_has_words() -> None:
    assert set(words.STATES) == set(PUBLIC_STATES)
    told = set(words.WAITS) | set(words.ENDS)
    assert {str(reason) for reason in Reason if reason} - told == set()


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0061, "6 ms"),
        (0.951, "1.0 s"),
        (9.96, "10 s"),
        (59.6, "1 min 0 s"),
        (94, "1 min 34 s"),
        (3_725, "1 h 2 min"),
    ],
)
def test_durations_are_told_shortly(seconds: float, text: str) -> None:
    assert words.span(seconds) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-3, "just now"),
        (59, "just now"),
        (60, "1 minute ago"),
        (7_300, "2 hours ago"),
        (1e6, "11 days ago"),
    ],
)
def test_ages_are_told_in_one_unit(seconds: float, text: str) -> None:
    assert words.age(seconds) == text


def test_late_phases_are_called_finishing() -> None:
    assert words.state("RUNNING", "", "merge") == "Finishing"
    assert words.state("RUNNING", "cancelling", "merge") == "Cancelling"
    assert words.state("SUCCEEDED", "gaps") == "Done with gaps"
