"""One pass of the scheduler: who holds a user slot, and which jobs are promoted.

It costs what it promotes, not what waits: it looks at the few slot holders and at the first few
ready jobs of each, through partial indexes (R12).
"""

from __future__ import annotations

import datetime as dt
import logging
from collections import defaultdict

from django.conf import settings
from django.db import IntegrityError, transaction
from django.db.models import Count, F
from django.utils import timezone

from jobs import events
from jobs.models import Job, Lease, UserSlot
from jobs.scheduling import slots
from jobs.scheduling.plan import Candidate, Holder, Room, plan
from jobs.states import JobState
from tenants.models import Tenant

RETRY_HOLDS_SLOT = dt.timedelta(seconds=30)
log = logging.getLogger(__name__)


def promote() -> list[tuple[int, int]]:
    """Promote every job that the rules allow now. Returns (job, attempt) of each."""
    promoted: list[tuple[int, int]] = []
    while batch := _one_pass():
        promoted += batch
    return promoted


def _one_pass() -> list[tuple[int, int]]:
    with transaction.atomic():
        slots.take_pass_lock()
        _settle_user_slots()
        room = Room(0, slots.room_by_queue())
        free = slots.free_run_slots() if any(room.queues.values()) else []
        room.slots = len(free)
        holders = _holders() if free else []
        if not holders:
            return []
        chosen = plan(holders, _candidates(holders, room), room)
        return _write(chosen, free)


def _settle_user_slots() -> None:
    """Take slots from tenants with nothing to run, and give them to those in line (R4)."""
    held = UserSlot.objects.filter(holder__isnull=False)
    # lock the tenants first: a submission of theirs is either seen here or lines up after us
    list(
        Tenant.objects.select_for_update(no_key=True)
        .filter(pk__in=held.values("holder"))
        .order_by("pk")
    )
    for slot in held.select_related("holder"):
        if slot.holder is not None:
            _settle(slot, slot.holder)
    free = list(UserSlot.objects.filter(holder=None, number__lte=settings.MAX_ACTIVE_USERS))
    while free and (tenant := _next_in_line()):
        _admit(tenant, free)


def _settle(slot: UserSlot, holder: Tenant) -> None:
    jobs = Job.objects.across_tenants("is this slot holder done?").filter(tenant=holder)
    if jobs.active().exists():
        return
    runnable = _runnable(holder.pk)
    if runnable and not _turn_is_over(slot):
        return
    UserSlot.objects.filter(pk=slot.pk).update(holder=None, acquired_at=None)
    if runnable or holder.paused:  # it drained or stands still: to the end of the line
        Tenant.objects.filter(pk=holder.pk).update(waiting_since=timezone.now())


def _runnable(tenant_id: int) -> bool:
    """Whether the tenant has a job that could start now or within 30 s."""
    jobs = Job.objects.across_tenants("one tenant of the line").filter(
        tenant=tenant_id, tenant__paused=False, branch__paused=False
    )
    if jobs.filter(state=JobState.READY.value).exists():
        return True
    soon = timezone.now() + RETRY_HOLDS_SLOT
    return jobs.filter(state=JobState.RETRY_WAIT.value, retry_at__lte=soon).exists()


def _turn_is_over(slot: UserSlot) -> bool:
    quantum = settings.ACTIVE_USER_QUANTUM_S
    if not quantum or slot.acquired_at is None:
        return False
    if slot.acquired_at > timezone.now() - dt.timedelta(seconds=quantum):
        return False
    return Tenant.objects.filter(waiting_since__isnull=False, paused=False).exists()


def _next_in_line() -> Tenant | None:
    line = Tenant.objects.filter(waiting_since__isnull=False, paused=False)
    return line.order_by("waiting_since", "pk").first()


def _admit(tenant: Tenant, free: list[UserSlot]) -> None:
    """Give the tenant the next free slot, or drop it from the line when nothing of it can run."""
    if Tenant.objects.select_for_update(no_key=True).get(pk=tenant.pk).paused:
        return  # paused since it was read: it keeps its place
    Tenant.objects.filter(pk=tenant.pk).update(waiting_since=None)
    if _runnable(tenant.pk):
        slot = free.pop(0)
        UserSlot.objects.filter(pk=slot.pk).update(holder=tenant.pk, acquired_at=timezone.now())


def _holders() -> list[Holder]:
    leases = Lease.objects.across_tenants("shares are between tenants")
    held = dict(leases.values_list("tenant").annotate(Count("pk")))
    return [
        Holder(
            tenant=slot.holder.pk,
            weight=slot.holder.weight,
            leases=held.get(slot.holder.pk, 0),
            served=slot.holder.served_at.timestamp() if slot.holder.served_at else 0.0,
            draining=_turn_is_over(slot),
        )
        for slot in UserSlot.objects.select_related("holder").filter(holder__paused=False)
        if slot.holder is not None
    ]


def _candidates(holders: list[Holder], room: Room) -> list[Candidate]:
    """The first ready jobs of each (tenant, queue): at most as many as fit."""
    found: list[Candidate] = []
    jobs = Job.objects.across_tenants("the plan ranks all slot holders together")
    for holder in holders:
        for queue, places in room.queues.items():
            rows = jobs.filter(
                tenant=holder.tenant,
                queue=queue,
                state=JobState.READY.value,
                branch__paused=False,
            ).order_by("-priority", "sequence")[: min(places, room.slots)]
            found += [
                Candidate(pk, holder.tenant, queue, priority, sequence)
                for pk, priority, sequence in rows.values_list("pk", "priority", "sequence")
            ]
    return found


def _write(chosen: list[int], free: list[int]) -> list[tuple[int, int]]:
    promoted: list[tuple[int, int]] = []
    by_tenant: dict[int, list[int]] = defaultdict(list)
    jobs = Job.objects.across_tenants("the plan chose them").in_bulk(chosen)
    for pk, number in zip(chosen, free, strict=False):
        if _promote_one(jobs[pk], number):
            promoted.append((pk, jobs[pk].attempt + 1))
            by_tenant[jobs[pk].tenant_id].append(pk)
    for tenant_id in sorted(by_tenant):
        Tenant.objects.filter(pk=tenant_id).update(served_at=timezone.now())
        events.jobs_changed(tenant_id, by_tenant[tenant_id])
    return promoted


def _promote_one(job: Job, run_slot: int) -> bool:
    """Move one job to QUEUED with its lease. A write that a constraint refuses holds that job."""
    now = timezone.now()
    ready = Job.objects.across_tenants("the plan chose it").filter(
        pk=job.pk, state=JobState.READY.value, attempt=job.attempt
    )
    try:
        with transaction.atomic():
            moved = ready.update(
                state=JobState.QUEUED.value,
                reason="",
                attempt=F("attempt") + 1,
                user_slot=job.tenant_id,
                queued_at=now,
                dispatched_at=None,
                started_at=None,
            )
            if moved:
                Lease.objects.create(
                    tenant_id=job.tenant_id,
                    run_slot_id=run_slot,
                    job=job,
                    queue=job.queue,
                    attempt=job.attempt + 1,
                    user_slot_id=job.tenant_id,
                    expires_at=now + dt.timedelta(seconds=settings.WITHDRAW_S),
                )
    except IntegrityError as error:
        log.error("job %s stays where it is, the database refused its promotion: %s", job, error)
        return False
    return moved == 1
