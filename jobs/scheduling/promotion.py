"""One pass of the scheduler: who holds a user slot, and which jobs are promoted.

It costs what it promotes, not what waits: it looks at the few slot holders and at the first few
ready jobs of each, through partial indexes (R12).
"""

from __future__ import annotations

import logging
import time
import uuid
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass

from django.conf import settings
from django.db import IntegrityError, OperationalError, transaction

from jobs import events, postgres, sql
from jobs.moves import as_uuid
from jobs.scheduling import slots, tally, turns
from jobs.scheduling.dispatch import Promoted
from jobs.scheduling.plan import Candidate, Holder, Room, plan
from jobs.scheduling.slots import NEVER_SERVED, Bounds, LeaseHeld, UserSlot
from jobs.states import JobState

READY_OF_QUEUE = f"tenant_id = %s AND queue = %s AND state = {JobState.READY:d}"
BY_RANK = "priority * -1, member, sequence"
BY_RANK_BACKWARDS = "priority * -1 DESC, member DESC, sequence DESC"
COLUMNS = "id, tenant_id, queue, priority, sequence, member"

# and the last one: whether all of them are of one priority and member. The limit is part of the
# text: a plan that is kept must know how few rows are wanted.
FIRST_AND_LAST = f"""
    SELECT * FROM (SELECT {COLUMNS}, 0 AS is_last FROM jobs_job WHERE {READY_OF_QUEUE}
        ORDER BY {BY_RANK} LIMIT {{places}}) first_{{n}}
    UNION ALL
    SELECT * FROM (SELECT {COLUMNS}, 1 AS is_last FROM jobs_job WHERE {READY_OF_QUEUE}
        ORDER BY {BY_RANK_BACKWARDS} LIMIT 1) last_{{n}}
"""
# the priorities and members that have a ready job, each by one step down the index: to the next
# member of the same priority, else to the next priority. SQLite does not seek by a comparison of
# rows, and reads the whole line when the first step's order names the priority.
READY_STEP = READY_OF_QUEUE.replace("tenant_id", "j.tenant_id").replace(" AND ", " AND j.")
GROUPS = f"""
    WITH RECURSIVE line(rank, member) AS (
        SELECT * FROM (SELECT j.priority * -1, j.member FROM jobs_job j WHERE {READY_STEP}
            ORDER BY j.priority * -1, j.member LIMIT 1) first_group
        UNION ALL
        SELECT n.priority * -1, n.member FROM line JOIN jobs_job n ON n.id = COALESCE(
            (SELECT j.id FROM jobs_job j WHERE {READY_STEP}
                AND j.priority * -1 = line.rank AND j.member > line.member
                ORDER BY j.member, j.sequence LIMIT 1),
            (SELECT j.id FROM jobs_job j WHERE {READY_STEP} AND j.priority * -1 > line.rank
                ORDER BY j.priority * -1, j.member, j.sequence LIMIT 1))
    )
    SELECT rank, member FROM line LIMIT {{most}}
"""
OF_GROUP = f"""
    SELECT * FROM (SELECT {COLUMNS} FROM jobs_job WHERE {READY_OF_QUEUE}
        AND priority * -1 = %s AND member = %s ORDER BY sequence LIMIT {{places}}) group_{{n}}
"""
MOST_GROUPS = 1000  # members and priorities of one tenant and queue that one pass tells apart

PROMOTE = f"""
    UPDATE jobs_job SET state = {JobState.QUEUED:d}, reason = '', attempt = attempt + 1,
        user_slot_id = tenant_id, queued_at = {{now}}, started_at = NULL
    WHERE state = {JobState.READY:d} AND id IN ({{ids}})
    RETURNING id, attempt, workflow_id
"""
HOLD = """
    INSERT INTO jobs_lease (tenant_id, run_slot_id, job_id, queue, member, attempt, shard, worker,
        user_slot_id, expires_at, pushed_at)
    VALUES {rows}
"""
HOLD_ROW = "(%s, %s, %s, %s, %s, %s, 0, '', %s, {later}, {now})"
SKIP_S = 1.0  # a row that is held for long: for how long no pass waits for any
log = logging.getLogger(__name__)
_held = {"until": float("-inf")}

Deliver = Callable[[list[Promoted]], object]


