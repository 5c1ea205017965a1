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
from django.db.models import Count, Exists, F, OuterRef, Q
from django.db.models.functions import Now
from django.utils import timezone

from jobs import events
from jobs.models import Job, Lease, Queue, UserSlot
from jobs.scheduling import lanes, slots
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
    for slot, tenant in zip(free, _line(len(free)), strict=False):
        _admit(tenant, slot)


def _settle(slot: UserSlot, holder: Tenant) -> None:
    jobs = Job.objects.across_tenants("is this slot holder done?").filter(tenant=holder)
    if jobs.active().exists():
        return
    runnable = Tenant.objects.filter(_can_run(), pk=holder.pk, paused=False).exists()
    if runnable and not _turn_is_over(slot):
        return
    UserSlot.objects.filter(pk=slot.pk).update(holder=None, acquired_at=None)
    lanes.line_up(holder.pk)  # it drained, or what is left is paused: to the end of the line


def _can_run() -> Q:
    """Tenants with a job that could start now or within 30 s; nothing paused counts."""
    jobs = Job.objects.across_tenants("tenants of the line").filter(
        tenant=OuterRef("pk"), branch__paused=False
    )
    jobs = jobs.exclude(queue__in=Queue.objects.filter(paused=True).values("name"))
    soon = timezone.now() + RETRY_HOLDS_SLOT
    return Q(Exists(jobs.filter(state=JobState.READY.value))) | Q(
        Exists(jobs.filter(state=JobState.RETRY_WAIT.value, retry_at__lte=soon))
    )


def _turn_is_over(slot: UserSlot) -> bool:
    quantum = settings.ACTIVE_USER_QUANTUM_S
    if not quantum or slot.acquired_at is None:
        return False
    if slot.acquired_at > timezone.now() - dt.timedelta(seconds=quantum):
        return False
    return bool(_line(1))


def _line(places: int) -> list[Tenant]:
    """The tenants waiting longest that can run something; the others keep their place."""
    line = Tenant.objects.filter(_can_run(), waiting_since__isnull=False, paused=False)
    return list(line.order_by("waiting_since", "pk")[:places]) if places else []


def _admit(tenant: Tenant, slot: UserSlot) -> None:
    """Give the tenant the free slot, unless it was paused or emptied since it was read."""
    Tenant.objects.select_for_update(no_key=True).get(pk=tenant.pk)
    if Tenant.objects.filter(_can_run(), pk=tenant.pk, paused=False).exists():
        Tenant.objects.filter(pk=tenant.pk).update(waiting_since=None)
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
                    expires_at=Now() + dt.timedelta(seconds=settings.WITHDRAW_S),
                )
    except IntegrityError as error:
        log.error("job %s stays where it is, the database refused its promotion: %s", job, error)
        return False
    return moved == 1
