"""Counts that no other row keeps: what schedulers did, and how jobs went that ended. For /metrics.

Each scheduler counts in memory and adds it to the one row every few seconds: one that stops, in
order or killed, loses what it counted since, nothing else does. Jobs that ended are read once, up
to a moment that moves on with the row, so these numbers do not cost more as the history grows.
"""

from __future__ import annotations

import datetime as dt
import time
from bisect import bisect_left
from collections import deque
from collections.abc import Iterable
from typing import Any, NamedTuple

from django.db.models import F
from django.db.models.functions import Now
from django.utils import timezone

from jobs.models import Job, Lease, Tally
from jobs.models.jobs import JobQuerySet
from jobs.scheduling.dispatch import Promoted
from jobs.states import FIRST_TERMINAL, JobState, Reason

SWEEP = "scheduler_sweep_seconds"
PROMOTION = "scheduler_promotion_latency_seconds"
REFUSED = "scheduler_promotions_refused"
LOSSES = "scheduler_lease_losses"
WAIT = "job_wait_seconds"
LATENCY = "job_latency_seconds"
TILES, CELLS, BUSY = "imaging_tiles", "imaging_cells", "imaging_busy_seconds"

LONG = (0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800, 3600, 7200, 21600)
BUCKETS_S: dict[str, tuple[float, ...]] = {
    SWEEP: (0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10),
    PROMOTION: (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, *LONG),
    WAIT: LONG,
    LATENCY: LONG,
}
MORE, SUM = "+Inf", "sum"
KEEP_EVERY_S = 5.0
LAG = dt.timedelta(seconds=20)  # an end is written before it is committed
AT_ONCE = dt.timedelta(minutes=1)  # of ends, where no scheduler kept counts for long
FIRST_LOOK = dt.timedelta(minutes=10)  # counts begin at nought, whatever was there before
MOST_NOTED = 50_000
CHUNK = 500
Counts = dict[str, float]

_counts: Counts = {}
_noted: deque[tuple[int, int]] = deque(maxlen=MOST_NOTED)
_kept = {"at": time.monotonic()}


class Kept(NamedTuple):
    """The row as it is, and the database's moment."""

    until: dt.datetime
    counts: Counts
    now: dt.datetime


# --- what a scheduler counts; it costs no query ------------------------------------------


def swept(began_at: float) -> None:
    """A sweep that began at this monotonic moment is over."""
    _observe(_counts, SWEEP, time.monotonic() - began_at)


def promoted(jobs: Iterable[Promoted]) -> None:
    """These were promoted; how long they had been ready is read when the counts are kept."""
    _noted.extend((each.job, each.attempt) for each in jobs)


def refused() -> None:
    """The database refused to promote a job (R9)."""
    _add(_counts, key(REFUSED))


def lease_ran_out(lease: Lease) -> None:
    """A lease was ended: its worker was lost, or no worker took it in time (a job's own, not the
    offer to help with one)."""
    if lease.shard and not lease.worker:
        return
    state = JobState.RUNNING if lease.worker else JobState.QUEUED
    _add(_counts, key(LOSSES, lease.queue, state.public))


# --- the row -----------------------------------------------------------------------------


def key(name: str, *labels: str) -> str:
    """What a count is called in the row."""
    return " ".join((name, *labels))


def edge(seconds: float) -> str:
    """The upper edge of a bucket, as Prometheus has it."""
    return str(float(seconds))


def keep_in_time() -> None:
    """`keep`, when it is time to. Raises DatabaseError."""
    if time.monotonic() - _kept["at"] >= KEEP_EVERY_S:
        _kept["at"] = time.monotonic()
        keep()


def keep() -> bool:
    """Add what was counted to the row. False when another scheduler did so just now: next time."""
    _look_at_promotions()
    kept = _read() or _begin()
    until = _until(kept)
    if until <= kept.until:
        return False
    counts = kept.counts
    _add_all(counts, _counts)
    _add_all(counts, _ended(finished_at__gt=kept.until, finished_at__lte=until))
    row = Tally.objects.filter(pk=1, ended_until=kept.until)
    if row.update(ended_until=until, counts=counts) != 1:
        return False
    _counts.clear()
    return True


