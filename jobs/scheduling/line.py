"""What stands before waiting jobs, read from rows: a bounded number of queries over bounded rows.

Every query reads through an index that holds live rows alone and stops after so many of them, so
it costs the same whatever waits and whatever ended before (R12, R13).
"""

from __future__ import annotations

import datetime as dt
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from django.conf import settings
from django.utils import timezone

from jobs import sql
from jobs.models import Edge, Job, Lease, Maintenance, UserSlot, Worker
from jobs.scheduling import slots
from jobs.scheduling.durations import UNKNOWN, Guess, Span, left_by_progress
from jobs.scheduling.estimate import History
from jobs.scheduling.forecast import Party, Running, Scene, Work, forecast
from jobs.scheduling.gates import (
    EXACT_TO,
    Brief,
    House,
    QueueFacts,
)
from jobs.states import FIRST_ACTIVE, FIRST_HEAD, FIRST_TERMINAL, JobState
from tenants.models import Tenant

OWN_LOOKED = 700  # jobs of the tenant that asks, and
OTHERS_LOOKED = 300  # of all others together: what the forecast plays with
LINE_LOOKED = 20  # tenants of the line
EDGES_LOOKED = 5000
TRUSTED_PROGRESS = 0.1
NEVER = frozenset({-1})  # a need that no forecast meets

OLDEST = f"""
    SELECT * FROM (SELECT id FROM jobs_job WHERE tenant_id = %s AND state < {FIRST_TERMINAL:d}
        ORDER BY id LIMIT %s) AS t{{n}}
"""


class Row(NamedTuple):
    """A live job, as the forecast and the queue page need it."""

    pk: int
    tenant: int
    uuid: object
    key: str
    workflow: object
    job_type: str
    queue: str
    priority: int
    member: int
    sequence: int
    branch: int
    branch_name: str
    own_branch: bool
    branch_paused: bool
    state: int
    reason: str
    error: str
    failures: int
    max_attempts: int
    attempt: int
    retry_at: dt.datetime | None
    started_at: dt.datetime | None
    upstream_left: int
    progress: float | None
    tiles: int | None

    @property
    def waits(self) -> bool:
        return self.state < FIRST_ACTIVE

    def brief(self) -> Brief:
        return Brief(str(self.uuid), self.key, JobState(self.state).public)


FIELDS = [
    "pk",
    "tenant_id",
    "uuid",
    "key",
    "workflow_id",
    "job_type",
    "queue",
    "priority",
    "member",
    "sequence",
    "branch_id",
    "branch__name",
    "own_branch",
    "branch__paused",
    "state",
    "reason",
    "error",
    "failures",
    "max_attempts",
    "attempt",
    "retry_at",
    "started_at",
    "upstream_left",
    "progress_row__progress",
    "progress_row__tiles_total",
]


