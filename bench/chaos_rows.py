"""What a chaos run reads from the database of its stack: leases and who holds them, jobs, backlogs.

Imported after `django.setup()` on that database. It only reads: the runs are judged by what the
stack wrote.
"""

from __future__ import annotations

import bisect
import datetime as dt
import time
import uuid
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

from django.db import connection
from django.db.models import Count, DurationField, ExpressionWrapper, F
from django.db.models.functions import Now

from jobs.models import Edge, Job, Lease, Worker
from jobs.states import JobState

Row = dict[str, Any]
WHY = "a chaos run judges all tenants together"
PLAIN = ("key", "sequence", "reason", "on_failure", "attempt", "failures")
NAMED = {"uuid": "id", "tenant__key": "tenant", "branch__name": "branch", "workflow": "workflow"}


@dataclass(frozen=True)
class Held:
    """A lease that a worker took; `expires` is on the monotonic clock."""

    job: str
    attempt: int
    worker: str
    expires: float

    @property
    def plain(self) -> Row:
        return {"job": self.job, "attempt": self.attempt, "expires": self.expires}


def held_by_pid() -> dict[int, list[Held]]:
    """The leases that workers hold now, by the process id of the worker's parent."""
    left = ExpressionWrapper(F("expires_at") - Now(), output_field=DurationField())
    now = time.monotonic()
    leases = Lease.objects.across_tenants(WHY).exclude(worker="").annotate(left=left)
    rows = list(leases.values_list("job__uuid", "attempt", "worker", "left"))
    pids = dict(Worker.objects.values_list("name", "pid"))
    found: dict[int, list[Held]] = defaultdict(list)
    for job, attempt, worker, seconds in rows:
        held = Held(str(job), attempt, worker, now + seconds.total_seconds())
        found[pids.get(worker, 0)].append(held)
    return found


class LeaseBook:
    """When each lease was first and last seen: how long a body that left no end was its row's own."""

    def __init__(self) -> None:
        self._entries: dict[tuple[str, int], Row] = {}

    def note(self, leases: dict[int, list[Held]], now: float) -> None:
        """Take in what `held_by_pid` found at `now`, or a moment later."""
        for held in (each for mine in leases.values() for each in mine):
            entry = self._entries.setdefault(
                (held.job, held.attempt),
                {"what": "lease", "job": held.job, "attempt": held.attempt, "from": now},
            )
            entry["until"] = now

    def entries(self) -> list[Row]:
        return list(self._entries.values())


class Clock:
    """Moments of the rows on the monotonic clock of the log, whatever is done to the wall clock."""

    def __init__(self) -> None:
        self._walls: list[float] = []
        self._ahead_s: list[float] = []

    def note(self) -> None:
        """Compare the clocks; called throughout the run."""
        wall = time.time()
        self._walls.append(wall)
        self._ahead_s.append(wall - time.monotonic())

    def monotonic(self, moment: dt.datetime | None) -> float | None:
        """By the comparison that came next after the moment."""
        if moment is None:
            return None
        place = bisect.bisect_left(self._walls, moment.timestamp())
        return moment.timestamp() - self._ahead_s[min(place, len(self._ahead_s) - 1)]


def live_by_tenant() -> dict[str, int]:
    """How many jobs of each tenant are not over."""
    live = Job.objects.across_tenants(WHY).live()
    return dict(live.values_list("tenant__key").annotate(Count("pk")))


def jobs(clock: Clock) -> list[Row]:
    """Every job as a verdict reads it."""
    upstream: dict[uuid.UUID, list[str]] = defaultdict(list)
    edges = Edge.objects.across_tenants(WHY)
    for below, above in edges.values_list("downstream__uuid", "upstream__uuid"):
        upstream[below].append(str(above))
    rows = Job.objects.across_tenants(WHY).values(*PLAIN, *NAMED, "state", "finished_at")
    return [
        {
            **{name: row[name] for name in PLAIN},
            **{name: str(row[path]) for path, name in NAMED.items()},
            "state": JobState(row["state"]).public,
            "finished_at": clock.monotonic(row["finished_at"]),
            "upstream": upstream[row["uuid"]],
        }
        for row in rows
    ]


def close() -> None:
    """Let go of the database, so that it can be dropped."""
    connection.close()
