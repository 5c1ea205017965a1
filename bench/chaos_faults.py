"""Kills, stops and lost Redis data at random moments, each written down with what its victim held.

**Kills** hit a scheduler, a worker's parent, its child, or both at once (the host is gone). A victim
is frozen first (SIGSTOP to parent and child), then the leases are read, then it is killed: what it
held at that moment is a fact. What died starts again soon, as under any supervisor.

**Stops** freeze a whole worker, its parent alone, its child alone, or a scheduler, mostly for longer
than the lease, and wake it, often just when a successor runs what it held. On SQLite a process that is frozen inside a write transaction
holds the one write lock: everybody else would stand still with it, and lose leases by rights. So a
freeze that leaves nobody able to write is undone and tried again some milliseconds later; no stop on
SQLite falls inside a write transaction. Kills do: a killed process lets go of its locks. On
PostgreSQL stops fall anywhere; a frozen process may hold rows or the lock of a pass, which makes the
others wait for it and shows in recovery_s_max.

**Redis** is emptied, killed and started again without its data, or frozen for some seconds.

Everything here runs in the main thread: children are tied to the thread that starts them.
"""

from __future__ import annotations

import random
import signal
import sqlite3
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from bench.chaos_processes import family_of, frozen, is_gone, parts_of, send, wait_until
from bench.chaos_redis import Wire
from bench.chaos_rows import Held, held_by_pid
from tests.processes import Process
from tests.stack import Stack

Row = dict[str, Any]
Leases = dict[int, list[Held]]

WRITE_LOCK_S = 0.3
FREEZE_TRIES = 20
MOST_STOPS = 2  # at once; the others have to be able to go on
AT_A_HOLDER = 0.85  # of the kills of workers: the victim holds a lease
HOLDER_TRIES = 10
SHARE_OF_HOLDERS = 0.6  # of all kills, at least
SHORT = 0.15  # of the stops of parents: woken with half of the lease left, before they must give up
CHASE = 0.6  # of the stops past a lease: woken as soon as a successor runs
CHASE_S = 12.0
KILLS = {"scheduler": 2, "parent": 3, "child": 3, "worker": 2}
STOPS = {"scheduler": 2, "parent": 3, "child": 2, "worker": 4}


@dataclass(frozen=True)
class Pace:
    """Mean seconds between two faults of a kind."""

    kill_s: float
    stop_s: float
    redis_s: float


@dataclass
class Stop:
    """Somebody frozen, and when to wake them. `entry` goes into the history then."""

    entry: Row
    frozen: Sequence[psutil.Process]
    wake_at: float
    parent: int = 0
    chases: bool = False


