"""Which waiting jobs start now: the fair order of R3 and R5, decided on plain values. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Candidate:
    """A ready head of a branch."""

    job: int
    tenant: int
    queue: str
    priority: int
    sequence: int


@dataclass
class Holder:
    """A tenant that holds a user slot."""

    tenant: int
    weight: int = 1
    leases: int = 0
    served: float = 0.0  # seconds since the epoch of its last promotion
    draining: bool = False  # its turn is over and others wait: it starts nothing new (R4)


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


def plan(holders: list[Holder], candidates: list[Candidate], room: Room) -> list[int]:
    """The jobs to promote, in the order in which they take the slots.

    Each next slot goes to the tenant with the fewest leases for its weight, then the one served
    longest ago; within a tenant to the highest priority, then the lowest sequence.
    """
    waiting = _by_tenant(candidates)
    turns = {holder.tenant: holder for holder in holders if not holder.draining}
    clock = max((holder.served for holder in holders), default=0.0)
    chosen: list[int] = []
    while room.slots > 0:
        able = [(turns[tenant], best) for tenant in turns if (best := _best(waiting, tenant, room))]
        if not able:
            return chosen
        holder, candidate = min(able, key=lambda pair: _turn(pair[0]))
        clock += 1.0
        holder.leases += 1
        holder.served = clock
        room.take(candidate.queue)
        waiting[holder.tenant].remove(candidate)
        chosen.append(candidate.job)
    return chosen


def _by_tenant(candidates: list[Candidate]) -> dict[int, list[Candidate]]:
    waiting: dict[int, list[Candidate]] = {}
    for candidate in sorted(candidates, key=lambda each: (-each.priority, each.sequence)):
        waiting.setdefault(candidate.tenant, []).append(candidate)
    return waiting


def _best(waiting: dict[int, list[Candidate]], tenant: int, room: Room) -> Candidate | None:
    return next((each for each in waiting.get(tenant, ()) if room.fits(each.queue)), None)


def _turn(holder: Holder) -> tuple[float, float, int]:
    return (holder.leases / holder.weight, holder.served, holder.tenant)
