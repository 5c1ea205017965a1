"""The forecast on plain values: the rules played forward, nothing made up."""

from __future__ import annotations

import math
from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from jobs.scheduling.durations import UNKNOWN, Span
from jobs.scheduling.forecast import Party, Running, Scene, Work, forecast

TEN = Span(8.0, 10.0, 14.0)


def work(key: int, tenant: int = 1, *needs: int, takes: Span = TEN, **fields: object) -> Work:
    values: dict[str, object] = {"queue": "cpu", "priority": 0, "member": 0, "sequence": key}
    return Work(key, tenant, takes=takes, needs=frozenset(needs), **{**values, **fields})  # type: ignore[arg-type]


def busy(key: int, tenant: int = 1, left: Span = TEN) -> Running:
    return Running(key, tenant, "cpu", 0, left)


def scene(
    works: Sequence[Work],
    running: Sequence[Running] = (),
    parties: Sequence[Party] = (Party(1, held_s=0.0),),
    **fields: object,
) -> Scene:
    values: dict[str, object] = {"user_slots": 3, "run_slots": 1, "room": {"cpu": 1, "gpu": 1}}
    return Scene(list(works), list(running), list(parties), **{**values, **fields})  # type: ignore[arg-type]


def typical(found: dict[int, Span]) -> dict[int, float]:
    return {key: span.typical for key, span in found.items()}


def test_with_a_free_worker_the_start_is_now() -> None:
    assert forecast(scene([work(1)])) == {1: Span(0, 0, 0)}


def test_a_busy_worker_is_waited_for_with_the_range_of_what_is_left() -> None:
    assert forecast(scene([work(1)], [busy(9)])) == {1: TEN}


def test_jobs_before_it_add_up() -> None:
    found = forecast(scene([work(1), work(2), work(3)], [busy(9)]))
    assert found[3] == Span(24, 30, 42)


def test_a_job_waits_for_what_it_needs_and_for_a_worker() -> None:
    found = forecast(scene([work(1), work(2, 1, 1), work(3, 1, 2)], run_slots=4, room={"cpu": 4}))
    assert typical(found) == {1: 0, 2: 10, 3: 20}


def test_what_takes_nobody_knows_how_long_gives_no_forecast_to_what_waits_for_it() -> None:
    found = forecast(
        scene(
            [work(1, takes=UNKNOWN), work(2, 1, 1), work(3)],
            [busy(9, left=UNKNOWN)],
            run_slots=2,
            room={"cpu": 3},
        )
    )
    assert typical(found) == {1: 0, 2: math.inf, 3: math.inf}


def test_a_need_outside_the_scene_is_never_met() -> None:
    assert forecast(scene([work(1, 1, -1)])) == {1: UNKNOWN}


def test_a_queue_without_room_starts_nothing_and_stops_no_other() -> None:
    found = forecast(scene([work(1, queue="gpu"), work(2)], room={"cpu": 1, "gpu": 0}))
    assert typical(found) == {1: math.inf, 2: 0}


def test_tenants_share_and_a_weight_counts() -> None:
    parties = [Party(1, held_s=0), Party(2, held_s=0)]
    works = [*(work(n) for n in range(1, 5)), *(work(n, 2) for n in range(11, 13))]
    found = typical(forecast(scene(works, parties=parties, run_slots=2, room={"cpu": 2})))
    assert found == {1: 0, 11: 0, 2: 10, 12: 10, 3: 20, 4: 20}


def test_priority_goes_first_and_members_take_turns() -> None:
    works = [work(1), work(2), work(3, member=7), work(4, priority=5)]
    found = typical(forecast(scene(works, run_slots=2, room={"cpu": 2})))
    assert found == {4: 0, 3: 0, 1: 10, 2: 10}


def test_a_retry_starts_when_its_pause_is_over_and_holds_its_lane() -> None:
    found = typical(forecast(scene([work(1, not_before_s=25.0), work(2, 1, 1), work(3)])))
    assert found == {3: 0, 1: 25, 2: 35}


def test_a_tenant_in_line_starts_when_a_holder_is_done() -> None:
    parties = [Party(1, held_s=0), Party(2)]
    found = typical(
        forecast(scene([work(1), work(2), work(3, 2)], parties=parties, user_slots=1, run_slots=9))
    )
    assert found == {1: 0, 2: 10, 3: 20}


def test_a_holder_with_more_jobs_than_are_looked_at_is_never_seen_done() -> None:
    parties = [Party(1, held_s=0, more=True), Party(2)]
    found = typical(forecast(scene([work(1), work(3, 2)], parties=parties, user_slots=1)))
    assert found == {1: 0, 3: math.inf}


def test_a_turn_that_is_over_drains_and_lines_up_again() -> None:
    parties = [Party(1, held_s=50), Party(2)]
    works = [*(work(n) for n in range(1, 5)), work(9, 2)]
    found = typical(
        forecast(scene(works, [busy(8)], parties=parties, user_slots=1, quantum_s=65.0))
    )
    assert found == {1: 10, 9: 20, 2: 30, 3: 40, 4: 50}


def test_a_turn_goes_on_while_nobody_waits() -> None:
    found = typical(forecast(scene([work(1), work(2)], quantum_s=5.0, user_slots=1)))
    assert found == {1: 0, 2: 10}


@given(
    st.lists(st.integers(1, 30), min_size=1, max_size=25),
    st.integers(1, 4),
    st.integers(1, 4),
)
def test_one_tenants_free_jobs_start_in_sequence_as_early_as_a_worker_is_free(
    seconds: list[int], slots: int, room: int
) -> None:
    works = [work(key, takes=Span(each, each, each)) for key, each in enumerate(seconds, start=1)]
    found = forecast(scene(works, run_slots=slots, room={"cpu": room}))
    free = [0.0] * min(slots, room)
    for key, each in enumerate(seconds, start=1):
        free.sort()
        assert found[key] == Span(free[0], free[0], free[0])
        free[0] += each


def test_a_thousand_jobs_are_played_in_less_than_a_second() -> None:
    import time

    works = [work(n, n % 3, *([n - 3] if n > 60 else []), member=n % 5) for n in range(1, 1001)]
    parties = [Party(n, held_s=0) for n in range(3)]
    began = time.process_time()
    found = forecast(scene(works, parties=parties, run_slots=8, room={"cpu": 8}))
    took_s = time.process_time() - began
    assert all(span.typical < math.inf for span in found.values())
    assert took_s < 1.0, f"{took_s:.2f} s"
