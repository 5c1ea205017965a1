"""The pure plan under random histories, against an oracle that looks at every job for every slot."""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import dataclass, field

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from jobs.scheduling.plan import Candidate, Holder, Room, plan

TENANTS = range(1, 4)
MEMBERS = range(3)
QUEUES = ("cpu", "gpu")
SLOTS = 5
CAPACITY = {"cpu": 4, "gpu": 2}
RULES = settings(
    derandomize=True,
    print_blob=True,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)


@dataclass
class Share:
    """What the oracle knows of a tenant."""

    weight: int = 1
    served: float = 0.0
    draining: bool = False
    held: Counter[int] = field(default_factory=Counter)  # leases of each member

    @property
    def leases(self) -> int:
        return self.held.total()


def oracle(
    shares: dict[int, Share], waiting: list[Candidate], free: int, room: dict[str, int]
) -> list[Candidate]:
    """R3 and R5 word by word: for each slot the best of all jobs by the whole order."""
    shares = {
        tenant: Share(share.weight, share.served, share.draining, share.held.copy())
        for tenant, share in shares.items()
    }
    left, room, chosen = list(waiting), dict(room), []
    ticks = itertools.count(1)
    latest = max((share.served for share in shares.values()), default=0.0)
    while free:
        able = [
            job for job in left if room.get(job.queue, 0) > 0 and not shares[job.tenant].draining
        ]
        if not able:
            break

        def order(job: Candidate) -> tuple[float, ...]:
            share = shares[job.tenant]
            fair = (share.leases / share.weight, share.served, job.tenant)
            return (*fair, -job.priority, share.held[job.member], job.sequence)

        best = min(able, key=order)
        shares[best.tenant].held[best.member] += 1
        shares[best.tenant].served = latest + next(ticks)
        room[best.queue] -= 1
        free -= 1
        left.remove(best)
        chosen.append(best)
    return chosen


class Plans(RuleBasedStateMachine):
    """Ready jobs come, passes give them slots, leases end. No rows: plain values."""

    def __init__(self) -> None:
        super().__init__()
        self.shares = {tenant: Share() for tenant in TENANTS}
        self.ready: list[Candidate] = []
        self.running: list[Candidate] = []
        self.sequences = itertools.count(1)
        self.clock = itertools.count(1)

    @rule(
        tenant=st.sampled_from(TENANTS),
        member=st.sampled_from(MEMBERS),
        queue=st.sampled_from(QUEUES),
        priority=st.integers(-1, 1),
        count=st.integers(1, 6),
    )
    def become_ready(self, tenant: int, member: int, queue: str, priority: int, count: int) -> None:
        for sequence in itertools.islice(self.sequences, count):
            self.ready.append(Candidate(sequence, tenant, queue, priority, sequence, member))

    @rule(tenant=st.sampled_from(TENANTS), weight=st.integers(1, 4))
    def weigh(self, tenant: int, weight: int) -> None:
        self.shares[tenant].weight = weight

    @rule(tenant=st.sampled_from(TENANTS), draining=st.booleans())
    def drain(self, tenant: int, draining: bool) -> None:
        self.shares[tenant].draining = draining

    @rule(which=st.lists(st.integers(0, SLOTS), max_size=SLOTS))
    def end(self, which: list[int]) -> None:
        for place in which:
            if place < len(self.running):
                job = self.running.pop(place)
                self.shares[job.tenant].held[job.member] -= 1

    @rule(shuffled=st.randoms(use_true_random=False))
    def decide(self, shuffled: object) -> None:
        """One pass. The order in which rows happen to be read must not matter."""
        free, room = self._room()
        expected = oracle(self.shares, self.ready, free, room)
        candidates, holders = list(self.ready), self._holders()
        shuffled.shuffle(candidates)  # type: ignore[attr-defined]
        shuffled.shuffle(holders)  # type: ignore[attr-defined]
        chosen = plan(holders, candidates, Room(free, dict(room)))
        assert chosen == expected
        for job in chosen:
            self.ready.remove(job)
            self.running.append(job)
            self.shares[job.tenant].held[job.member] += 1
            self.shares[job.tenant].served = float(next(self.clock))
        assert plan(self._holders(), self.ready, Room(*self._room())) == [], "one pass settles"

    @rule()
    def decide_on_a_window(self) -> None:
        """The pass reads the first few of each (tenant, queue, priority, member): that is enough."""
        free, room = self._room()
        window: list[Candidate] = []
        taken: Counter[tuple[int, str, int, int]] = Counter()
        for job in sorted(self.ready, key=lambda each: each.sequence):
            group = (job.tenant, job.queue, job.priority, job.member)
            if taken[group] < min(free, room.get(job.queue, 0)):
                taken[group] += 1
                window.append(job)
        whole = plan(self._holders(), self.ready, Room(free, dict(room)))
        assert plan(self._holders(), window, Room(free, dict(room))) == whole

    @invariant()
    def the_limits_hold(self) -> None:
        assert len(self.running) <= SLOTS
        for queue, held in Counter(job.queue for job in self.running).items():
            assert held <= CAPACITY[queue]
        assert not {job.job for job in self.ready} & {job.job for job in self.running}

    def _room(self) -> tuple[int, dict[str, int]]:
        held = Counter(job.queue for job in self.running)
        return SLOTS - len(self.running), {q: CAPACITY[q] - held[q] for q in QUEUES}

    def _holders(self) -> list[Holder]:
        return [
            Holder(
                tenant,
                weight=share.weight,
                leases=share.leases,
                members=dict(share.held),
                served=share.served,
                draining=share.draining,
            )
            for tenant, share in self.shares.items()
        ]


def test_the_plan_is_what_the_rules_say() -> None:
    run_state_machine_as_test(
        Plans, settings=settings(RULES, max_examples=150, stateful_step_count=30)
    )
