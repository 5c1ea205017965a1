"""All rows that the rules speak of at one moment, and which rules they break. Reads only."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from django.conf import settings
from django.db import connection

from jobs import sql
from jobs.moves import as_uuid
from jobs.states import JobState

DEAD = (JobState.FAILED, JobState.CANCELLED)
RETRY_HOLDS_SLOT_S = 30
# every column of these is compared when nothing may change
RECORD = ("jobs_job", "jobs_lease", "jobs_userslot", "jobs_branch", "tenants_tenant")


@dataclass(frozen=True)
class JobRow:
    """What the rules need to know of a job."""

    pk: int
    tenant: int
    branch: int
    workflow: str
    queue: str
    sequence: int
    priority: int
    member: int
    state: JobState
    upstream_left: int
    attempt: int
    user_slot: int | None
    overdue_s: float | None  # since its back-off is over; below 0 while it lasts
    cancel_asked: bool

    @property
    def head(self) -> bool:
        return JobState.READY <= self.state <= JobState.RUNNING

    @property
    def live(self) -> bool:
        return not self.state.terminal


@dataclass(frozen=True)
class LeaseRow:
    """A lease as it is."""

    job: int
    tenant: int
    queue: str
    attempt: int
    worker: str
    shard: int  # above 0: a helper's


@dataclass(frozen=True)
class TenantRow:
    """A tenant, the slot it holds if any, and since when it waits for one."""

    pk: int
    paused: bool
    waiting_since: Any  # in the words of the database: only compared
    next_event: int
    slot_held_s: float | None
    holds_slot: bool


@dataclass(frozen=True)
class Picture:
    """The rows at one moment."""

    jobs: dict[int, JobRow]
    leases: list[LeaseRow]
    tenants: dict[int, TenantRow]
    slots: int
    upstream: dict[int, list[int]]  # of each job
    paused_branches: set[int]
    paused_queues: set[str]
    workers: Counter[str]
    events: dict[int, list[int]]  # the numbers of each tenant's events
    told: dict[int, JobState]  # the state in the last event of each job

    def of_branch(self) -> dict[int, list[JobRow]]:
        lanes: dict[int, list[JobRow]] = defaultdict(list)
        for job in self.jobs.values():
            lanes[job.branch].append(job)
        return lanes

    def in_state(self, *states: JobState) -> list[JobRow]:
        return [job for job in self.jobs.values() if job.state in states]

    def active_words(self) -> set[tuple[int, int]]:
        return {(job.pk, job.attempt) for job in self.jobs.values() if job.state.active}

    def active_tenants(self) -> set[int]:
        return {job.tenant for job in self.jobs.values() if job.state.active}

    def could_start(self, job: JobRow) -> bool:
        """Ready, and nothing of it is paused."""
        return (
            job.state is JobState.READY
            and job.branch not in self.paused_branches
            and job.queue not in self.paused_queues
            and not self.tenants[job.tenant].paused
        )

    def runnable(self) -> set[int]:
        """Tenants that could start a job now or within 30 s (R4)."""
        return {
            job.tenant
            for job in self.jobs.values()
            if self.could_start(job) or self._comes_back(job)
        }

    def _comes_back(self, job: JobRow) -> bool:
        return (
            job.state is JobState.RETRY_WAIT
            and job.overdue_s is not None
            and job.overdue_s > -RETRY_HOLDS_SLOT_S
            and job.branch not in self.paused_branches
            and job.queue not in self.paused_queues
            and not self.tenants[job.tenant].paused
        )

    def room(self, queue: str) -> int:
        """How many more leases of `queue` fit."""
        held = sum(lease.queue == queue for lease in self.leases)
        limit = settings.MAX_WORKERS if queue == "cpu" else max(1, settings.MAX_WORKERS - 1)
        return min(settings.MAX_WORKERS - len(self.leases), min(limit, self.workers[queue]) - held)

    def turn_is_over(self, tenant: int) -> bool:
        quantum_s, held_s = settings.ACTIVE_USER_QUANTUM_S, self.tenants[tenant].slot_held_s
        return bool(quantum_s and held_s is not None and held_s > quantum_s)


def take() -> Picture:
    """The rows now. Plain SQL: this is done several times a step."""
    slots = _rows(f"SELECT holder_id, {sql.age('acquired_at')} FROM jobs_userslot")
    held = {holder: held_s for holder, held_s in slots if holder is not None}
    upstream: dict[int, list[int]] = defaultdict(list)
    for above, below in _rows("SELECT upstream_id, downstream_id FROM jobs_edge"):
        upstream[below].append(above)
    events: dict[int, list[int]] = defaultdict(list)
    told: dict[int, JobState] = {}
    for tenant, seq, job, state in _rows(
        "SELECT tenant_id, seq, job_id, state FROM jobs_event ORDER BY tenant_id, seq"
    ):
        events[tenant].append(seq)
        if job is not None:
            told[job] = JobState(state)
    workers = f"SELECT queue FROM jobs_worker WHERE warm AND {sql.age('seen_at')} < %s"
    return Picture(
        jobs=_jobs(),
        leases=[
            LeaseRow(*row)
            for row in _rows(
                "SELECT job_id, tenant_id, queue, attempt, worker, shard FROM jobs_lease"
            )
        ],
        tenants={
            pk: TenantRow(pk, bool(paused), since, next_event, held.get(pk), pk in held)
            for pk, paused, since, next_event in _rows(
                "SELECT id, paused, waiting_since, next_event FROM tenants_tenant"
            )
        },
        slots=len(slots),
        upstream=upstream,
        paused_branches={pk for (pk,) in _rows("SELECT id FROM jobs_branch WHERE paused")},
        paused_queues={name for (name,) in _rows("SELECT name FROM jobs_queue WHERE paused")},
        workers=Counter(queue for (queue,) in _rows(workers, settings.WORKER_TTL_S)),
        events=events,
        told=told,
    )


def _jobs() -> dict[int, JobRow]:
    found = _rows(
        "SELECT id, tenant_id, branch_id, workflow_id, queue, sequence, priority, member, state, "
        f"upstream_left, attempt, user_slot_id, {sql.age('retry_at')}, "
        "cancel_requested_at IS NOT NULL FROM jobs_job"
    )
    return {pk: _job(pk, *rest) for pk, *rest in found}


def _job(pk: int, tenant: int, branch: int, workflow: Any, *rest: Any) -> JobRow:
    queue, sequence, priority, member, state, left, attempt, slot, overdue_s, asked = rest
    return JobRow(
        pk=pk,
        tenant=tenant,
        branch=branch,
        workflow=str(as_uuid(workflow)),
        queue=queue,
        sequence=sequence,
        priority=priority,
        member=member,
        state=JobState(state),
        upstream_left=left,
        attempt=attempt,
        user_slot=slot,
        overdue_s=overdue_s,
        cancel_asked=bool(asked),
    )


def _rows(statement: str, *values: float) -> list[tuple[Any, ...]]:
    with connection.cursor() as cursor:
        cursor.execute(statement, values)
        return list(cursor.fetchall())


def record() -> dict[str, list[tuple[Any, ...]]]:
    """Every column of every row that a refused word must leave alone, and how many events there are."""
    found = {table: _rows(f"SELECT * FROM {table} ORDER BY 1") for table in RECORD}
    return {**found, "jobs_event": _rows("SELECT count(*) FROM jobs_event")}


# --- the rules that hold at every moment -------------------------------------------------


def faults(now: Picture) -> list[str]:
    """A sentence for each rule that these rows break."""
    return [
        *_leases(now),
        *_user_slots(now),
        *_lanes(now),
        *_edges(now),
        *_line(now),
        *_events(now),
    ]


def _leases(now: Picture) -> Iterator[str]:
    if len(now.leases) > settings.MAX_WORKERS:
        yield f"{len(now.leases)} leases, {settings.MAX_WORKERS} may be"
    for queue in ("cpu", "gpu"):
        if now.room(queue) < 0 and len(now.leases) <= settings.MAX_WORKERS:
            yield f"queue {queue} has {-now.room(queue)} leases more than fit"
    own = [lease for lease in now.leases if not lease.shard]
    held = {(lease.job, lease.attempt) for lease in own}
    active = now.active_words()
    if held != active or len(own) != len(active):
        yield f"leases of {sorted(held)}, active are {sorted(active)}"
    for lease in now.leases:
        job = now.jobs.get(lease.job)
        if job is None or (job.tenant, job.queue) != (lease.tenant, lease.queue):
            yield f"a lease of job {lease.job} names another tenant or queue"
        elif not _fits(lease, job):
            yield f"job {job.pk} is {job.state.name}, attempt {job.attempt}, with {lease}"


def _fits(lease: LeaseRow, job: JobRow) -> bool:
    """A job's own is a worker's while it runs; a helper's is of this attempt, or was asked back."""
    if not lease.shard:
        return (job.state is JobState.RUNNING) == bool(lease.worker)
    asked_back = lease.attempt == 0 and lease.worker != ""
    return job.state is JobState.RUNNING and (asked_back or lease.attempt == job.attempt)