class Line:
    """The waiting jobs of one tenant and all that stands before them, read once."""

    def __init__(self, tenant: Tenant) -> None:
        self.now = timezone.now()
        # an unsaved tenant never wrote and has no jobs; others as they are now
        self.tenant = Tenant.objects.get(pk=tenant.pk) if tenant.pk else tenant
        self.queues = slots.read_bounds().queues
        self.leases, self.running = self._leases()
        self.holders = list(
            UserSlot.objects.filter(holder__isnull=False).select_related("holder").order_by("pk")
        )
        self.in_line = list(
            Tenant.objects.filter(waiting_since__isnull=False, paused=False).order_by(
                "waiting_since", "pk"
            )[: EXACT_TO + 1]
        )
        self.house = self._house()
        found = self._live([self.tenant.pk] if self.tenant.pk else [], OWN_LOOKED + 1)
        self.rows = found[:OWN_LOOKED]
        self.complete = len(found) <= OWN_LOOKED
        self.edges: dict[int, list[int]] = {}
        self.starts = self._starts()

    def start_of(self, pk: int) -> Span:
        """Seconds until this job starts; infinite where that can not be known."""
        return self.starts.get(pk, UNKNOWN)

    # --- present values ------------------------------------------------------------------

    def _leases(self) -> tuple[list[Row], list[Row]]:
        """The job of every lease, and every job that has one. Who only helps gives way to others, so
        the forecast counts helpers as idle; the rules count their leases."""
        held = Lease.objects.across_tenants("a worker becomes free whoever uses it")
        rows = held.order_by("pk").values_list("shard", *(f"job__{name}" for name in FIELDS))
        found = [(shard, Row(*row)) for shard, *row in rows]
        return [row for _, row in found], [row for shard, row in found if not shard]

    def _house(self) -> House:
        slot = next((each for each in self.holders if each.holder_id == self.tenant.pk), None)
        waiting = [each.pk for each in self.in_line if each.pk != self.tenant.pk]
        pks = [each.pk for each in self.in_line]
        quantum_s = float(settings.ACTIVE_USER_QUANTUM_S)
        helping = Counter(row.queue for row in self.leases)
        helping.subtract(row.queue for row in self.running)
        note = Maintenance.objects.values_list("note", flat=True).first()
        return House(
            queues={
                each.name: QueueFacts(
                    each.name,
                    room=min(each.capacity, each.workers),
                    busy=each.leases,
                    workers=each.workers,
                    paused=each.paused,
                    helping=helping[each.name],
                )
                for each in self.queues
            },
            run_slots=settings.MAX_WORKERS,
            run_slots_busy=len(self.leases),
            user_slots=settings.MAX_ACTIVE_USERS,
            user_slots_taken=len(self.holders),
            holds_slot=slot is not None,
            maintenance=note,
            tenant_paused=self.tenant.paused,
            turn_is_over=slot is not None and bool(waiting) and 0 < quantum_s < self._held_s(slot),
            ahead=pks.index(self.tenant.pk) if self.tenant.pk in pks else len(pks),
            quantum_s=quantum_s,
        )

    def _held_s(self, slot: UserSlot) -> float:
        since = slot.acquired_at or self.now
        return (self.now - since).total_seconds()

    # --- the scene -----------------------------------------------------------------------

    def _live(self, tenants: Sequence[int], each: int) -> list[Row]:
        """The oldest live jobs of each of these tenants."""
        parts = [OLDEST.format(n=number) for number in range(len(tenants))]
        values = [value for pk in tenants for value in (pk, each)]
        ids = [pk for (pk,) in sql.rows(" UNION ALL ".join(parts), values)] if parts else []
        jobs = Job.objects.across_tenants("the forecast plays slot holders together")
        return [Row(*row) for row in jobs.filter(pk__in=ids).order_by("pk").values_list(*FIELDS)]

    def _starts(self) -> dict[int, Span]:
        if not self.rows or self.house.maintenance is not None or self.house.tenant_paused:
            self.edges = self._edges(self.rows)
            return {}
        parties, others = self._parties()
        rows = [*self.rows, *others]
        self.edges = self._edges(rows)
        self.history = History({row.job_type for row in [*rows, *self.running]})
        self.devices = self._devices()
        scene = Scene(
            works=[*self._works(self.rows, complete=self.complete), *self._works(others)],
            running=[self._running(row) for row in self.running],
            parties=parties,
            user_slots=settings.MAX_ACTIVE_USERS,
            run_slots=settings.MAX_WORKERS,
            room={
                name: 0 if queue.paused else queue.room for name, queue in self.house.queues.items()
            },
            quantum_s=self.house.quantum_s,
        )
        return forecast(scene)

    def _parties(self) -> tuple[list[Party], list[Row]]:
        """Who plays: the slot holders, then the line; and the jobs of all but the asking tenant."""
        holding = {
            slot.holder_id: (slot.holder, self._held_s(slot))
            for slot in self.holders
            if slot.holder is not None and not slot.holder.paused
        }
        line: list[Tenant] = self.in_line[:LINE_LOOKED]
        if self.tenant.pk not in {*holding, *(each.pk for each in self.in_line)}:
            line = [*line, self.tenant] if len(self.in_line) <= LINE_LOOKED else line
        playing = [*holding.values(), *((each, None) for each in line)]
        others = [each.pk for each, _ in playing if each.pk != self.tenant.pk]
        each_looked = max(OTHERS_LOOKED // max(len(others), 1), 5)
        found: dict[int, list[Row]] = defaultdict(list)
        for row in self._live(others, each_looked + 1):
            found[row.tenant].append(row)
        parties = [
            Party(
                tenant.pk,
                tenant.weight,
                tenant.served_at.timestamp() if tenant.served_at else 0.0,
                held_s,
                more=len(found[tenant.pk]) > each_looked
                if tenant.pk != self.tenant.pk
                else not self.complete,
            )
            for tenant, held_s in playing
        ]
        return parties, [row for rows in found.values() for row in rows[:each_looked]]

    def _edges(self, rows: Iterable[Row]) -> dict[int, list[int]]:
        """The unfinished upstream jobs of those that wait for any."""
        waiting = [row.pk for row in rows if row.upstream_left and row.waits]
        if not waiting:
            return {}
        edges = Edge.objects.across_tenants("edges of live jobs that were read already").filter(
            downstream__in=waiting, upstream__state__lt=int(FIRST_TERMINAL)
        )
        found: dict[int, list[int]] = defaultdict(list)
        for downstream, upstream in edges.values_list("downstream_id", "upstream_id")[
            :EDGES_LOOKED
        ]:
            found[downstream].append(upstream)
        return found

    def _devices(self) -> dict[str, list[str]]:
        found: dict[str, list[str]] = defaultdict(list)
        for queue, device in Worker.objects.live().values_list("queue", "device").distinct():
            found[queue].append(device)
        return found

    def _guess(self, row: Row) -> Guess | None:
        devices = self.devices.get(row.queue, [])
        return self.history.guess(row.job_type, devices=devices, tiles=row.tiles or 0)

    def _running(self, row: Row) -> Running:
        return Running(row.pk, row.tenant, row.queue, row.member, self._left(row))

    def _left(self, row: Row) -> Span:
        """What is left of a job with a lease: by its progress, else by what others took."""
        guess = self._guess(row)
        if row.started_at is None or row.state != JobState.RUNNING:
            return guess.span() if guess else UNKNOWN
        elapsed_s = max(0.0, (self.now - row.started_at).total_seconds())
        # a later attempt resumes: its progress does not begin at 0
        if row.attempt == 1 and (row.progress or 0.0) >= TRUSTED_PROGRESS and elapsed_s >= 1.0:
            return left_by_progress(min(row.progress or 0.0, 0.999), elapsed_s)
        return guess.left_after(elapsed_s) if guess else UNKNOWN

    def _works(self, rows: Sequence[Row], *, complete: bool = True) -> list[Work]:
        """The waiting jobs that may start by themselves: nothing of a paused lane does."""
        before = before_in_lane(rows)
        return [
            Work(
                row.pk,
                row.tenant,
                row.queue,
                row.priority,
                row.member,
                row.sequence,
                takes=guess.span() if (guess := self._guess(row)) else UNKNOWN,
                needs=self._needs(row, before, complete=complete),
                not_before_s=max(0.0, (row.retry_at - self.now).total_seconds())
                if row.retry_at and row.state == JobState.RETRY_WAIT
                else 0.0,
            )
            for row in rows
            if row.waits and not row.branch_paused
        ]

    def _needs(self, row: Row, before: dict[int, Row], *, complete: bool) -> frozenset[int]:
        needs = set(self.edges.get(row.pk, ()))
        if len(needs) < row.upstream_left:
            return NEVER
        if row.pk in before:
            needs.add(before[row.pk].pk)
        elif row.state < FIRST_HEAD and not row.upstream_left and not complete:
            return NEVER  # the head of its lane is not among those that were read
        return frozenset(needs)


def before_in_lane(rows: Iterable[Row]) -> dict[int, Row]:
    """The job right before each one in its lane: the head, then by sequence."""
    last: dict[int, Row] = {}
    found: dict[int, Row] = {}
    for row in sorted(rows, key=lambda row: (row.state < FIRST_HEAD, row.sequence)):
        if row.branch in last:
            found[row.pk] = last[row.branch]
        last[row.branch] = row
    return found
