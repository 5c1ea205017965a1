"""One job spread over several workers: a lease with a shard above 0 lets a worker help with it.

Helpers take only what nobody else could use now, and are asked back as soon as somebody could. To
the job they are nothing: no attempt, no failure, no event. Decided once a sweep, not in the pass
that promotes, so that a promotion costs what it did (R12).
"""

from __future__ import annotations

import contextlib
import time
from collections import Counter, defaultdict
from collections.abc import Iterable
from typing import NamedTuple

from django.conf import settings

from jobs import sql
from jobs.scheduling import dispatch, promotion, slots, turns
from jobs.scheduling.dispatch import Message
from jobs.scheduling.plan import Candidate, Room, plan
from jobs.scheduling.slots import Bounds, QueueState
from jobs.states import JobState

SPREADS = ("cell_segmentation",)  # the job types whose work may be shared
WORTH_S = 10.0  # a job that is nearly done needs no help: a helper has to open its slide first
AGAIN_S = 10.0  # helpers that come and go all the time do not help
RESERVED = "cpu"  # the queue that one run slot is kept for (R3)

# "cross": SQLite begins with the leases, which are few
ANY = f"""
    SELECT 1 FROM jobs_lease l CROSS JOIN jobs_job j
    WHERE j.id = l.job_id AND (l.shard > 0 OR j.state = {JobState.RUNNING:d} AND j.job_type IN ({sql.marks(SPREADS)}))
    LIMIT 1
"""
# newest first
HELPERS = """
    SELECT l.id, l.job_id, l.attempt, l.shard, l.queue, l.worker,
        EXISTS (SELECT 1 FROM jobs_worker w WHERE w.name = l.worker AND w.draining)
    FROM jobs_lease l WHERE l.shard > 0 ORDER BY l.id DESC
"""
# as many as hold leases: those that run, whose units of work are known, with enough of them left
WORTHY = f"""
    SELECT l.job_id, l.tenant_id, l.queue, l.member, j.sequence, l.attempt
    FROM jobs_lease l CROSS JOIN jobs_job j JOIN jobs_jobprogress p ON p.job_id = j.id
        JOIN tenants_tenant t ON t.id = j.tenant_id JOIN jobs_branch b ON b.id = j.branch_id
    WHERE j.id = l.job_id AND l.shard = 0 AND l.worker <> '' AND l.expires_at > {{now}}
        AND j.state = {JobState.RUNNING:d} AND j.attempt = l.attempt AND p.attempt = l.attempt
        AND j.cancel_requested_at IS NULL AND NOT t.paused AND NOT b.paused
        AND j.job_type IN ({sql.marks(SPREADS)})
        AND p.tiles_done > 0 AND {{age}} * (p.tiles_total - p.tiles_done) >= %s * p.tiles_done
"""
READY = f"""
    SELECT count(*) FROM (SELECT 1 FROM jobs_job WHERE tenant_id IN ({{ids}}) AND queue = %s
        AND state = {JobState.READY:d} LIMIT %s) found
"""
IN_LINE = f"""
    SELECT 1 FROM tenants_tenant t WHERE t.waiting_since IS NOT NULL AND NOT t.paused
        AND EXISTS (SELECT 1 FROM jobs_job r WHERE r.tenant_id = t.id AND r.queue = %s
            AND r.state = {JobState.READY:d})
    ORDER BY t.waiting_since, t.id LIMIT 1
"""
# one that ends meanwhile waits for this row, and takes with it what is inserted here
LOCK = f"""
    SELECT id, attempt FROM jobs_job WHERE id IN ({{ids}}) AND state = {JobState.RUNNING:d}
    ORDER BY id {{lock_free}}
"""
HELP_ROW = "(%s, %s, %s, %s, %s, %s, %s, '', %s, {later}, {now})"
# of no attempt any more: its worker is fenced, stops, and lets go of what it holds until then
RECALL = """
    UPDATE jobs_lease SET attempt = 0 WHERE id IN (
        SELECT id FROM jobs_lease WHERE id IN ({ids}) AND worker <> '' ORDER BY id {skip})
"""
WITHDRAW = """
    DELETE FROM jobs_lease WHERE id IN (
        SELECT id FROM jobs_lease WHERE id IN ({ids}) AND worker = '' ORDER BY id {skip})
    RETURNING job_id, attempt, queue, shard
"""
DROP = "DELETE FROM jobs_lease WHERE id = %s AND shard > 0 AND expires_at < {now}"