@dataclass
class Faults:
    """What is done to the stack, and the history of it.

    lease_s   the lease of the stack: stops of parents outlast it
    stall_s   when a parent kills a child that stands still
    database  the SQLite file; None on PostgreSQL
    """

    stack: Stack
    rng: random.Random
    pace: Pace
    lease_s: float
    stall_s: float
    database: Path | None
    history: list[Row] = field(default_factory=list)
    deaths: list[str] = field(default_factory=list)  # processes that ended by themselves
    _stops: list[Stop] = field(default_factory=list)
    _respawn_at: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.wire = Wire(self.stack, self.rng, self.history)
        now = time.monotonic()
        self._due = {
            self._kill: now + self._in(self.pace.kill_s),
            self._stop: now + self._in(self.pace.stop_s),
            self.wire.lose: now + self._in(self.pace.redis_s),
        }
        self._every = dict(
            zip(self._due, (self.pace.kill_s, self.pace.stop_s, self.pace.redis_s), strict=True)
        )

    def _in(self, mean_s: float) -> float:
        return mean_s * self.rng.uniform(0.6, 1.3)

    # --- called by the run ---------------------------------------------------------------

    def turn(self, leases: Leases) -> None:
        """Wake whose time is over, start again what died, do what is due."""
        self.mend(leases)  # first: for the frozen of this turn `leases` is too old
        now = time.monotonic()
        for fault, due in list(self._due.items()):
            if now >= due:
                self._due[fault] = now + self._in(self._every[fault])
                fault(leases)

    def mend(self, leases: Leases) -> None:
        """Everything of a turn but new faults."""
        now = time.monotonic()
        for stop in list(self._stops):
            self._note_held(stop, leases)
            if stop.chases:
                self._chase(stop, leases, now)
            if now >= stop.wake_at:
                self._wake(stop)
        self.wire.mend(now)
        self._start_again(now)

    def end(self) -> None:
        """Wake everybody and bring Redis back: from here on the stack is left alone."""
        for stop in list(self._stops):
            self._wake(stop)
        self.wire.end()
        self._respawn_at = dict.fromkeys(self._respawn_at, 0.0)
        self.mend({})

    # --- who -----------------------------------------------------------------------------

    def _names(self, prefix: str) -> list[str]:
        """Processes of a kind that live and are not frozen."""
        standing = {stop.entry["name"] for stop in self._stops}
        return [
            name
            for name, process in self.stack.processes.items()
            if name.startswith(prefix) and process.alive and name not in standing
        ]

    def _victim(
        self, weights: dict[str, int], leases: Leases, *, at_a_holder: bool
    ) -> tuple[str, Process] | None:
        """A kind of target by weight, and a process for it."""
        target = self.rng.choices(list(weights), weights=list(weights.values()))[0]
        names = self._names("scheduler" if target == "scheduler" else "cpu-")
        holders = [name for name in names if leases.get(self.stack.processes[name].pid)]
        names = holders if holders and at_a_holder else names
        return (target, self.stack.processes[self.rng.choice(names)]) if names else None

    # --- kills ---------------------------------------------------------------------------

    def _kill(self, leases: Leases) -> None:
        behind = self._holding_share() < SHARE_OF_HOLDERS
        weights = {**KILLS, "scheduler": 0} if behind else KILLS
        at_a_holder = behind or self.rng.random() < AT_A_HOLDER
        for tries_left in reversed(range(HOLDER_TRIES)):
            chosen = self._victim(weights, leases, at_a_holder=at_a_holder)
            must_hold = at_a_holder and chosen is not None and chosen[0] != "scheduler"
            if chosen is None or self._killed(*chosen, must_hold=must_hold and tries_left > 0):
                return
            leases = held_by_pid()  # its job ended between the look and the freeze

    def _holding_share(self) -> float:
        """How many of the kills so far hit a process that held a lease."""
        holding = [bool(entry["held"]) for entry in self.history if entry["what"] == "kill"]
        return sum(holding) / len(holding) if holding else 0.0

    def _killed(self, target: str, process: Process, *, must_hold: bool) -> bool:
        """Kill it, unless it must hold a lease and does not."""
        parent, children = family_of(process)
        if target == "child" and not children:
            target = "parent"
        family = [parent, *children]
        with frozen(family):
            held = [each.plain for each in held_by_pid().get(process.pid, []) if _valid(each)]
            if must_hold and not held:
                return False
            dying = parts_of(target, parent, children)
            send(dying, signal.SIGKILL)
            # a parent takes its child along, a moment later: frozen, it writes nothing in between
            wait_until(lambda: all(map(is_gone, dying if target == "child" else family)))
            at = time.monotonic()
        self.history.append(
            {"what": "kill", "target": target, "name": process.name, "at": at, "held": held}
        )
        return True

    def _start_again(self, now: float) -> None:
        for name, process in list(self.stack.processes.items()):
            if process.alive or name == "redis":
                continue
            if name not in self._respawn_at:
                self._note_death(name, process)
                self._respawn_at[name] = now + self.rng.uniform(0.1, 1.5)
            elif now >= self._respawn_at[name]:
                del self._respawn_at[name]
                self._start(name)

    def _note_death(self, name: str, process: Process) -> None:
        if process.popen.returncode != -signal.SIGKILL:
            self.deaths.append(f"{name} ended with {process.popen.returncode}: {process.tail(3)}")

    def _start(self, name: str) -> None:
        if name.startswith("scheduler"):
            self.stack.start_scheduler(name)
        elif name == "web":
            self.stack.start_web()
        else:
            self.stack.start_worker("cpu", int(name.removeprefix("cpu-")))

    # --- stops ---------------------------------------------------------------------------

    def _stop(self, leases: Leases) -> None:
        chosen = (
            self._victim(STOPS, leases, at_a_holder=self.rng.random() < AT_A_HOLDER)
            if len(self._stops) < MOST_STOPS
            else None
        )
        if chosen is None:
            return
        target, process = chosen
        parent, children = family_of(process)
        hit = parts_of(target, parent, children)
        if not hit or not self._freeze(hit):
            return
        now = time.monotonic()
        entry: Row = {"what": "stop", "target": target, "name": process.name, "at": now, "held": []}
        stop = Stop(entry, hit, wake_at=now, parent=process.pid)
        self._note_held(stop, held_by_pid())
        stop.wake_at = now + self._length_s(stop)
        self._stops.append(stop)

    def _length_s(self, stop: Stop) -> float:
        """Past the lease for who has to renew it; sometimes much shorter, for the others around it."""
        if stop.entry["target"] in ("child", "scheduler"):
            return self.rng.uniform(1, self.stall_s + 3)
        last = max((held["expires"] for held in stop.entry["held"]), default=0.0)
        left_s = max(last - time.monotonic(), self.lease_s * 0.75)
        if self.rng.random() < SHORT:
            return left_s - self.rng.uniform(self.lease_s / 2, left_s)
        stop.chases = bool(stop.entry["held"]) and self.rng.random() < CHASE
        return left_s + (CHASE_S if stop.chases else self.rng.uniform(0.3, 4))

    def _chase(self, stop: Stop, leases: Leases, now: float) -> None:
        """Wake it while its successor is in its body: that is when a late word would do harm."""
        mine = {held["job"]: held["attempt"] for held in stop.entry["held"]}
        running = (each for others in leases.values() for each in others)
        if any(each.attempt > mine.get(each.job, each.attempt) for each in running):
            stop.wake_at = min(stop.wake_at, now + self.rng.uniform(0, 0.3))

    def _freeze(self, processes: Sequence[psutil.Process]) -> bool:
        """Freeze them at a moment when others can still write. False when none was found."""
        for _ in range(FREEZE_TRIES):
            send(processes, signal.SIGSTOP)
            if self._others_can_write():
                return True
            send(processes, signal.SIGCONT)
            time.sleep(self.rng.uniform(0.01, 0.1))
        return False

    def _others_can_write(self) -> bool:
        if self.database is None:
            return True
        link = sqlite3.connect(self.database, timeout=WRITE_LOCK_S, isolation_level=None)
        try:
            link.execute("BEGIN IMMEDIATE")
            link.execute("ROLLBACK")
        except sqlite3.OperationalError:
            return False
        finally:
            link.close()
        return True

    @staticmethod
    def _note_held(stop: Stop, leases: Leases) -> None:
        """Take in what the frozen one holds: also what its child, or the server, began after the freeze."""
        known = {(held["job"], held["attempt"]): held for held in stop.entry["held"]}
        for each in leases.get(stop.parent, ()):
            known[(each.job, each.attempt)] = each.plain
        stop.entry["held"] = list(known.values())

    def _wake(self, stop: Stop) -> None:
        self._stops.remove(stop)
        died = any(map(is_gone, stop.frozen))  # its parent had seen no beat for stall_s
        send(stop.frozen, signal.SIGCONT)
        self.history.append({**stop.entry, "until": time.monotonic(), "died": died})


def _valid(held: Held) -> bool:
    return held.expires > time.monotonic()
