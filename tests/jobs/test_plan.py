"""The fair order of R3 and R5, on plain values."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from jobs.scheduling.plan import Candidate, Holder, Room
from jobs.scheduling.plan import plan as decide


def candidates(tenant: int, count: int, queue: str = "cpu", first: int = 1) -> list[Candidate]:
    return [Candidate(tenant * 1000 + n, tenant, queue, 0, n) for n in range(first, first + count)]


def plan(holders: list[Holder], waiting: list[Candidate], room: Room) -> list[int]:
    return [candidate.job for candidate in decide(holders, waiting, room)]


def test_one_tenant_takes_all_free_slots_in_sequence() -> None:
    assert plan([Holder(1)], candidates(1, 5), Room(3, {"cpu": 3})) == [1001, 1002, 1003]


def test_the_next_slot_goes_to_the_tenant_with_the_fewest_leases() -> None:
    holders = [Holder(1, leases=2), Holder(2)]
    chosen = plan(holders, candidates(1, 3) + candidates(2, 3), Room(3, {"cpu": 3}))
    assert chosen == [2001, 2002, 1001]


def test_a_weight_of_two_is_worth_two_leases() -> None:
    holders = [Holder(1, weight=2), Holder(2)]
    chosen = plan(holders, candidates(1, 9) + candidates(2, 9), Room(6, {"cpu": 6}))
    assert sum(job < 2000 for job in chosen) == 4


def test_among_equals_the_one_served_longest_ago_is_first() -> None:
    holders = [Holder(1, served=20.0), Holder(2, served=10.0)]
    assert plan(holders, candidates(1, 1) + candidates(2, 1), Room(1, {"cpu": 1})) == [2001]


def test_priority_comes_before_sequence() -> None:
    urgent = Candidate(9, 1, "cpu", 5, 99)
    assert plan([Holder(1)], [*candidates(1, 2), urgent], Room(1, {"cpu": 1})) == [9]


def test_one_members_many_jobs_do_not_stand_before_anothers_one() -> None:
    late = Candidate(9, 1, "cpu", 0, 99, member=2)
    assert plan([Holder(1)], [*candidates(1, 5), late], Room(2, {"cpu": 2})) == [1001, 9]


def test_a_member_who_holds_leases_waits_for_those_who_hold_none() -> None:
    mine = [Candidate(n, 1, "cpu", 0, n, member=7) for n in range(1, 3)]
    other = Candidate(9, 1, "cpu", 0, 99, member=8)
    holder = Holder(1, leases=1, members={7: 1})
    assert plan([holder], [*mine, other], Room(1, {"cpu": 1})) == [9]


def test_a_full_queue_does_not_stop_the_other() -> None:
    waiting = candidates(1, 2, "gpu") + candidates(1, 1, "cpu", first=50)
    assert plan([Holder(1)], waiting, Room(4, {"gpu": 0, "cpu": 4})) == [1050]


def test_a_draining_tenant_starts_nothing() -> None:
    assert plan([Holder(1, draining=True)], candidates(1, 2), Room(4, {"cpu": 4})) == []


@given(
    st.lists(st.integers(0, 6), min_size=1, max_size=4),
    st.lists(st.integers(0, 4), min_size=4, max_size=4),
    st.integers(0, 8),
)
def test_no_slot_stays_free_while_a_job_fits_and_no_tenant_runs_ahead(
    waiting: list[int], leases: list[int], free: int
) -> None:
    holders = [Holder(n, leases=leases[n]) for n in range(len(waiting))]
    jobs = [job for n, count in enumerate(waiting) for job in candidates(n, count)]
    chosen = plan(holders, jobs, Room(free, {"cpu": free}))
    assert len(chosen) == min(free, len(jobs))
    left = {n: count - sum(job // 1000 == n for job in chosen) for n, count in enumerate(waiting)}
    for mine in holders:
        for other in holders:
            got = sum(job // 1000 == other.tenant for job in chosen)
            if left[mine.tenant] and got:
                assert other.leases <= mine.leases + 1
