"""How far a job is: from the one callback of its body to the row, the live feed and the stop.

The body only notes where it is. The process's clerk, a thread, feeds the live progress, writes the
row once a second and looks for a reason to stop, so a slow database never holds up the work. (The
feed waits for nobody: a courier of its own brings it to Redis.)
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from enum import StrEnum
from types import TracebackType
from typing import Any, Self

from django.db import DatabaseError, InterfaceError, close_old_connections
from django.db.models import F
from django.db.models.functions import Greatest
from django.dispatch import Signal
from django.utils import timezone

from jobs.imaging.blocks import BlockFacts, Key
from jobs.models import Job, JobProgress
from jobs.running.persist import reconnect
from jobs.shapes import cells_tick, merged_ticks
from jobs.signals import cells_found, job_progressed
from jobs.states import JobState
from jobs.types.base import JobType

FIRST_ROW_S = 0.25  # shorter jobs write no row: their end says it all
ROW_S = 1.0
FIRST_TICK_S = 0.05
AWAKE_S = 2.0
TICK_S = 0.25
log = logging.getLogger(__name__)


class StopReason(StrEnum):
    """Why the body of a job is to stop."""

    CANCELLED = "cancelled"
    FENCED = "fenced"


class Stopped(BaseException):
    """The job must stop now. Not an Exception: no library may swallow it."""

    def __init__(self, why: StopReason) -> None:
        super().__init__(why.value)
        self.why = why


class Course:
    """Overall progress over the phases of a type: a weighted mean that never falls."""

    def __init__(
        self, phases: Sequence[str], weights: Mapping[str, float], *, floor: float = 0.0
    ) -> None:
        total = sum(weights.get(phase, 1.0) for phase in phases) or 1.0
        self._start: dict[str, float] = {}
        self._share = {phase: weights.get(phase, 1.0) / total for phase in phases}
        before = 0.0
        for phase in phases:
            self._start[phase] = before
            before += self._share[phase]
        self.main = max(phases, key=lambda phase: self._share[phase], default="")
        self.overall = floor

    def reach(self, phase: str, done: int, total: int) -> float:
        """Note that `done` of `total` of a phase are over. Returns the whole, 0-1."""
        part = min(1.0, max(0.0, done / total)) if total > 0 else 0.0
        here = self._start.get(phase, 0.0) + self._share.get(phase, 0.0) * part
        self.overall = max(self.overall, min(1.0, here))
        return self.overall


class PhaseClock:
    """Seconds spent in each phase, in the order of their first report."""

    def __init__(self, now: float) -> None:
        self._since = now
        self._phase = ""
        self._seconds: dict[str, float] = {}

    def enter(self, phase: str, now: float) -> None:
        """The time since the last call belongs to the phase that was under way."""
        known = self._phase or phase
        self._seconds[known] = self._seconds.get(known, 0.0) + now - self._since
        self._seconds.setdefault(phase, 0.0)
        self._phase, self._since = phase, now

    def rows(self) -> list[dict[str, Any]]:
        return [
            {"name": name, "seconds": round(seconds, 3)} for name, seconds in self._seconds.items()
        ]


class Reporter:
    """The callback that the body of a job is given: `report(phase, done, total)`."""

    def __init__(self, job: Job, kind: JobType, *, beat: Callable[[], None]) -> None:
        self.job = job
        self.attempt = job.attempt
        self.beat = beat
        so_far, tiles = _so_far(job)
        self._course = Course(kind.phases, kind.phase_weights, floor=so_far)
        self._clock = PhaseClock(time.monotonic())
        self._state: dict[str, Any] = {"phase": "", **tiles}
        self._cells: dict[str, Any] | None = None
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._idle = threading.Event()  # the clerk is not in the middle of this job
        self._idle.set()
        self._news = self._wrote = False
        self._stop: StopReason | None = None

    def __enter__(self) -> Self:
        _clerk.follow(self)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._closed.set()
        if not self._idle.wait(5):
            _clerk.replace()  # it hangs in a write: the next job gets another one

    def __call__(self, phase: str, done: int, total: int) -> None:
        """Note where the body is. Raises Stopped when it must end."""
        self.beat()
        with self._lock:
            self._course.reach(phase, done, total)
            self._clock.enter(phase, time.monotonic())
            self._state["phase"] = phase
            if phase == self._course.main:
                self._state.update(tiles_done=max(0, done), tiles_total=max(0, total))
            self._news = True
        self.check()

    def check(self) -> None:
        """Raise Stopped when a cancel was asked for or another attempt has the job."""
        if self._stop is not None:
            raise Stopped(self._stop)

    def alive(self) -> None:
        """Work goes on, though no further. Raises Stopped when the job must end."""
        self.beat()
        self.check()

    def found(self, key: Key, facts: BlockFacts) -> None:
        """A block is finished: its cells are readable from now on."""
        if facts.box_l0 is None:
            return
        tick = cells_tick(self.job, f"{key[0]}_{key[1]}", facts.cells, facts.box_l0)
        with self._lock:
            self._cells = merged_ticks(self._cells, tick) if self._cells else tick

    # --- the clerk's part ----------------------------------------------------------------

    def keep(self) -> None:
        """Feed and write until the job is over. The clerk calls this once."""
        with self._at_work():
            if self._closed.is_set() or self._closed.wait(FIRST_TICK_S):
                return
            row_due = time.monotonic() + FIRST_ROW_S - FIRST_TICK_S
            while not self._closed.is_set():
                self._send_news()
                if time.monotonic() >= row_due:
                    row_due = time.monotonic() + ROW_S
                    self._look_and_write()
                self._closed.wait(min(TICK_S, max(0.0, row_due - time.monotonic())))
            if self._wrote:
                self._look_and_write()

    @contextlib.contextmanager
    def _at_work(self) -> Iterator[None]:
        self._idle.clear()
        try:
            yield
        finally:
            self._idle.set()
            if self._wrote:
                reconnect()

    def _look_and_write(self) -> None:
        self._wrote = True
        try:
            close_old_connections()
            self._look()
            if self._stop is not StopReason.FENCED:  # a late word changes nothing
                self._write()
        except (DatabaseError, InterfaceError) as error:
            log.warning("%s: progress is not written, the database says %s", self.job, error)
            reconnect()

    def _look(self) -> None:
        rows = Job.objects.across_tenants("a worker looks at its own job").filter(pk=self.job.pk)
        row = rows.values_list("attempt", "state", "cancel_requested_at").first()
        if row is None or row[0] != self.attempt or row[1] != JobState.RUNNING.value:
            self._stop = StopReason.FENCED
        elif row[2] is not None:
            self._stop = StopReason.CANCELLED

    def _write(self) -> None:
        """Write the row unless a later attempt has one already."""
        values = self._snapshot()
        whole = values.pop("progress")
        rows = JobProgress.objects.across_tenants("a worker writes its own job's row")
        mine = rows.filter(job=self.job.pk, attempt__lte=self.attempt)
        written = mine.update(
            **values,
            attempt=self.attempt,
            progress=Greatest(F("progress"), whole),
            updated_at=timezone.now(),
        )
        if not written and not rows.filter(job=self.job.pk).exists():
            JobProgress.objects.create(
                job=self.job,
                tenant_id=self.job.tenant_id,
                attempt=self.attempt,
                progress=whole,
                **values,
            )

    def _snapshot(self) -> dict[str, Any]:
        with self._lock:
            return {**self._state, "phases": self._clock.rows(), "progress": self._course.overall}

    def _send_news(self) -> None:
        """Send the latest ticks, if there are any."""
        if self._news:
            self._news = False
            self._send()
        with self._lock:
            cells, self._cells = self._cells, None
        if cells:
            self._signal(cells_found, cells)

    def _signal(self, signal: Signal, data: dict[str, Any]) -> None:
        job = self.job
        signal.send_robust(
            sender=None, tenant_id=job.tenant_id, workflow_id=job.workflow_id, data=data
        )

    def _send(self) -> None:
        values = self._snapshot()
        job = self.job
        data = {
            "id": str(job.uuid),
            "job_id": job.key,
            "workflow_id": str(job.workflow_id),
            "attempt": self.attempt,
            **values,
            "progress": round(values["progress"], 4),
        }
        self._signal(job_progressed, data)


def _so_far(job: Job) -> tuple[float, dict[str, int]]:
    """What earlier attempts reached: progress never falls within a job."""
    row = None
    if job.attempt > 1:
        row = JobProgress.objects.for_tenant(job.tenant).filter(job=job.pk).first()
    if row is None:
        return 0.0, {"tiles_done": 0, "tiles_total": 0}
    return row.progress, {"tiles_done": row.tiles_done, "tiles_total": row.tiles_total}


class Clerk:
    """The one thread of this process that follows the job that runs.

    After a job it looks for the next one every FIRST_TICK_S for a while: to be woken by each of many
    short jobs would cost more than they do.
    """

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._given: Reporter | None = None
        self._followed: Reporter | None = None
        self._asleep = False
        self._bell = threading.Event()

    def follow(self, reporter: Reporter) -> None:
        self._given = reporter
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="clerk", daemon=True)
            self._thread.start()
        elif self._asleep:
            self._bell.set()

    def replace(self) -> None:
        """Leave the thread where it is; the next job starts another one."""
        self._thread = None

    def _work(self) -> None:
        sleeps_at = time.monotonic() + AWAKE_S
        while self._thread is threading.current_thread():
            reporter = self._given
            if reporter is not None and reporter is not self._followed:
                self._followed = reporter
                _kept(reporter)
                sleeps_at = time.monotonic() + AWAKE_S
            elif time.monotonic() < sleeps_at:
                time.sleep(FIRST_TICK_S)
            else:
                self._sleep()

    def _sleep(self) -> None:
        """Until the next job."""
        self._bell.clear()
        self._asleep = True  # told first and looked at after it: a job meanwhile rings or is seen
        if self._given is self._followed:
            self._bell.wait()
        self._asleep = False


def _kept(reporter: Reporter) -> None:
    try:
        reporter.keep()
    except Exception:  # without this thread nobody would see a cancel
        log.exception("%s: progress is not told any more", reporter.job)


_clerk = Clerk()
