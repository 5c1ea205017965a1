"""Passes of the scheduler, timed inside the process that makes them."""

from __future__ import annotations

import socket
import time
from typing import Any

from django.db import connection
from django.db.models.functions import Now

from bench.scheduling_cpu import backend_seconds
from jobs import services
from jobs.models import Worker
from jobs.scheduling import promotion


def line_up_workers(count: int) -> None:
    """Worker rows without processes: the pass promotes only where a live worker is warm."""
    Worker.objects.all().delete()
    Worker.objects.bulk_create(
        Worker(
            name=f"paper-{number}",
            queue="cpu",
            host=socket.gethostname(),
            pid=1,
            warm=True,
            seen_at=Now(),
        )
        for number in range(count)
    )


def passes(mode: str, count: int, promotes: int) -> dict[str, Any]:
    """Time `count` passes. Returns the seconds of each, and CPU a pass: ours, the backend's.

    saturated  what may run is running: `promotes` jobs hold their slots, a pass finds nothing
    free       every pass promotes `promotes` jobs; between two they go back, untimed
    """
    held = promotion.promote() if mode == "saturated" else []
    if held and len(held) != promotes:
        raise RuntimeError(f"{len(held)} jobs were promoted, not {promotes}: the load is wrong")
    for job, attempt in held:
        services.start(job, attempt, "paper-0")
    seconds, own, backend = [], 0.0, 0.0
    expected = promotes if mode == "free" else 0
    for _ in range(count):
        began, own_before, backend_before = time.perf_counter(), time.process_time(), _backend()
        promoted = promotion.promote()
        seconds.append(time.perf_counter() - began)
        own += time.process_time() - own_before
        backend += _backend() - backend_before
        if len(promoted) != expected:
            raise RuntimeError(f"a {mode} pass promoted {len(promoted)} jobs, not {expected}")
        _put_back(promoted)
    _put_back(held)
    return {"seconds": seconds, "own_s": own / count, "backend_s": backend / count}


def _put_back(promoted: list[tuple[int, int]]) -> None:
    for job, attempt in promoted:
        if not services.hand_back(job, attempt):
            raise RuntimeError(f"job {job} attempt {attempt} could not be put back")


def _backend() -> float:
    """CPU so far of the backend that serves this process; SQLite has none."""
    if connection.vendor == "sqlite":
        return 0.0
    return backend_seconds(connection.connection.info.backend_pid)