@dataclass(frozen=True)
class Decision:
    """What a pass decided: which job takes which run slot."""

    candidate: Candidate
    run_slot: int


def promote() -> list[tuple[int, int]]:
    """Promote every job that the rules allow now. Returns (job, attempt) of each."""
    return [(each.job, each.attempt) for each in one_pass()]


def one_pass(deliver: Deliver = list) -> list[Promoted]:
    """Promote every job that the rules allow now, but those of a tenant whose row somebody holds for
    long (a large submission, a process that was stopped): the others do not wait for it, and its own
    end wakes the next pass.

    deliver  is given what was promoted right after the commit, before anybody else hears of it
    """
    write, skip_held = _write_together, time.monotonic() < _held["until"]
    while True:
        try:
            return _in_one_transaction(write, deliver, skip_held=skip_held)
        except OperationalError as error:
            if skip_held or not sql.is_lock_timeout(error):
                raise
            skip_held = True
            _held["until"] = time.monotonic() + SKIP_S
        except IntegrityError as error:
            if write is _write_each_alone:
                raise
            log.error("the database refused a promotion, each job is tried alone: %s", error)
            write = _write_each_alone


def _in_one_transaction(
    write: Callable[[list[Decision]], list[Promoted]], deliver: Deliver, *, skip_held: bool
) -> list[Promoted]:
    with transaction.atomic():
        with sql.one_round_trip():
            slots.take_pass_lock()
            bounds = slots.read_bounds()
        promoted = write(_decide(bounds, skip_held))
        transaction.on_commit(lambda: deliver(promoted), robust=True)
        begun: dict[int, set[uuid.UUID]] = defaultdict(set)
        for each in promoted:
            begun[each.tenant].add(each.workflow)
        for tenant, workflows in begun.items():
            events.nudge(tenant, workflows, work_may_start=False)
    return promoted


def _decide(bounds: Bounds, skip_held: bool) -> list[Decision]:
    """Settle the user slots, then choose which job takes which run slot."""
    if bounds.maintenance:
        return []
    active = {lease.tenant for lease in bounds.leases}
    draining = turns.settle(
        bounds.user_slots, active, somebody_waits=bounds.somebody_waits, skip_held=skip_held
    )
    free = bounds.free_run_slots
    room = Room(len(free), {queue.name: queue.free for queue in bounds.queues if queue.free})
    if not (room.queues and free):
        return []
    passed_over = turns.held_elsewhere(bounds.user_slots) if skip_held else set()
    able = [slot for slot in bounds.user_slots if slot.can_run and slot.holder not in passed_over]
    holders = holders_of(able, draining, bounds.leases)
    if not holders:
        return []
    chosen = plan(holders, _candidates(holders, room), room)
    pairs = zip(chosen, free, strict=False)
    return [Decision(candidate, number) for candidate, number in pairs]


def holders_of(
    user_slots: list[UserSlot], draining: set[int], leases: list[LeaseHeld]
) -> list[Holder]:
    """How the holders of these slots stand before the plan."""
    held = Counter(lease.tenant for lease in leases)
    members: dict[int, Counter[int]] = defaultdict(Counter)
    for lease in leases:
        members[lease.tenant][lease.member] += 1
    return [
        Holder(
            tenant=slot.holder,
            weight=slot.weight,
            leases=held[slot.holder],
            members=dict(members[slot.holder]),
            served=NEVER_SERVED - slot.served_ago_s,
            draining=slot.holder in draining,
        )
        for slot in user_slots
        if slot.holder is not None
    ]


# --- candidates --------------------------------------------------------------------------


def _candidates(holders: list[Holder], room: Room) -> list[Candidate]:
    """The first ready jobs of each (tenant, queue) and member: at most as many as fit."""
    asked = [(holder.tenant, queue) for holder in holders for queue in room.queues]
    places = {queue: min(number, room.slots) for queue, number in room.queues.items()}
    parts = [
        FIRST_AND_LAST.replace("{n}", str(n)).replace("{places}", _few_texts(places[queue]))
        for n, (_, queue) in enumerate(asked)
    ]
    values = [value for pair in asked for value in (*pair, *pair)]
    found: dict[tuple[int, str], list[Candidate]] = defaultdict(list)
    last: dict[tuple[int, str], Candidate] = {}
    for *row, is_last in sql.rows(" UNION ALL ".join(parts), values):
        each = _candidate(row)
        if is_last:
            last[each.tenant, each.queue] = each
        else:
            found[each.tenant, each.queue].append(each)
    for key, end in last.items():
        if _group(found[key][0]) != _group(end):
            found[key] = _of_every_group(*key, places[key[1]])
    return [each for line in found.values() for each in line]


