"""What stands before every waiting job of a tenant, out of the rows that a Line read: no queries."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

from jobs.scheduling.ahead import SHOWN, leases_of_members, mine_running
from jobs.scheduling.durations import UNKNOWN, Span
from jobs.scheduling.explain import can_be_known
from jobs.scheduling.gates import Gate, Waiting, gates, holding, members_before, place
from jobs.scheduling.line import Line, Row
from jobs.shapes import moment
from jobs.states import FIRST_HEAD, JobState


@dataclass(frozen=True)
class Entry:
    """A waiting job: the gate that holds it (None: the next pass takes it), its place, its start."""

    row: Row
    gate: Gate | None
    position: int
    start: Span


def entries(line: Line) -> list[Entry]:
    """Every waiting job that was read, in sequence."""
    return [_entry(row, job, line) for row, job in _everybody(line)]


def _entry(row: Row, job: Waiting, line: Line) -> Entry:
    gate = holding(gates(job, line.house))
    start = line.start_of(row.pk) if can_be_known(gate) else UNKNOWN
    return Entry(row, gate, place(job, line.house), start)


def _everybody(line: Line) -> list[tuple[Row, Waiting]]:
    rows = {row.pk: row for row in line.rows}
    lanes = _lanes(line.rows)
    above = _above(line)
    return [
        (
            row,
            Waiting(
                state=JobState(row.state),
                queue=row.queue,
                branch=row.branch_name,
                branch_paused=row.branch_paused,
                reason=row.reason,
                error=row.error,
                failures=row.failures,
                max_attempts=row.max_attempts,
                retry_at=moment(row.retry_at),
                upstream=[
                    rows[pk].brief() for pk in line.edges.get(row.pk, ())[:SHOWN] if pk in rows
                ],
                upstream_left=row.upstream_left,
                upstream_total=row.upstream_left,
                upstream_all=len(above[row.pk]),
                lane_first=lanes[row.branch][0].brief(),
                lane_ahead=lanes[row.branch].index(row),
                line_ahead=_line_ahead(row, line) if row.state >= FIRST_HEAD else 0,
                mine_running=mine_running(row.queue, line),
            ),
        )
        for row in sorted(line.rows, key=lambda row: row.sequence)
        if row.waits
    ]


def _lanes(rows: list[Row]) -> dict[int, list[Row]]:
    """The jobs of each lane, its head first."""
    found: dict[int, list[Row]] = defaultdict(list)
    for row in sorted(rows, key=lambda row: (row.state < FIRST_HEAD, row.sequence)):
        found[row.branch].append(row)
    return found


def _above(line: Line) -> dict[int, set[int]]:
    """All unfinished jobs above each one: edges go up in sequence, so one walk is enough."""
    found: dict[int, set[int]] = {}
    for row in sorted(line.rows, key=lambda row: row.sequence):
        upstream = line.edges.get(row.pk, ())
        found[row.pk] = set(upstream).union(*(found.get(pk, ()) for pk in upstream))
    return found


def _line_ahead(row: Row, line: Line) -> int:
    ready = [
        each
        for each in line.rows
        if each.state == JobState.READY and each.queue == row.queue and each.pk != row.pk
    ]
    higher = sum(each.priority > row.priority for each in ready)
    others: dict[int, list[int]] = defaultdict(list)
    for each in sorted(ready, key=lambda each: each.sequence):
        if each.priority == row.priority:
            others[each.member].append(each.sequence)
    mine = sum(sequence < row.sequence for sequence in others.pop(row.member, ()))
    leases = leases_of_members(line)
    return higher + mine + members_before(row.member, mine, row.sequence, others, leases)