def _user_slots(now: Picture) -> Iterator[str]:
    active = now.active_tenants()
    if len(active) > settings.MAX_ACTIVE_USERS:
        yield f"{len(active)} tenants are active, {settings.MAX_ACTIVE_USERS} may be"
    if now.slots != settings.MAX_ACTIVE_USERS:
        yield f"{now.slots} user slots"
    for tenant in active:
        if not now.tenants[tenant].holds_slot:
            yield f"tenant {tenant} is active without a user slot"
    for job in now.jobs.values():
        if job.user_slot != (job.tenant if job.state.active else None):
            yield f"job {job.pk} is {job.state.name} with the user slot of {job.user_slot}"


def _lanes(now: Picture) -> Iterator[str]:
    for branch, jobs in now.of_branch().items():
        heads = [job for job in jobs if job.head]
        if len(heads) > 1:
            yield f"branch {branch} has the heads {[job.pk for job in heads]}"
        waiting = [job for job in jobs if job.state is JobState.PENDING]
        first = min(waiting, key=lambda job: job.sequence, default=None)
        if heads and first is not None and first.sequence < heads[0].sequence:
            yield f"job {heads[0].pk} overtook job {first.pk} of branch {branch}"
        idle = not heads and branch not in now.paused_branches
        if idle and first is not None and first.upstream_left == 0:
            yield f"branch {branch} is idle, its first job {first.pk} waits for nothing"