def read() -> Counts:
    """What was kept, and what succeeded since: that can not be retried, so no count ever falls."""
    kept = _read()
    since = kept.until if kept else timezone.now() - FIRST_LOOK
    counts = kept.counts if kept else {}
    _add_all(counts, _ended(finished_at__gt=since, state=JobState.SUCCEEDED.value))
    return counts


def _until(kept: Kept) -> dt.datetime:
    """Up to when ends are read now: of a long absence a minute in which some were, each time."""
    until = kept.now - LAG
    if until - kept.until <= AT_ONCE:
        return until
    ends = _jobs_ended(finished_at__gt=kept.until).order_by("finished_at")
    first = ends.values_list("finished_at", flat=True).first()
    return until if first is None else min(until, first + AT_ONCE)


def _read() -> Kept | None:
    rows = Tally.objects.filter(pk=1).annotate(now=Now())
    found = rows.values_list("ended_until", "counts", "now").first()
    return None if found is None else Kept(*found)


def _begin() -> Kept:
    now = timezone.now()
    Tally.objects.get_or_create(pk=1, defaults={"ended_until": now - FIRST_LOOK})
    found = _read()
    if found is None:
        raise Tally.DoesNotExist
    return found


# --- rows of jobs ------------------------------------------------------------------------


def _look_at_promotions() -> None:
    noted = dict(_noted)
    pks = list(noted)
    jobs = Job.objects.across_tenants("promotions of all tenants are counted")
    # one that went back meanwhile is ready anew: nobody knows any more since when it was
    found: list[tuple[int, int, dt.datetime, dt.datetime]] = []
    for start in range(0, len(pks), CHUNK):
        chunk = jobs.filter(pk__in=pks[start : start + CHUNK], queued_at__gte=F("ready_at"))
        found += chunk.values_list("pk", "attempt", "ready_at", "queued_at")
    _noted.clear()
    for pk, attempt, ready_at, queued_at in found:
        if attempt == noted[pk]:
            _observe(_counts, PROMOTION, (queued_at - ready_at).total_seconds())


def _jobs_ended(**when: Any) -> JobQuerySet:
    found: JobQuerySet = Job.objects.across_tenants("jobs of all tenants are counted").filter(
        state__gte=int(FIRST_TERMINAL),  # the words of the index
        **when,
    )
    return found


def _ended(**when: Any) -> Counts:
    """What jobs say that ended then, promoted since they were last ready: cancelled, they may have
    gone back before, with the moment of a promotion that led nowhere."""
    counts: Counts = {}
    jobs = _jobs_ended(queued_at__gte=F("ready_at"), **when)
    for created, queued, started, finished, reason, summary in jobs.values_list(
        "created_at", "queued_at", "started_at", "finished_at", "reason", "summary"
    ).iterator():
        _observe(counts, WAIT, (queued - created).total_seconds())
        _observe(counts, LATENCY, (finished - queued).total_seconds())
        tiles, cells = summary.get("tiles"), summary.get("cells")
        if isinstance(tiles, int) and started and reason != Reason.REUSED.value:
            _add(counts, key(TILES), tiles)
            _add(counts, key(CELLS), cells if isinstance(cells, int) else 0)
            _add(counts, key(BUSY), (finished - started).total_seconds())
    return counts


def _observe(counts: Counts, name: str, seconds: float) -> None:
    edges = BUCKETS_S[name]
    place = bisect_left(edges, seconds)
    _add(counts, key(name, edge(edges[place]) if place < len(edges) else MORE))
    _add(counts, key(name, SUM), seconds)


def _add(counts: Counts, name: str, by: float = 1) -> None:
    counts[name] = counts.get(name, 0) + by


def _add_all(counts: Counts, more: Counts) -> None:
    for name, by in more.items():
        _add(counts, name, by)