class Helper(NamedTuple):
    """A worker's hold on a part of a job; nobody's yet while `worker` is empty."""

    lease: int
    job: int
    attempt: int
    shard: int
    queue: str
    worker: str
    draining: bool

    @property
    def recalled(self) -> bool:
        return self.attempt == 0


class Worthy(NamedTuple):
    """A job that runs and that others could help with."""

    job: int
    tenant: int
    queue: str
    member: int
    sequence: int
    attempt: int


def settle() -> list[Message]:
    """Ask helpers back where work waits for their places; send some where workers lie idle.

    The messages of those that were sent. Where no slide is to be spread any more, those that help
    still are asked back like any other.
    """
    if not (sql.rows(sql.text(ANY), SPREADS) if settings.SPREAD_SHARDS > 1 else sql.rows(HELPERS)):
        return []
    sent: list[Message] = []
    gone: list[Message] = []
    with contextlib.suppress(sql.RowHeld), sql.briefly():  # else by the next sweep
        slots.take_pass_lock()
        bounds = slots.read_bounds()
        helpers = [Helper(*row) for row in sql.rows(HELPERS)]
        draining = turns.draining(bounds.user_slots)
        able = {slot.holder for slot in bounds.user_slots if slot.can_run} - draining - {None}
        # in maintenance nothing starts on a place that is given up
        waiting = Counter() if bounds.maintenance else _ready(able, bounds.queues)
        back = to_recall(waiting, bounds, helpers)
        gone = _recall(back)
        if not bounds.maintenance:
            sent = _send(bounds, helpers, draining, waiting)
    dispatch.take_back(*gone)
    dispatch.push(sent)
    return sent


def drop(lease_pk: int) -> bool:
    """End a helper's hold that was not renewed in time; its job goes on."""
    with contextlib.suppress(sql.RowHeld), sql.briefly():  # else by the next sweep
        return sql.run(sql.text(DROP), [lease_pk]) == 1
    return False


# --- asked back --------------------------------------------------------------------------


def to_recall(waiting: Counter[str], bounds: Bounds, helpers: list[Helper]) -> list[Helper]:
    """The helpers whose places others need, the newest first.

    waiting  ready jobs of each queue that may start
    helpers  all there are, the newest first
    """
    back = [each for each in helpers if each.draining and not each.recalled]
    coming = Counter(each.queue for each in helpers if each.recalled)
    for queue in bounds.queues:
        fits = min(queue.free, len(bounds.free_run_slots))
        too_many = queue.leases - min(queue.capacity, queue.workers) - coming[queue.name]
        lacking = max(0, too_many, waiting[queue.name] - fits - coming.total())
        left = [each for each in helpers if not each.recalled and each not in back]
        own = [each for each in left if each.queue == queue.name][:lacking]
        # the queue has room, and all run slots are taken: any helper's will do
        others = [each for each in left if each.queue != queue.name]
        back += own + others[: min(lacking - len(own), queue.free)]
    return back


def _recall(helpers: list[Helper]) -> list[Message]:
    """Have them let go. The messages of those that no worker had taken: they are gone."""
    if not helpers:
        return []
    ids = [each.lease for each in helpers]
    marked = [each.replace("{ids}", sql.marks(ids)) for each in (RECALL, WITHDRAW)]
    sql.run(sql.text(marked[0]), ids)
    return [Message(*row) for row in sql.rows(sql.text(marked[1]), ids)]


def _ready(tenants: Iterable[int | None], queues: Iterable[QueueState]) -> Counter[str]:
    """How many jobs of these tenants are ready in each queue, counted as far as it matters."""
    ids = sorted(pk for pk in tenants if pk is not None)
    if not ids:
        return Counter()
    statement = READY.replace("{ids}", sql.marks(ids))
    asked = [queue.name for queue in queues if not queue.paused]
    most = settings.MAX_WORKERS
    return Counter({name: sql.rows(statement, [*ids, name, most])[0][0] for name in asked})


# --- sent --------------------------------------------------------------------------------