def _edges(now: Picture) -> Iterator[str]:
    for job in now.jobs.values():
        above = [now.jobs[pk] for pk in now.upstream.get(job.pk, ())]
        left = sum(each.state is not JobState.SUCCEEDED for each in above)
        if left and (job.head or job.state is JobState.SUCCEEDED):
            yield f"job {job.pk} is {job.state.name} while {left} upstream did not succeed"
        if job.live and job.upstream_left != left:
            yield f"job {job.pk} counts {job.upstream_left} upstream, {left} are left"
        if job.live and any(each.state in DEAD for each in above):
            yield f"job {job.pk} waits for a job that will never succeed"


def _line(now: Picture) -> Iterator[str]:
    ready = {job.tenant for job in now.jobs.values() if job.state is JobState.READY}
    for tenant in now.tenants.values():
        waits = tenant.waiting_since is not None
        if waits and tenant.holds_slot:
            yield f"tenant {tenant.pk} waits for a slot that it holds"
        if tenant.pk in ready and not waits and not tenant.holds_slot:
            yield f"tenant {tenant.pk} has ready jobs and is not in line"
        if waits and tenant.pk not in ready:
            yield f"tenant {tenant.pk} is in line with nothing ready"


def _events(now: Picture) -> Iterator[str]:
    for tenant in now.tenants.values():
        seen = now.events.get(tenant.pk, [])
        if seen != list(range(1, tenant.next_event)):
            yield f"tenant {tenant.pk} has events {seen}, the next is {tenant.next_event}"
    for job in now.jobs.values():
        told = now.told.get(job.pk, JobState.PENDING)
        if told.public != job.state.public:
            yield f"job {job.pk} is {job.state.public}, its last event says {told.public}"