def _few_texts(places: int) -> str:
    """The next power of two: plans are kept by text, and more candidates than fit do no harm."""
    return str(1 << max(0, places - 1).bit_length())


def _candidate(row: list[object]) -> Candidate:
    job, tenant, queue, priority, sequence, member = row
    return Candidate(job, tenant, queue, priority, sequence, member)  # type: ignore[arg-type]


def _group(candidate: Candidate) -> tuple[int, int]:
    return (candidate.priority, candidate.member)


def _of_every_group(tenant: int, queue: str, places: int) -> list[Candidate]:
    """Where members or priorities differ: the first jobs of each."""
    statement = GROUPS.replace("{most}", str(MOST_GROUPS))
    groups = sql.rows(statement, [tenant, queue] * 3)
    found: list[Candidate] = []
    for start in range(0, len(groups), 100):
        batch = groups[start : start + 100]
        part = OF_GROUP.replace("{places}", _few_texts(places))
        parts = [part.replace("{n}", str(n)) for n in range(len(batch))]
        values = [value for group in batch for value in (tenant, queue, *group)]
        found += [_candidate(list(row)) for row in sql.rows(" UNION ALL ".join(parts), values)]
    return found


# --- writing -----------------------------------------------------------------------------


def _write_together(decisions: list[Decision]) -> list[Promoted]:
    """Move the jobs to QUEUED, each with its lease, and tell it."""
    if not decisions:
        return []
    write = _write_at_once if sql.is_postgres() else _write
    moved = {job: (attempt, workflow) for job, attempt, workflow in write(decisions)}
    jobs = [each.candidate for each in decisions if each.candidate.job in moved]
    return [_promoted(job, *moved[job.job]) for job in jobs]


def _write_at_once(decisions: list[Decision]) -> list[sql.Row]:
    jobs = [each.candidate.job for each in decisions]
    return postgres.promote(jobs, [each.run_slot for each in decisions])


def _write(decisions: list[Decision]) -> list[sql.Row]:
    ids = [each.candidate.job for each in decisions]
    moved = sql.rows(sql.text(PROMOTE.replace("{ids}", sql.marks(ids))), ids)
    attempts = {job: attempt for job, attempt, _ in moved}
    done = [each for each in decisions if each.candidate.job in attempts]
    _hold(done, attempts)
    by_tenant: dict[int, list[int]] = {}
    for each in done:
        tenant = each.candidate.tenant
        # in the order of each one's last job, which is the order in which they were served (R5)
        by_tenant[tenant] = [*by_tenant.pop(tenant, []), each.candidate.job]
    for tenant, jobs in by_tenant.items():
        events.jobs_changed(tenant, jobs, served=True)
    return moved


def _promoted(job: Candidate, attempt: int, workflow: object) -> Promoted:
    return Promoted(job.job, attempt, job.queue, job.tenant, as_uuid(workflow))


def _hold(decisions: list[Decision], attempts: dict[int, int]) -> None:
    """A lease for each: nobody's yet. Its message is on its way, or the sweep sends it."""
    if not decisions:
        return
    values: list[object] = []
    for each in decisions:
        job = each.candidate
        values += [job.tenant, each.run_slot, job.job, job.queue, job.member, attempts[job.job]]
        values += [job.tenant, settings.WITHDRAW_S]
    rows = ", ".join([HOLD_ROW] * len(decisions))
    sql.run(sql.text(HOLD.replace("{rows}", rows)), values)


def _write_each_alone(decisions: list[Decision]) -> list[Promoted]:
    """A write that a constraint refuses holds that one job; the pass goes on."""
    promoted: list[Promoted] = []
    for decision in decisions:
        try:
            with transaction.atomic():
                promoted += _write_together([decision])
        except IntegrityError as error:
            tally.refused()
            log.error("job %d stays where it is: %s", decision.candidate.job, error)
    return promoted
