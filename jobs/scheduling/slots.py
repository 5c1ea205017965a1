"""The rows that bound the work: user slots, run slots and queues, seeded from the settings."""

from __future__ import annotations

from django.conf import settings
from django.db import connection, models, transaction
from django.db.models import Count, Exists, OuterRef

from jobs.models import Lease, Queue, RunSlot, UserSlot, Worker

PASS_LOCK = 7391  # one scheduler decides at a time; constraints hold without it


def take_pass_lock() -> None:
    """Wait for the turn to decide. SQLite has it already: its transactions begin IMMEDIATE."""
    if connection.vendor == "postgresql":
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_advisory_xact_lock(%s)", [PASS_LOCK])


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


def capacity_of(queue: Queue) -> int:
    """Most leases of `queue`: what an operator set, else what the settings give."""
    if queue.capacity is not None:
        return queue.capacity
    if queue.name == "gpu":
        # at least one slot stays for cpu, so that a mask never waits behind cells; how many
        # devices there are is told by the live workers, one each
        return max(1, settings.MAX_WORKERS - 1)
    return settings.MAX_WORKERS


def room_by_queue() -> dict[str, int]:
    """Free leases of each queue: the smaller of capacity and live workers, less those held."""
    workers = dict(
        Worker.objects.live().filter(warm=True).values_list("queue").annotate(Count("pk"))
    )
    leases = Lease.objects.across_tenants("capacity is shared by all tenants")
    held = dict(leases.values_list("queue").annotate(Count("pk")))
    return {
        queue.name: 0
        if queue.paused
        else max(0, min(capacity_of(queue), workers.get(queue.name, 0)) - held.get(queue.name, 0))
        for queue in Queue.objects.all()
    }


def free_run_slots() -> list[int]:
    """The numbers of the run slots that no lease holds."""
    free = RunSlot.objects.filter(number__lte=settings.MAX_WORKERS).exclude(
        pk__in=_taken_run_slots().values("pk")
    )
    return list(free.order_by("number").values_list("number", flat=True))
