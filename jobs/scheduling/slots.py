"""The rows that bound the work: user slots, run slots and queues, seeded from the settings."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import NamedTuple

from django.conf import settings
from django.db import models, transaction
from django.db.models import Exists, OuterRef

from jobs import sql
from jobs.models import Lease, Maintenance, Queue, RunSlot
from jobs.models import UserSlot as UserSlotRow
from jobs.states import JobState

NEVER_SERVED = 1e12  # seconds ago
PASS_LOCK = 7391  # one scheduler decides at a time; constraints hold without it
DECIDE_ALONE = """
    SELECT pg_advisory_xact_lock(%s), set_config('plan_cache_mode', 'force_generic_plan', true),
        set_config('enable_seqscan', 'off', true), set_config('jit', 'off', true),
        set_config('lock_timeout', '200ms', true)
"""

# a tenant could start a job now, or within 30 s; nothing paused counts (a paused lane has no ready job)
RETRY_HOLDS_SLOT_S = 30.0
CAN_RUN = f"""
    (NOT t.paused AND EXISTS (SELECT 1 FROM jobs_queue q WHERE NOT q.paused AND (
        EXISTS (SELECT 1 FROM jobs_job r WHERE r.tenant_id = t.id
            AND r.queue = q.name AND r.state = {JobState.READY:d})
        OR EXISTS (SELECT 1 FROM jobs_job w JOIN jobs_branch b ON b.id = w.branch_id
            WHERE w.tenant_id = t.id AND w.queue = q.name
            AND w.state = {JobState.RETRY_WAIT:d} AND w.retry_at <= {{later}} AND NOT b.paused))))
"""
# everything that bounds the work, in one answer: what kind of row, a name, numbers
BOUNDS = f"""
    SELECT 'maintenance' AS kind, '' AS name, m.id AS a, 0 AS b, 0 AS c, 0 AS d, 0.0 AS age,
        0.0 AS served
    FROM jobs_maintenance m
    UNION ALL
    SELECT 'queue', q.name, COALESCE(q.capacity, -1), CASE WHEN q.paused THEN 1 ELSE 0 END,
        (SELECT count(*) FROM jobs_worker w
         WHERE w.queue = q.name AND w.warm AND NOT w.draining AND w.seen_at >= {{later}}), 0, 0.0, 0.0
    FROM jobs_queue q
    UNION ALL
    SELECT 'lease', l.queue, l.tenant_id, l.member, l.run_slot_id, 0, 0.0, 0.0 FROM jobs_lease l
    UNION ALL
    SELECT 'run_slot', '', r.number, 0, 0, 0, 0.0, 0.0 FROM jobs_runslot r WHERE r.number <= %s
    UNION ALL
    SELECT 'user_slot', '', s.number, COALESCE(s.holder_id, 0), COALESCE(t.weight, 0),
        CASE WHEN {CAN_RUN} THEN 1 ELSE 0 END,
        COALESCE({{held_s}}, 0.0), COALESCE({{served_s}}, {NEVER_SERVED})
    FROM jobs_userslot s LEFT JOIN tenants_tenant t ON t.id = s.holder_id
    UNION ALL
    SELECT * FROM (SELECT 'line', '', 0, 0, 0, 0, 0.0, 0.0 FROM tenants_tenant t
        WHERE t.waiting_since IS NOT NULL ORDER BY t.waiting_since, t.id LIMIT 1) line
"""


class LeaseHeld(NamedTuple):
    """A lease as the rules count it."""

    queue: str
    tenant: int
    member: int
    run_slot: int


@dataclass
class UserSlot:
    """One right to have jobs promoted, who holds it for how long, and how that tenant stands."""

    number: int
    holder: int | None
    held_s: float = 0.0
    weight: int = 1
    can_run: bool = False
    served_ago_s: float = NEVER_SERVED

    @property
    def turn_is_over(self) -> bool:
        """Whether the holder's quantum has passed."""
        quantum_s = settings.ACTIVE_USER_QUANTUM_S
        return self.holder is not None and 0 < quantum_s < self.held_s


@dataclass(frozen=True)
class QueueState:
    """A queue as it is now. capacity: what an operator set, else what the settings give."""

    name: str
    capacity: int
    paused: bool
    workers: int
    leases: int

    @property
    def free(self) -> int:
        """Leases that still fit: the smaller of capacity and live workers, less those held."""
        return 0 if self.paused else max(0, min(self.capacity, self.workers) - self.leases)


