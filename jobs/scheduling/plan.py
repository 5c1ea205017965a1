"""Which waiting jobs start now: the fair order of R3 and R5, decided on plain values. Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Candidate:
    """A ready head of a branch. `member` is who submitted it."""

    job: int
    tenant: int
    queue: str
    priority: int
    sequence: int
    member: int = 0


@dataclass
class Holder:
    """A tenant that holds a user slot."""

    tenant: int
    weight: int = 1
    leases: int = 0
    members: dict[int, int] = field(default_factory=dict)  # leases of each member's jobs
    served: float = 0.0  # when it was last promoted; greater is later
    draining: bool = False  # its turn is over and others wait: it starts nothing new (R4)

    def take(self, candidate: Candidate, at: float) -> None:
        self.leases += 1
        self.members[candidate.member] = self.members.get(candidate.member, 0) + 1
        self.served = at


@dataclass
class Room:
    """How many more leases fit: in all, and in each queue."""

    slots: int
    queues: dict[str, int] = field(default_factory=dict)

    def fits(self, queue: str) -> bool:
        return self.slots > 0 and self.queues.get(queue, 0) > 0

    def take(self, queue: str) -> None:
        self.slots -= 1
        self.queues[queue] -= 1


Lines = list[deque[Candidate]]


def plan(holders: list[Holder], candidates: Iterable[Candidate], room: Room) -> list[Candidate]:
    """The jobs to promote, in the order in which they take the slots.

    Each next slot goes to the tenant with the fewest leases for its weight, then the one served
    longest ago; within a tenant to the highest priority, then the member with the fewest leases,
    then the lowest sequence.
    """
    lines = _lines(candidates)
    turns = [holder for holder in holders if not holder.draining]
    clock = max((holder.served for holder in holders), default=0.0)
    chosen: list[Candidate] = []
    while room.slots > 0:
        able = [(each, line) for each in turns if (line := _best(lines, each, room))]
        if not able:
            break
        holder, line = min(able, key=lambda pair: _turn(pair[0]))
        candidate = line.popleft()
        clock += 1.0
        holder.take(candidate, clock)
        room.take(candidate.queue)
        chosen.append(candidate)
    return chosen


def _lines(candidates: Iterable[Candidate]) -> dict[int, Lines]:
    """Of each tenant, its candidates of one queue, priority and member in sequence."""
    lines: dict[tuple[int, str, int, int], deque[Candidate]] = {}
    for each in sorted(candidates, key=lambda candidate: candidate.sequence):
        key = (each.tenant, each.queue, each.priority, each.member)
        lines.setdefault(key, deque()).append(each)
    by_tenant: dict[int, Lines] = {}
    for (tenant, *_), line in lines.items():
        by_tenant.setdefault(tenant, []).append(line)
    return by_tenant


def _best(lines: dict[int, Lines], holder: Holder, room: Room) -> deque[Candidate] | None:
    """The line of the tenant whose first candidate goes next, among those that fit."""

    def rank(line: deque[Candidate]) -> tuple[int, int, int]:
        first = line[0]
        return (-first.priority, holder.members.get(first.member, 0), first.sequence)

    able = [each for each in lines.get(holder.tenant, ()) if each and room.fits(each[0].queue)]
    return min(able, key=rank, default=None)


def _turn(holder: Holder) -> tuple[float, float, int]:
    return (holder.leases / holder.weight, holder.served, holder.tenant)
