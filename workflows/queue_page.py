"""`/queue/`: why is my job waiting? The gates as they stand now, and the waiting jobs behind each."""

from __future__ import annotations

import math
from dataclasses import dataclass

from django.http import HttpRequest, HttpResponse

from jobs import words
from jobs.scheduling.durations import Span
from jobs.scheduling.gates import EXACT_TO, Brief, House, QueueFacts
from jobs.scheduling.line import OWN_LOOKED, Line
from jobs.scheduling.overview import Entry, entries
from jobs.states import Reason
from tenants.identity import Identity
from tenants.pages import for_tenant, show
from workflows.pages import sliced

ROWS_A_PAGE = 50
NEXT = "next"
# from the nearest to its start to the farthest
GROUPS = {
    NEXT: ("next", "Nothing holds these: the scheduler's next pass starts them."),
    Reason.WORKER_LIMIT: (
        "a free worker",
        "These are ready and start as soon as a worker is free.",
    ),
    Reason.USER_LIMIT: ("your turn", "As many users as allowed are active; yours comes in line."),
    Reason.RETRY_WAIT: ("another try", "An attempt failed; the next one starts after a pause."),
    Reason.BRANCH: ("their branch", "Jobs of a branch run one at a time, in order."),
    Reason.DEPENDENCY: ("other jobs", "What they depend on is not done yet."),
    Reason.NO_WORKER: ("a worker", "Nobody serves their queue: an operator must start a worker."),
    Reason.PAUSED: ("somebody to resume them", "They, their branch or their queue are paused."),
    Reason.MAINTENANCE: ("the end of maintenance", "Nothing new starts until then."),
}
RANK = {gate: rank for rank, gate in enumerate(GROUPS)}
UNKNOWN_BY_GATE = {
    Reason.MAINTENANCE: "when maintenance ends",
    Reason.PAUSED: "when it is resumed",
    Reason.NO_WORKER: "when a worker comes",
}
NO_HISTORY = "not known yet"


@dataclass(frozen=True)
class Present:
    """A gate of the house as it is now."""

    name: str
    value: str
    limit: str
    hint: str
    holds: bool


@dataclass(frozen=True)
class QueueRow:
    """One waiting job."""

    id: str
    key: str
    type: str
    queue: str
    branch: str
    detail: str
    place: str
    start: str
    range: str
    behind: tuple[Brief, ...]


@dataclass(frozen=True)
class Group:
    """The waiting jobs of this page that one gate holds; `total` counts all pages."""

    gate: str
    title: str
    hint: str
    total: int
    rows: list[QueueRow]


@for_tenant
def queue_page(request: HttpRequest, who: Identity) -> HttpResponse:
    """The gates, then the waiting jobs: those that start next first."""
    line = Line(who.tenant)
    found = sorted(entries(line), key=order)
    listed = sliced(found, request, "jobs", ROWS_A_PAGE)
    context = {
        "present": presents(line.house),
        "groups": groups(listed.items, found),
        "jobs": listed,
        "waiting": len(found),
        "looked": None if line.complete else OWN_LOOKED,
        "now": line.now,
    }
    return show(request, who, "workflows/queue.html", context)


def gate_of(entry: Entry) -> str:
    return entry.gate.reason if entry.gate else NEXT


def order(entry: Entry) -> tuple[int, float, int]:
    return (RANK[gate_of(entry)], entry.start.typical, entry.row.sequence)


def groups(shown: list[Entry], found: list[Entry]) -> list[Group]:
    """The entries of one page by gate, in their order."""
    totals: dict[str, int] = {}
    for entry in found:
        totals[gate_of(entry)] = totals.get(gate_of(entry), 0) + 1
    by_gate: dict[str, list[QueueRow]] = {}
    for entry in shown:
        by_gate.setdefault(gate_of(entry), []).append(row_of(entry))
    return [Group(gate, *GROUPS[gate], totals[gate], rows) for gate, rows in by_gate.items()]


def row_of(entry: Entry) -> QueueRow:
    row, gate = entry.row, entry.gate
    return QueueRow(
        id=str(row.uuid),
        key=row.key,
        type=words.job_type(row.job_type),
        queue=row.queue,
        branch="" if row.own_branch else row.branch_name,
        detail=gate.detail if gate else "",
        place=f"{entry.position:,}" if entry.position <= EXACT_TO else f"after {EXACT_TO:,}",
        start=start_in_words(entry),
        range=range_in_words(entry.start),
        behind=tuple(gate.blocking[:3]) if gate else (),
    )


def start_in_words(entry: Entry) -> str:
    if math.isinf(entry.start.typical):
        return UNKNOWN_BY_GATE.get(entry.gate.reason, NO_HISTORY) if entry.gate else NO_HISTORY
    return "now" if entry.start.typical < 1 else f"in {about(entry.start.typical)}"


def range_in_words(start: Span) -> str:
    """The edges of the estimate; empty where it has no width."""
    if math.isinf(start.typical) or start.high - start.low < 1:
        return ""
    if math.isinf(start.high):
        return f"{about(start.low)} or more"
    low, high = about(start.low), about(start.high)
    return "" if low == high else f"{low} – {high}"


def about(seconds: float) -> str:
    """A duration in one unit: an estimate claims no more."""
    if seconds < 90:
        return f"{math.ceil(seconds)} s"
    if seconds < 5400:
        return f"{round(seconds / 60)} min"
    return f"{seconds / 3600:.1f} h"


def presents(house: House) -> list[Present]:
    """The gates that are the same for every job."""
    on = house.maintenance is not None
    found = [
        Present(
            "user slots taken",
            str(house.user_slots_taken),
            str(house.user_slots),
            _turn(house),
            house.turn_is_over,
        ),
        Present(
            "jobs at work",
            f"{house.run_slots_busy:,}",
            f"{house.run_slots:,}",
            "all places are taken" if house.run_slots_busy >= house.run_slots else "",
            house.run_slots_busy >= house.run_slots,
        ),
        *(_queue(queue) for queue in house.queues.values()),
    ]
    if on or house.tenant_paused:
        note = house.maintenance or "nothing new starts"
        what = ("maintenance", "on", note) if on else ("you", "paused", "by an operator")
        found.insert(0, Present(what[0], what[1], "", what[2], True))
    else:
        found.append(Present("maintenance", "off", "", "", False))
    return found


def _turn(house: House) -> str:
    if house.turn_is_over:
        return "your turn is over: others wait"
    if house.holds_slot:
        return "one is yours"
    if house.ahead < house.user_slots - house.user_slots_taken:
        return "one is free for you"
    users = "user" if house.ahead == 1 else "users"
    return f"{min(house.ahead, EXACT_TO):,} {users} before you"


def _queue(queue: QueueFacts) -> Present:
    if queue.paused:
        hint = "paused by an operator"
    elif not queue.workers:
        hint = "no live worker"
    else:
        hint = f"{queue.workers:,} live worker{'' if queue.workers == 1 else 's'}"
    held = queue.paused or queue.busy >= queue.room
    return Present(f"busy in queue {queue.name}", f"{queue.busy:,}", f"{queue.room:,}", hint, held)
