"""`probe`: sleeps, ticks and fails to order, for tests and benchmarks. It exists only where allowed.

Its own log is the truth that checks compare with: one JSON line for each start and end.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from jobs.types.base import JobType, Task

if TYPE_CHECKING:
    from jobs.imaging.contract import Outcome, Report

EXIT_CODE = 3
TICK_S = 0.1  # by default
LONGEST_SLEEP_S = 0.5  # a long tick still looks at the stop


class ProbeFailed(RuntimeError):
    """The failure that was ordered."""


def run(task: Task, report: Report) -> Outcome:
    """Sleep `seconds` in `ticks` steps, then fail as `fail` says, or succeed without artifacts."""
    from jobs.imaging.contract import Outcome

    with _logged(task):
        seconds = float(task.params.get("seconds", 0))
        ticks = int(task.params.get("ticks", 0)) or max(1, round(seconds / TICK_S))
        report("run", 0, ticks)
        _tick(seconds, ticks, report)
        if task.attempt <= int(task.params.get("fail_attempts", sys.maxsize)):
            _fail(str(task.params.get("fail", "none")))
    return Outcome(artifacts=[], main="", summary={"ticks": ticks})


def _tick(seconds: float, ticks: int, report: Report) -> None:
    """Ticks fall due by the clock, so that slow reports do not lengthen the job."""
    began_at = time.monotonic()
    for tick in range(1, ticks + 1):
        due = began_at + seconds * tick / ticks
        while (left_s := due - time.monotonic()) > 0:
            time.sleep(min(left_s, LONGEST_SLEEP_S))
            if left_s > LONGEST_SLEEP_S:
                report("run", tick - 1, ticks)
        report("run", tick, ticks)


def _fail(how: str) -> None:
    if how == "error":
        raise ProbeFailed("the probe failed as it was told to")
    if how == "exit":
        os._exit(EXIT_CODE)
    if how == "oom":
        bytearray(sys.maxsize - 1024)  # more than any address space: the allocator refuses
    while how == "hang":
        time.sleep(3600)


@contextmanager
def _logged(task: Task) -> Iterator[None]:
    """Write the start now, and the end however the body ends, as long as the process lives."""
    ok = False
    _write(task, {"event": "start"})
    try:
        yield
        ok = True
    finally:
        _write(task, {"event": "end", "ok": ok})


def _write(task: Task, entry: dict[str, object]) -> None:
    """Append one line by one write, which many processes may do at once."""
    from django.conf import settings

    if not settings.LABSCHED_PROBE_LOG:
        return
    line = {
        **entry,
        "job": task.job_uuid,
        "job_id": task.job_key,
        "tenant": task.tenant_key,
        "branch": task.branch,
        "attempt": task.attempt,
        "t": time.clock_gettime(time.CLOCK_MONOTONIC),
    }
    log = os.open(settings.LABSCHED_PROBE_LOG, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(log, (json.dumps(line) + "\n").encode())
    finally:
        os.close(log)


TYPE = JobType(
    name="probe",
    title="Probe",
    queue="cpu",
    phases=("run",),
    needs_slide=False,
    run=run,
    schema={
        "type": "object",
        "additionalProperties": False,
        "properties": {
            "seconds": {"type": "number", "minimum": 0, "maximum": 86_400},
            "ticks": {"type": "integer", "minimum": 0, "maximum": 1_000_000},
            "fail": {"enum": ["none", "error", "exit", "hang", "oom"]},
            "fail_attempts": {"type": "integer", "minimum": 0},
            "queue": {"enum": ["cpu", "gpu"]},
            "reuse": {"type": "boolean"},
            "timeout_s": {"type": "number", "exclusiveMinimum": 0, "maximum": 604_800},
            "stall_s": {"type": "number", "exclusiveMinimum": 0, "maximum": 86_400},
        },
    },
)
