"""What plain RQ runs: nothing, the next of a chain, or a note of when it began."""

from __future__ import annotations

import os
import time

from rq import Queue, get_current_job


def noop() -> None:
    """The empty body."""


def chain_step() -> None:
    """Enqueue the next job of the chain, then end."""
    job = get_current_job()
    if job is not None:
        Queue(job.origin, connection=job.connection).enqueue(chain_step)


def mark() -> None:
    """Write when this body began, by the clock that probes use."""
    line = f"{time.clock_gettime(time.CLOCK_MONOTONIC)}\n".encode()
    log = os.open(os.environ["BENCH_MARKS"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(log, line)
    finally:
        os.close(log)
