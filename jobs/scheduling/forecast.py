"""When waiting jobs would start if nothing new came: the rules played forward on plain values. Pure.

It plays R1-R5 with the plan itself, three times: with short, typical and long durations. What
takes nobody knows how long never ends here, so that what waits for it has no forecast.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import IntEnum

from jobs.scheduling.durations import Span
from jobs.scheduling.plan import Candidate, Holder, Room, plan

RETRY_HOLDS_SLOT_S = 30.0
Lines = dict[tuple[str, int, int], list[tuple[int, int]]]


@dataclass(frozen=True)
class Work:
    """A waiting job. `needs` must end before it: upstream jobs and the one before it in its lane;
    one that is not in the scene never ends."""

    key: int
    tenant: int
    queue: str
    priority: int
    member: int
    sequence: int
    takes: Span
    needs: frozenset[int] = frozenset()
    not_before_s: float = 0.0

    @property
    def line(self) -> tuple[str, int, int]:
        """Jobs of one line go in sequence."""
        return (self.queue, self.priority, self.member)


@dataclass(frozen=True)
class Running:
    """A job with a lease."""

    key: int
    tenant: int
    queue: str
    member: int
    left: Span


@dataclass(frozen=True)
class Party:
    """A tenant that holds a user slot, or waits for one in the order of the scene.

    held_s  since when it holds one; None while it waits
    more    it has more jobs than are in the scene, so nobody knows when it is done
    """

    tenant: int
    weight: int = 1
    served: float = 0.0
    held_s: float | None = None
    more: bool = False


@dataclass(frozen=True)
class Scene:
    """All that the forecast looks at."""

    works: list[Work]
    running: list[Running]
    parties: list[Party]
    user_slots: int
    run_slots: int
    room: Mapping[str, int]  # leases that each queue may have at once
    quantum_s: float = 0.0


def forecast(scene: Scene) -> dict[int, Span]:
    """Seconds until each waiting job starts; infinite where it can not be known."""
    plays = [_Play(scene, which).starts() for which in range(3)]
    return {
        work.key: Span(*sorted(play.get(work.key, math.inf) for play in plays))
        for work in scene.works
    }


class _Now(IntEnum):
    """What happens at a moment of the play, in this order."""

    ENDS = 0
    IS_READY = 1
    TURN_IS_OVER = 2


@dataclass
class _Tenant:
    """A tenant in the play."""

    party: Party
    holder: Holder
    lines: Lines = field(default_factory=dict)
    acquired_s: float | None = None  # None: holds no user slot
    soon: list[float] = field(default_factory=list)  # when its back-offs are over

    def can_run(self, now_s: float) -> bool:
        return any(self.lines.values()) or any(
            0 <= at - now_s <= RETRY_HOLDS_SLOT_S for at in self.soon
        )


class _Play:
    """One run of the rules. `which`: the durations to take, short, typical or long."""

    def __init__(self, scene: Scene, which: int) -> None:
        self.scene = scene
        self.which = which
        self.now_s = 0.0
        self.started: dict[int, float] = {}
        self.works = {work.key: work for work in scene.works}
        self.waits = {work.key: len(work.needs) for work in scene.works}
        self.below: dict[int, list[int]] = defaultdict(list)
        self.events: list[tuple[float, int, int]] = []
        self.busy: dict[int, tuple[int, str, int]] = {}
        self.held: Counter[str] = Counter()
        self.tenants = {
            party.tenant: _Tenant(party, Holder(party.tenant, party.weight, served=party.served))
            for party in scene.parties
        }
        self.in_line = [party.tenant for party in scene.parties if party.held_s is None]
        self._set_up()

    def _set_up(self) -> None:
        for party in self.scene.parties:
            if party.held_s is not None:
                self._hold(party.tenant, -party.held_s)
        for work in self.scene.works:
            for need in work.needs:
                self.below[need].append(work.key)
            if not work.needs:
                self._ready(work)
        for each in self.scene.running:
            self._occupy(each.key, each.tenant, each.queue, each.member, each.left)

    def starts(self) -> dict[int, float]:
        """Play until nothing more is known to happen."""
        while True:
            self._settle()
            while self._promote():
                pass
            if not self.events or math.isinf(self.events[0][0]):
                return self.started
            self.now_s = self.events[0][0]
            while self.events and self.events[0][0] <= self.now_s:
                _, what, key = heapq.heappop(self.events)
                self._happen(_Now(what), key)

    def _happen(self, what: _Now, key: int) -> None:
        if what is _Now.ENDS:
            self._end(key)
        elif what is _Now.IS_READY:
            self._ready(self.works[key])

    # --- jobs ----------------------------------------------------------------------------

    def _ready(self, work: Work) -> None:
        tenant = self.tenants.get(work.tenant)
        if tenant is None:
            return
        if work.not_before_s > self.now_s:
            tenant.soon.append(work.not_before_s)
            heapq.heappush(self.events, (work.not_before_s, _Now.IS_READY, work.key))
            return
        line = tenant.lines.setdefault(work.line, [])
        heapq.heappush(line, (work.sequence, work.key))

    def _occupy(self, key: int, tenant: int, queue: str, member: int, left: Span) -> None:
        self.busy[key] = (tenant, queue, member)
        self.held[queue] += 1
        heapq.heappush(self.events, (self.now_s + left[self.which], _Now.ENDS, key))
        if tenant in self.tenants:
            holder = self.tenants[tenant].holder
            holder.leases += 1
            holder.members[member] = holder.members.get(member, 0) + 1

    def _end(self, key: int) -> None:
        tenant, queue, member = self.busy.pop(key)
        self.held[queue] -= 1
        if tenant in self.tenants:
            holder = self.tenants[tenant].holder
            holder.leases -= 1
            holder.members[member] -= 1
        for below in self.below.pop(key, ()):
            self.waits[below] -= 1
            if not self.waits[below]:
                self._ready(self.works[below])

    def _promote(self) -> int:
        """One pass over the first few of each line. How many start now."""
        room = self._room()
        first = list(self._first(room))
        holders = [self._copy(tenant) for tenant in self._holding()]
        chosen = plan(holders, first, room) if first else []
        for candidate in chosen:
            tenant = self.tenants[candidate.tenant]
            line = (candidate.queue, candidate.priority, candidate.member)
            heapq.heappop(tenant.lines[line])
            self.started[candidate.job] = self.now_s
            work = self.works[candidate.job]
            self._occupy(work.key, work.tenant, work.queue, work.member, work.takes)
        for after in holders if chosen else ():
            self.tenants[after.tenant].holder.served = after.served
        return len(chosen)

    def _room(self) -> Room:
        queues = {name: max(0, room - self.held[name]) for name, room in self.scene.room.items()}
        return Room(max(0, self.scene.run_slots - len(self.busy)), queues)

    def _first(self, room: Room) -> Iterable[Candidate]:
        for pk in self._holding():
            for (queue, priority, member), line in self.tenants[pk].lines.items():
                places = min(room.slots, room.queues.get(queue, 0))
                for sequence, key in heapq.nsmallest(places, line) if places else ():
                    yield Candidate(key, pk, queue, priority, sequence, member)

    def _copy(self, pk: int) -> Holder:
        """The plan counts on its own copy; leases are counted where jobs start and end."""
        holder = self.tenants[pk].holder
        return Holder(
            pk,
            holder.weight,
            holder.leases,
            dict(holder.members),
            holder.served,
            draining=self._turn_is_over(pk) and self._others_wait(),
        )

    # --- user slots ----------------------------------------------------------------------

    def _holding(self) -> list[int]:
        return [pk for pk, tenant in self.tenants.items() if tenant.acquired_s is not None]

    def _hold(self, pk: int, since_s: float) -> None:
        self.tenants[pk].acquired_s = since_s
        if self.scene.quantum_s:
            over_s = max(0.0, since_s + self.scene.quantum_s)
            heapq.heappush(self.events, (over_s, _Now.TURN_IS_OVER, pk))

    def _settle(self) -> None:
        """Slots of tenants that are done, or whose turn is over, go to those waiting longest."""
        for pk in self._holding():
            if self._gives_up(pk):
                self.tenants[pk].acquired_s = None
                self.in_line.append(pk)
        free = self.scene.user_slots - len(self._holding())
        able = (pk for pk in list(self.in_line) if self.tenants[pk].can_run(self.now_s))
        for pk in itertools.islice(able, max(0, free)):
            self.in_line.remove(pk)
            self._hold(pk, self.now_s)

    def _gives_up(self, pk: int) -> bool:
        tenant = self.tenants[pk]
        if tenant.holder.leases:
            return False
        if tenant.can_run(self.now_s) or tenant.party.more:
            return self._turn_is_over(pk) and self._others_wait()
        return True

    def _turn_is_over(self, pk: int) -> bool:
        since_s = self.tenants[pk].acquired_s
        quantum_s = self.scene.quantum_s
        return since_s is not None and 0 < quantum_s <= self.now_s - since_s + 1e-9

    def _others_wait(self) -> bool:
        return any(self.tenants[pk].can_run(self.now_s) for pk in self.in_line)
