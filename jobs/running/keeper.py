"""The thread that keeps a worker's row fresh and its lease alive. It needs the database alone."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from django.conf import settings
from django.db import DatabaseError, InterfaceError, close_old_connections

from jobs.models import Worker
from jobs.running.persist import reconnect
from jobs.running.watch import Watch
from jobs.scheduling import leases, workers

AGAIN_S = 1.0  # after a write that failed
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Held:
    """The attempt whose lease is being kept."""

    job_pk: int
    attempt: int
    watch: Watch


class Keeper(threading.Thread):
    """Says every few seconds that the worker lives, and renews the lease of what it runs.

    It only notes what it learnt (a request to cancel, a lost fence) on the watch and calls
    `learnt`; to judge and to kill is the main thread's part, which a slow database can not block.
    """

    def __init__(self, worker: str, queue_name: str, *, learnt: Callable[[], None]) -> None:
        super().__init__(name="keeper", daemon=True)
        self.worker = worker
        self.queue_name = queue_name
        self.learnt = learnt
        self.draining = False
        self.device = ""
        self.warm = False
        self._announce = True
        self._row_due = 0.0
        self._lease_due = math.inf
        self._wakes_at = math.inf
        self._held: Held | None = None
        self._changed = threading.Event()
        self._closed = False

    # --- called by the main thread -------------------------------------------------------

    def show(self, device: str, *, warm: bool) -> None:
        """Tell the schedulers whether this worker takes jobs, and on what device."""
        self.device, self.warm = device[:100], warm
        self._announce, self._row_due = True, 0.0
        self._changed.set()

    def hold(self, job_pk: int, attempt: int, watch: Watch) -> None:
        """Renew the lease of this attempt from now on."""
        self._lease_due = time.monotonic() + self._renewal_s()
        self._held = Held(job_pk, attempt, watch)
        if self._lease_due < self._wakes_at:
            self._changed.set()

    def let_go(self) -> None:
        """Renew no lease any more."""
        self._held = None
        self._lease_due = math.inf

    def close(self) -> None:
        """End the thread and remove the worker's row."""
        self._closed = True
        self._changed.set()
        self.join(2)

    # --- the thread ----------------------------------------------------------------------

    def run(self) -> None:
        while not self._closed:
            self._changed.clear()
            now = time.monotonic()
            if now >= self._row_due:
                self._row_due = now + self._row_s()  # first: `show` may ask for another meanwhile
                again_s = self._attempted(self._keep_row, self._row_s())
                self._row_due = min(self._row_due, now + again_s)
            if now >= self._lease_due and (held := self._held) is not None:
                wait_s = self._attempted(partial(self._renew, held), self._renewal_s())
                if held is self._held:
                    self._lease_due = now + wait_s
            # told first and read again: a job that is held meanwhile sees one or is seen
            self._wakes_at = min(self._row_due, self._lease_due)
            pause_s = min(self._row_due, self._lease_due) - time.monotonic()
            self._changed.wait(max(0.0, pause_s))
        self._attempted(lambda: workers.leave(self.worker), 0)

    def _attempted(self, write: Callable[[], None], period_s: float) -> float:
        """Try one write; when to do it next. A database that is away is logged, never fatal."""
        try:
            close_old_connections()
            write()
        except (DatabaseError, InterfaceError) as error:
            log.warning("%s could not reach the database: %s", self.worker, error)
        except Exception:  # without this thread the worker would live on without row and lease
            log.exception("%s could not keep its row or lease", self.worker)
        else:
            return period_s
        reconnect()
        return min(AGAIN_S, period_s)

    def _keep_row(self) -> None:
        announce, self._announce = self._announce, False
        if announce or not workers.seen(self.worker, warm=self.warm):
            self._say_hello()
        rows = Worker.objects.filter(name=self.worker)
        self.draining = bool(rows.values_list("draining", flat=True).first())

    def _say_hello(self) -> None:
        try:
            workers.announce(self.worker, self.queue_name, device=self.device, warm=self.warm)
        except (DatabaseError, InterfaceError):
            self._announce = True
            raise

    def _renew(self, held: Held) -> None:
        began_at = time.monotonic()
        hold = leases.renew(held.job_pk, held.attempt, self.worker)
        if hold.mine:
            held.watch.renewed_at = began_at
        elif math.isinf(held.watch.fenced_at):
            held.watch.fenced_at = began_at
            self.learnt()
        if hold.cancel_asked_s is not None and math.isinf(held.watch.cancel_asked_at):
            held.watch.cancel_asked_at = began_at - max(0.0, hold.cancel_asked_s)
            self.learnt()

    @staticmethod
    def _row_s() -> float:
        return float(settings.WORKER_TTL_S) / 3

    @staticmethod
    def _renewal_s() -> float:
        """A quarter of the lease, and often enough to see a request to cancel in its grace."""
        return float(min(settings.LEASE_S / 4, settings.CANCEL_GRACE_S / 2))
