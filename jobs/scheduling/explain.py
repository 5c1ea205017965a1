"""Why a waiting job waits: every gate with its present value, its place in line, its start (R13)."""

from __future__ import annotations

import datetime as dt
import math
from typing import Any

from jobs.models import Job
from jobs.scheduling import ahead, gates
from jobs.scheduling.durations import UNKNOWN, Span
from jobs.scheduling.gates import Gate, House, Waiting
from jobs.scheduling.line import Line
from jobs.shapes import moment
from jobs.states import JobState, Reason

Answer = dict[str, Any]
NEXT_PASS = "Nothing holds it: it starts with the scheduler's next pass."  # noqa: S105


def why(job: Job) -> Answer:
    """The rule that holds `job` now. For an active or ended job: that, in words."""
    if job.status.terminal:
        return _told(job.reason, f"This job is over: {job.status.public}.")
    if job.status is JobState.RUNNING:
        return _told(job.reason, "This job is running.")
    if job.status is JobState.QUEUED:
        return _told(Reason.NONE, "A worker is about to take this job.")
    line = Line(job.tenant)
    return answer(ahead.waiting(job, line), line.house, line.start_of(job.pk), line.now)


def answer(job: Waiting, house: House, start: Span, now: dt.datetime) -> Answer:
    """The whole answer about one waiting job, on plain values."""
    found = gates.gates(job, house)
    gate = gates.holding(found)
    told = _told(gate.reason, gate.detail) if gate else _told(job.reason, NEXT_PASS)
    early, typical, late = start if can_be_known(gate) else UNKNOWN
    return told | {
        "blocking": [each.shape() for each in gate.blocking] if gate else [],
        "position": gates.place(job, house),
        "estimated_start": _at(now, typical),
        "estimated_range": None if math.isinf(typical) else [_at(now, early), _at(now, late)],
        "gates": [each.shape() for each in found],
    }


def can_be_known(gate: Gate | None) -> bool:
    """A person opens these gates, and nobody knows when."""
    return gate is None or gate.reason not in (
        Reason.MAINTENANCE,
        Reason.PAUSED,
        Reason.NO_WORKER,
    )


def _told(reason: str, detail: str) -> Answer:
    return {
        "reason": str(reason),
        "detail": detail,
        "blocking": [],
        "position": None,
        "estimated_start": None,
        "estimated_range": None,
        "gates": [],
    }


def _at(now: dt.datetime, seconds: float) -> str | None:
    """A moment to the second: an estimate claims no more."""
    if math.isinf(seconds):
        return None
    return moment((now + dt.timedelta(seconds=math.ceil(seconds))).replace(microsecond=0))
