"""The rows that bound the work: user slots, run slots and queues, seeded from the settings."""

from __future__ import annotations

from dataclasses import dataclass

from django.conf import settings
from django.db import connection, models, transaction
from django.db.models import Exists, OuterRef

from jobs import sql
from jobs.models import Lease, Maintenance, Queue, RunSlot, UserSlot

PASS_LOCK = 7391  # one scheduler decides at a time; constraints hold without it

QUEUES = """
    SELECT q.name, q.capacity, q.paused,
        (SELECT count(*) FROM jobs_worker w
         WHERE w.queue = q.name AND w.warm AND NOT w.draining AND w.seen_at >= {later}),
        (SELECT count(*) FROM jobs_lease l WHERE l.queue = q.name)
    FROM jobs_queue q
"""
FREE = """
    SELECT r.number FROM jobs_runslot r
    WHERE r.number <= %s AND NOT EXISTS (SELECT 1 FROM jobs_lease l WHERE l.run_slot_id = r.number)
    ORDER BY r.number
"""


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


def take_pass_lock() -> None:
    """Wait for the turn to decide. SQLite has it already: its transactions begin IMMEDIATE."""
    if connection.vendor == "postgresql":
        sql.rows("SELECT pg_advisory_xact_lock(%s)", [PASS_LOCK])


def seed() -> None:
    """Make the slot rows as many as the settings say. Occupied rows above the limit go later."""
    with transaction.atomic():
        take_pass_lock()
        _resize(RunSlot, settings.MAX_WORKERS, _taken_run_slots())
        _resize(UserSlot, settings.MAX_ACTIVE_USERS, _held_user_slots())
        for name in settings.QUEUES:
            Queue.objects.get_or_create(name=name)


def _taken_run_slots() -> models.QuerySet[RunSlot]:
    leases = Lease.objects.across_tenants("slots are shared by all tenants")
    return RunSlot.objects.filter(Exists(leases.filter(run_slot=OuterRef("pk"))))


def _held_user_slots() -> models.QuerySet[UserSlot]:
    return UserSlot.objects.filter(holder__isnull=False)


def _resize(model: type[models.Model], wanted: int, taken: models.QuerySet[models.Model]) -> None:
    rows = model._default_manager
    have = set(rows.values_list("pk", flat=True))
    rows.bulk_create([model(pk=n) for n in range(1, wanted + 1) if n not in have])
    rows.filter(pk__gt=wanted).exclude(pk__in=taken.values("pk")).delete()


def queue_states() -> list[QueueState]:
    """Every queue with its capacity, live workers and leases."""
    found = sql.rows(sql.text(QUEUES), [-settings.WORKER_TTL_S])
    return [
        QueueState(name, _capacity(name, capacity), bool(paused), workers, leases)
        for name, capacity, paused, workers, leases in found
    ]


def _capacity(queue: str, by_operator: int | None) -> int:
    if by_operator is not None:
        return by_operator
    if queue == "gpu":
        # at least one slot stays for cpu, so that a mask never waits behind cells; how many
        # devices there are is told by the live workers, one each
        return max(1, int(settings.MAX_WORKERS) - 1)
    return int(settings.MAX_WORKERS)


def room_by_queue() -> dict[str, int]:
    """How many more leases fit into each queue."""
    return {queue.name: queue.free for queue in queue_states()}


def free_run_slots() -> list[int]:
    """The numbers of the run slots that no lease holds."""
    return [number for (number,) in sql.rows(FREE, [settings.MAX_WORKERS])]


def set_maintenance(on: bool, note: str = "") -> None:
    """Begin or end maintenance mode: what runs goes on, nothing new is promoted."""
    if on:
        Maintenance.objects.update_or_create(pk=1, defaults={"note": note})
    else:
        Maintenance.objects.all().delete()