def _send(
    bounds: Bounds, helpers: list[Helper], draining: set[int], waiting: Counter[str]
) -> list[Message]:
    """One more helper for a job, where its queue's workers lie idle: by R5, and within a tenant to
    the job with the fewest."""
    room = _room(bounds, waiting)
    if not (room.slots and room.queues):
        return []
    of_job: dict[int, list[Helper]] = defaultdict(list)
    for each in helpers:
        of_job[each.job].append(each)
    worthy = {
        each.job: each
        for each in _worthy()
        if each.queue in room.queues and _may_have_more(each, of_job[each.job])
    }
    holders = promotion.holders_of(
        [slot for slot in bounds.user_slots if slot.holder], draining, bounds.leases
    )
    candidates = [
        Candidate(
            each.job, each.tenant, each.queue, -len(of_job[each.job]), each.sequence, each.member
        )
        for each in worthy.values()
    ]
    chosen = [worthy[each.job] for each in plan(holders, candidates, room)]
    return _hold(chosen, of_job, bounds.free_run_slots)


def _room(bounds: Bounds, waiting: Counter[str]) -> Room:
    """What lies idle: in queues that nobody waits for, also none in line for a user slot."""
    free = len(bounds.free_run_slots)
    kept = 0 if any(lease.queue == RESERVED for lease in bounds.leases) else 1
    found = {
        queue.name: min(queue.free, free if queue.name == RESERVED else free - kept)
        for queue in bounds.queues
        if not waiting[queue.name]
    }
    return Room(
        free,
        {name: fits for name, fits in found.items() if fits > 0 and not sql.rows(IN_LINE, [name])},
    )


def _worthy() -> list[Worthy]:
    statement = sql.text(WORTHY.replace("{age}", sql.age("j.started_at")))
    return [Worthy(*row) for row in sql.rows(statement, [*SPREADS, WORTH_S])]


def _may_have_more(job: Worthy, helpers: list[Helper]) -> bool:
    """Whether those it was sent have come, and it is not yet spread as far as may be."""
    settled = all(each.worker and not each.recalled for each in helpers)
    return settled and 1 + len(helpers) < settings.SPREAD_SHARDS and _pace.allows(job, len(helpers))


def _hold(chosen: list[Worthy], of_job: dict[int, list[Helper]], free: list[int]) -> list[Message]:
    """A lease for each, nobody's yet: the outbox, as for a promotion."""
    if not chosen:
        return []
    ids = [each.job for each in chosen]
    runs = sql.rows(sql.text(LOCK.replace("{ids}", sql.marks(ids))), ids)
    still = [each for each in chosen if (each.job, each.attempt) in runs]
    sent: list[Message] = []
    values: list[object] = []
    for each, run_slot in zip(still, free, strict=False):
        shard = _next_shard(of_job[each.job])
        values += [each.tenant, run_slot, each.job, each.queue, each.member, each.attempt, shard]
        values += [each.tenant, settings.WITHDRAW_S]
        sent.append(Message(each.job, each.attempt, each.queue, shard))
        _pace.note(each)
    if sent:
        rows = ", ".join([HELP_ROW] * len(sent))
        sql.run(sql.text(promotion.HOLD.replace("{rows}", rows)), values)
    return sent


def _next_shard(helpers: list[Helper]) -> int:
    taken = {each.shard for each in helpers}
    return next(number for number in range(1, len(taken) + 2) if number not in taken)


class _Pace:
    """How often this process sent helpers to the jobs that run: where they do not stay, because
    nothing is left for them, their device is another, or they fail, more come only now and then."""

    def __init__(self) -> None:
        self._sent: dict[tuple[int, int], tuple[int, float]] = {}

    def allows(self, job: Worthy, helpers: int) -> bool:
        """At once while all that were sent have stayed, but for one, which may have died."""
        count, at = self._sent.get((job.job, job.attempt), (0, 0.0))
        return helpers + 1 >= count or time.monotonic() >= at + AGAIN_S

    def note(self, job: Worthy) -> None:
        now = time.monotonic()
        fresh = {key: value for key, value in self._sent.items() if now < value[1] + AGAIN_S}
        count, _ = fresh.get((job.job, job.attempt), (0, now))
        self._sent = {**fresh, (job.job, job.attempt): (count + 1, now)}


_pace = _Pace()
