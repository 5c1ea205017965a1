"""The long-lived child of a worker: loads the model once, then runs one job after another.

It is spawned, never forked (CUDA does not survive a fork), and never outlives its parent.
Nothing here imports Django before `django.setup()`.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from ctypes import c_double
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

PR_SET_PDEATHSIG = 1
LOOK_AT_CONNECTION_S = (
    5.0  # whether it still works costs a round trip; a broken one is opened anew anyway
)
log = logging.getLogger(__name__)

# What the child says. READY and COLD come once, STARTED and DONE for every job.
READY, COLD, STARTED, DONE = "ready", "cold", "started", "done"
Said = tuple[str, Any]
Asked = tuple[int, int, int]  # job, attempt, and the shard to help with: 0 is the job itself


@dataclass(frozen=True)
class Station:
    """The child's side of its worker: who it works for, and how it shows that it lives."""

    worker: str
    pipe: Connection
    heart: c_double

    def beat(self) -> None:
        """Note that work goes on now; the parent kills a child that stops doing so."""
        self.heart.value = time.monotonic()

    def say(self, kind: str, content: Any = None) -> None:
        self.pipe.send((kind, content))


def main(
    worker: str, queue_name: str, parent: int, pipe: Connection, life: Connection, heart: c_double
) -> None:
    """Serve the parent until it goes away or asks for no more.

    pipe  brings orders, and takes what is said
    life  is silent, and ends with the parent
    """
    _settle_in(parent)
    station = Station(worker, pipe, heart)
    _end_with(life)
    import django

    django.setup()
    from jobs.running import gpu_memory

    if (device := _warm_up(queue_name, station)) is None:
        return
    station.beat()
    station.say(READY, device)
    gpu_memory.watch(worker)
    _serve(station)


def _settle_in(parent: int) -> None:
    """A process group of its own, signals left to the parent, death together with it."""
    os.setpgid(0, 0)
    # handlers, not SIG_IGN: programs started from here must not inherit deafness
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: None)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(0)  # it died before the line above


def _end_with(life: Connection) -> None:
    """The end of the parent is that of this group."""

    def wait() -> None:
        with contextlib.suppress(EOFError, OSError):
            life.recv()
        os.killpg(0, signal.SIGKILL)

    threading.Thread(target=wait, name="life", daemon=True).start()


def _warm_up(queue_name: str, station: Station) -> str | None:
    """Load what jobs of this queue need. The device, or None after saying why it can not be."""
    from jobs.running import warmth

    try:
        return warmth.warm_up(queue_name)
    except Exception as error:
        reason = warmth.why_cold(error)
        log.warning("the worker can not warm up: %s", reason)
        station.say(COLD, reason)
        return None


def _serve(station: Station) -> None:
    from django.db import close_old_connections

    from jobs.running import shards, tasks
    from jobs.scheduling.dispatch import Order

    gc.freeze()  # what is loaded now stays: no collection need look at it again
    looked_at = time.monotonic()
    for job_pk, attempt, shard in _orders(station.pipe):
        station.beat()
        if time.monotonic() - looked_at > LOOK_AT_CONNECTION_S:
            looked_at = time.monotonic()
            close_old_connections()
        if shard:
            healthy = shards.help_with(Order(job_pk, attempt, shard), station)
        else:
            healthy = tasks.run_attempt(job_pk, attempt, station)
        station.say(DONE, healthy)
        if not healthy:
            return  # memory ran out here once; the next job gets a fresh process


def _orders(pipe: Connection) -> Iterator[Asked]:
    with contextlib.suppress(EOFError, OSError):  # the parent is gone
        while True:
            yield pipe.recv()
