"""The parent's handle on its child: spawn it, order, listen, kill. It knows no database, no Redis."""

from __future__ import annotations

import contextlib
import ctypes
import logging
import math
import multiprocessing
import os
import select
import signal
import time
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess

from jobs.running import child, endings
from jobs.running.child import Said

KILL_WAIT_S = 5.0
log = logging.getLogger(__name__)


class ChildHandle:
    """The one child of a worker, spawned anew after each death.

    Spawn from the main thread alone: the kernel ties the child's life to the spawning thread.
    """

    def __init__(self, worker: str, queue_name: str) -> None:
        self.worker = worker
        self.queue_name = queue_name
        self._context = multiprocessing.get_context("spawn")
        self._process: SpawnProcess | None = None
        self._pipe: Connection | None = None
        self._life: Connection | None = None  # nothing is said on it: it ends with this process
        self._heart = self._context.RawValue(ctypes.c_double, 0.0)
        self._kills_before = 0
        self.exit_code = 0

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.is_alive()

    @property
    def pid(self) -> int:
        return (self._process.pid or 0) if self._process else 0

    @property
    def beat_at(self) -> float:
        """When the child last showed that its work goes on, on the monotonic clock."""
        return float(self._heart.value)

    def spawn(self) -> None:
        """Start a child; it says READY or COLD once it has loaded."""
        ours, theirs = self._context.Pipe()
        end, life = self._context.Pipe(duplex=False)
        arguments = (self.worker, self.queue_name, os.getpid(), theirs, end, self._heart)
        self._process = self._context.Process(
            target=child.main, args=arguments, name=f"child of {self.worker}", daemon=True
        )
        self._process.start()
        theirs.close()
        end.close()
        self._pipe, self._life = ours, life

    def order(self, job_pk: int, attempt: int, shard: int) -> None:
        """Have the child run one attempt, or help with it. A child that is gone shows at the next listen."""
        self._heart.value = time.monotonic()
        self._kills_before = endings.kernel_oom_kills()
        with contextlib.suppress(OSError):
            if self._pipe is not None:
                self._pipe.send((job_pk, attempt, shard))

    def listen(self, timeout_s: float | None, *, also: int) -> Said | None:
        """What the child says next; None when time is over, the child is gone or `also` is readable."""
        if self._process is None or self._pipe is None:
            return None
        ends = select.poll()
        for end in (self._pipe.fileno(), self._process.sentinel, also):
            ends.register(end, select.POLLIN)
        ready = ends.poll(None if timeout_s is None else max(0, math.ceil(timeout_s * 1000)))
        if self._pipe.fileno() not in dict(ready):
            return None
        try:
            said: Said = self._pipe.recv()
        except (EOFError, OSError):
            self._process.join(KILL_WAIT_S)
            return None
        return said

    def kill(self) -> None:
        """SIGKILL for the child and whatever it started; returns when it is gone."""
        if self._process is None:
            return
        with contextlib.suppress(OSError):  # its group is gone, or not made yet
            os.killpg(self.pid, signal.SIGKILL)
        self._process.kill()
        self.bury()

    def bury(self) -> None:
        """Take the exit code of a child that ended, and let go of what belonged to it."""
        if self._process is None:
            return
        self._process.join(KILL_WAIT_S)
        if self._process.is_alive():
            self._process.kill()
            self._process.join(KILL_WAIT_S)
        code = self._process.exitcode
        self.exit_code = -signal.SIGKILL if code is None else code
        for each in (self._pipe, self._life):
            if each is not None:
                each.close()
        self._process = self._pipe = self._life = None

    def oom_kills_since_order(self) -> int:
        """How many processes the kernel ended for memory since the last order."""
        return endings.kernel_oom_kills() - self._kills_before