# --- what a pass must and must not do ----------------------------------------------------


def pass_faults(before: Picture, after: Picture) -> list[str]:
    """A sentence for each rule that a pass of the scheduler, or several at once, broke."""
    return [
        *_idle(after),
        *_kept(before, after),
        *_admitted(before, after),
        *_ranked(before, after),
        *_drained(before, after),
    ]


def _idle(after: Picture) -> Iterator[str]:
    """Work that could have started and did not."""
    free_slots = after.slots - sum(each.holds_slot for each in after.tenants.values())
    others_wait = any(
        each.waiting_since and each.pk in after.runnable() for each in after.tenants.values()
    )
    for job in after.jobs.values():
        if not after.could_start(job) or after.room(job.queue) < 1:
            continue
        tenant = after.tenants[job.tenant]
        draining = others_wait and after.turn_is_over(job.tenant)
        if tenant.holds_slot and not draining:
            yield f"job {job.pk} is ready, its tenant holds a slot and a worker is free"
        if not tenant.holds_slot and free_slots > 0:
            yield f"tenant {job.tenant} has a ready job, a user slot is free"


def _kept(before: Picture, after: Picture) -> Iterator[str]:
    """R4: a slot is kept while its tenant has something active or runnable."""
    busy = before.active_tenants() | before.runnable()
    for tenant in before.tenants.values():
        lost = tenant.holds_slot and not after.tenants[tenant.pk].holds_slot
        if lost and tenant.pk in before.active_tenants():
            yield f"tenant {tenant.pk} lost its slot while it was active"
        elif lost and tenant.pk in busy and not before.turn_is_over(tenant.pk):
            yield f"tenant {tenant.pk} lost its slot while it had something to run"
    for tenant in after.tenants.values():
        idle = tenant.pk not in after.active_tenants() | after.runnable()
        if tenant.holds_slot and idle:
            yield f"tenant {tenant.pk} holds a slot and has nothing to run"


def _admitted(before: Picture, after: Picture) -> Iterator[str]:
    """R4: a free slot goes to the tenant waiting longest."""
    runnable = before.runnable()
    came = [
        each
        for each in before.tenants.values()
        if each.waiting_since and not each.holds_slot and after.tenants[each.pk].holds_slot
    ]
    left = [
        each
        for each in before.tenants.values()
        if each.waiting_since and each.pk in runnable and not after.tenants[each.pk].holds_slot
    ]
    for mine in came:
        for other in left:
            if other.waiting_since < mine.waiting_since:
                yield f"tenant {mine.pk} was admitted before tenant {other.pk}, which waited longer"


def _ranked(before: Picture, after: Picture) -> Iterator[str]:
    """R5 within a tenant and queue: priority, then (of one member) sequence."""
    started = [job for job in before.jobs.values() if after.jobs[job.pk].attempt > job.attempt]
    left = [
        job
        for job in before.jobs.values()
        if before.could_start(job) and after.jobs[job.pk].state is JobState.READY
    ]
    for mine in started:
        for other in left:
            if (mine.tenant, mine.queue) != (other.tenant, other.queue):
                continue
            rival = mine.member == other.member and mine.priority == other.priority
            if other.priority > mine.priority or (rival and other.sequence < mine.sequence):
                yield f"job {mine.pk} was promoted before job {other.pk}"


def _drained(before: Picture, after: Picture) -> Iterator[str]:
    """R4: a holder whose turn is over starts nothing while others that could run wait."""
    waiting = [
        each.pk
        for each in after.tenants.values()
        if each.waiting_since
        and before.tenants[each.pk].waiting_since == each.waiting_since
        and each.pk in before.runnable()
    ]
    for job in before.jobs.values():
        over = before.tenants[job.tenant].holds_slot and before.turn_is_over(job.tenant)
        kept = after.tenants[job.tenant].holds_slot and after.turn_is_over(job.tenant)
        if waiting and over and kept and after.jobs[job.pk].attempt > job.attempt:
            yield f"job {job.pk} was promoted though its tenant's turn is over"