@dataclass(frozen=True)
class Bounds:
    """Everything that bounds the work, as of one moment."""

    maintenance: bool
    queues: list[QueueState]
    leases: list[LeaseHeld]
    run_slots: list[int]
    user_slots: list[UserSlot]
    somebody_waits: bool  # some tenant is in line for a user slot

    @property
    def free_run_slots(self) -> list[int]:
        """The numbers of the run slots that no lease holds."""
        taken = {lease.run_slot for lease in self.leases}
        return [number for number in self.run_slots if number not in taken]


def read_bounds() -> Bounds:
    """Everything that bounds the work now."""
    kinds: dict[str, list[sql.Row]] = defaultdict(list)
    statement = BOUNDS.replace("{held_s}", sql.age("s.acquired_at"))
    statement = statement.replace("{served_s}", sql.age("t.served_at"))
    values = [-settings.WORKER_TTL_S, settings.MAX_WORKERS, RETRY_HOLDS_SLOT_S]
    for kind, *row in sql.rows(sql.text(statement), values):
        kinds[kind].append(tuple(row))
    leases = [
        LeaseHeld(queue, tenant, member, number)
        for queue, tenant, member, number, *_ in kinds["lease"]
    ]
    held = Counter(lease.queue for lease in leases)
    return Bounds(
        maintenance=bool(kinds["maintenance"]),
        queues=[
            QueueState(name, _capacity(name, capacity), bool(paused), workers, held[name])
            for name, capacity, paused, workers, *_ in kinds["queue"]
        ],
        leases=leases,
        run_slots=sorted(number for _, number, *_ in kinds["run_slot"]),
        user_slots=[_user_slot(*row) for row in sorted(kinds["user_slot"], key=lambda row: row[1])],
        somebody_waits=bool(kinds["line"]),
    )


def _user_slot(
    _: str, number: int, holder: int, weight: int, can_run: int, held_s: float, served_ago_s: float
) -> UserSlot:
    return UserSlot(
        number=number,
        holder=holder or None,
        held_s=held_s,
        weight=weight,
        can_run=bool(can_run),
        served_ago_s=served_ago_s,
    )


def take_pass_lock() -> None:
    """Wait for the turn to decide. SQLite has it already: its transactions begin IMMEDIATE.

    The statements of this transaction are planned once a connection, and for large tables: to plan
    a pass costs more than to run it. It waits 0.2 s at most for a row that somebody holds.
    """
    if sql.is_postgres():
        sql.run(DECIDE_ALONE, [PASS_LOCK])


def seed() -> None:
    """Make the slot rows as many as the settings say. Occupied rows above the limit go later."""
    with transaction.atomic():
        if sql.is_postgres():
            sql.run("SELECT pg_advisory_xact_lock(%s)", [PASS_LOCK])
        _resize(RunSlot, settings.MAX_WORKERS, _taken_run_slots())
        _resize(UserSlotRow, settings.MAX_ACTIVE_USERS, _held_user_slots())
        for name in settings.QUEUES:
            Queue.objects.get_or_create(name=name)


def _taken_run_slots() -> models.QuerySet[RunSlot]:
    leases = Lease.objects.across_tenants("slots are shared by all tenants")
    return RunSlot.objects.filter(Exists(leases.filter(run_slot=OuterRef("pk"))))


def _held_user_slots() -> models.QuerySet[UserSlotRow]:
    return UserSlotRow.objects.filter(holder__isnull=False)


def _resize(model: type[models.Model], wanted: int, taken: models.QuerySet[models.Model]) -> None:
    rows = model._default_manager
    have = set(rows.values_list("pk", flat=True))
    rows.bulk_create([model(pk=n) for n in range(1, wanted + 1) if n not in have])
    rows.filter(pk__gt=wanted).exclude(pk__in=taken.values("pk")).delete()


def _capacity(queue: str, by_operator: int) -> int:
    if by_operator >= 0:
        return by_operator
    if queue == "gpu":
        # at least one slot stays for cpu, so that a mask never waits behind cells; how many
        # devices there are is told by the live workers, one each
        return max(1, int(settings.MAX_WORKERS) - 1)
    return int(settings.MAX_WORKERS)


def set_maintenance(on: bool, note: str = "") -> None:
    """Begin or end maintenance mode: what runs goes on, nothing new is promoted."""
    if on:
        Maintenance.objects.update_or_create(pk=1, defaults={"note": note})
    else:
        Maintenance.objects.all().delete()
