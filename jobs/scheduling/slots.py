"""The rows that bound the work: user slots, run slots and queues, seeded from the settings."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import NamedTuple

from django.conf import settings
from django.db import connection, models, transaction
from django.db.models import Exists, OuterRef

from jobs import sql
from jobs.models import Lease, Maintenance, Queue, RunSlot
from jobs.models import UserSlot as UserSlotRow

PASS_LOCK = 7391  # one scheduler decides at a time; constraints hold without it

# everything that bounds the work, in one answer: what kind of row, a name, numbers
BOUNDS = """
    SELECT 'maintenance' AS kind, '' AS name, m.id AS a, 0 AS b, 0 AS c, 0 AS d, 0.0 AS age
    FROM jobs_maintenance m
    UNION ALL
    SELECT 'queue', q.name, COALESCE(q.capacity, -1), CASE WHEN q.paused THEN 1 ELSE 0 END,
        (SELECT count(*) FROM jobs_worker w
         WHERE w.queue = q.name AND w.warm AND NOT w.draining AND w.seen_at >= {later}), 0, 0.0
    FROM jobs_queue q
    UNION ALL
    SELECT 'lease', l.queue, l.tenant_id, l.member, l.run_slot_id, 0, 0.0 FROM jobs_lease l
    UNION ALL
    SELECT 'run_slot', '', r.number, 0, 0, 0, 0.0 FROM jobs_runslot r WHERE r.number <= %s
    UNION ALL
    SELECT 'user_slot', '', s.number, COALESCE(s.holder_id, 0), 0, 0, COALESCE({held_s}, 0.0)
    FROM jobs_userslot s
"""


class LeaseHeld(NamedTuple):
    """A lease as the rules count it."""

    queue: str
    tenant: int
    member: int
    run_slot: int


@dataclass
class UserSlot:
    """One right to have jobs promoted, and who holds it for how long."""

    number: int
    holder: int | None
    held_s: float

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

    @property
    def free_run_slots(self) -> list[int]:
        """The numbers of the run slots that no lease holds."""
        taken = {lease.run_slot for lease in self.leases}
        return [number for number in self.run_slots if number not in taken]


def read_bounds() -> Bounds:
    """Everything that bounds the work now."""
    statement = BOUNDS.replace("{held_s}", sql.age("s.acquired_at"))
    kinds: dict[str, list[sql.Row]] = defaultdict(list)
    for kind, *row in sql.rows(sql.text(statement), [-settings.WORKER_TTL_S, settings.MAX_WORKERS]):
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
        user_slots=[
            UserSlot(number, holder or None, held_s)
            for _, number, holder, _, _, held_s in sorted(
                kinds["user_slot"], key=lambda row: row[1]
            )
        ],
    )


def take_pass_lock() -> None:
    """Wait for the turn to decide. SQLite has it already: its transactions begin IMMEDIATE."""
    if connection.vendor == "postgresql":
        sql.rows("SELECT pg_advisory_xact_lock(%s)", [PASS_LOCK])


def seed() -> None:
    """Make the slot rows as many as the settings say. Occupied rows above the limit go later."""
    with transaction.atomic():
        take_pass_lock()
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
