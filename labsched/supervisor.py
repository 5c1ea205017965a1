"""Runs the processes of one stack: prefixed output, restart with back-off, one stop for all.

One thread and one select loop: children are tied to the thread that forks them (labsched/leash.py).
"""

from __future__ import annotations

import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import IO

from labsched import leash

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
GRACE_S = 10.0  # for web, scheduler and workers to finish or hand back
LAST_GRACE_S = 2.0  # for what the others needed until their end
BACKOFF_S = (0.5, 1, 2, 5, 10, 30)
STEADY_S = 30.0  # a child that lived this long starts its back-off anew
TICK_S = 0.25
COLOURS = (36, 33, 32, 35, 34, 96, 93, 92, 95, 94)


@dataclass(frozen=True)
class Service:
    """One process of the stack."""

    name: str
    command: Sequence[str]
    env: Mapping[str, str]
    last: bool = False  # started first, stopped after all others: the wire they talk over
    keep_fds: Sequence[int] = ()


@dataclass
class Running:
    """One process, the stream it prints to and the line it has not finished."""

    process: subprocess.Popen[bytes]
    stream: IO[bytes]
    started_at: float
    rest: bytes = b""

    @property
    def alive(self) -> bool:
        return self.process.poll() is None


@dataclass
class Child:
    """A service and what runs it now, if anything does."""

    service: Service
    prefix: str
    now: Running | None = None
    start_again_at: float = 0.0
    falls: int = 0

    @property
    def alive(self) -> bool:
        return self.now is not None and self.now.alive


class Supervisor:
    """Keeps services running until a stop signal; run() returns when all of them are gone."""

    def __init__(
        self, *, cwd: Path, each_tick: Callable[[], None] = lambda: None, quiet: bool = False
    ) -> None:
        self.cwd = cwd
        self.each_tick = each_tick
        self.quiet = quiet
        self._children: list[Child] = []
        self._selector = selectors.DefaultSelector()
        self._signals = 0

    # --- starting ------------------------------------------------------------------------

    def add(self, service: Service) -> subprocess.Popen[bytes]:
        """Start one more service. Returns its process."""
        child = Child(service, prefix=self._prefix(service.name, len(self._children)))
        self._children.append(child)
        return self._start(child)

    def _prefix(self, name: str, number: int) -> str:
        label = f"{name:>9} | "
        if not sys.stdout.isatty():
            return label
        return f"\033[{COLOURS[number % len(COLOURS)]}m{label}\033[0m"

    def _start(self, child: Child) -> subprocess.Popen[bytes]:
        service = child.service
        process = leash.spawn(
            service.command, env=service.env, cwd=self.cwd, keep_fds=service.keep_fds
        )
        if process.stdout is None:
            raise RuntimeError(f"{service.name} was started without a pipe")
        os.set_blocking(process.stdout.fileno(), False)
        self._selector.register(process.stdout, selectors.EVENT_READ, child)
        child.now = Running(process, process.stdout, started_at=time.monotonic())
        return process

    # --- running -------------------------------------------------------------------------

    def run(self) -> int:
        """Serve until SIGINT, SIGTERM or SIGHUP, then stop everything. Returns the exit code."""
        before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
        for number, handler in before.items():
            if number != signal.SIGHUP or handler is not signal.SIG_IGN:  # nohup means what it says
                signal.signal(number, self._on_signal)
        try:
            while not self._signals:
                self._turn()
                self._mend()
                self.each_tick()
            self._say("stopping; a second Ctrl-C kills at once")
        finally:
            self.stop()
            for number, handler in before.items():
                signal.signal(number, handler)
        return 0

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._signals += 1

    def _turn(self) -> None:
        """Pass on what children print, for at most one tick."""
        for key, _ in self._selector.select(TICK_S):
            self._read(key.data)

    def _read(self, child: Child) -> None:
        running = child.now
        if running is None or running.stream.closed:
            return
        try:
            chunk = os.read(running.stream.fileno(), 65_536)
        except BlockingIOError:
            return
        *lines, running.rest = (running.rest + chunk).split(b"\n")
        if not chunk:  # the last holder of the pipe is gone
            self._close(running)
            lines = [running.rest] if running.rest else []
        for line in lines:
            self._print(child.prefix + line.decode(errors="replace").rstrip("\r"))

    def _close(self, running: Running) -> None:
        self._selector.unregister(running.stream)
        running.stream.close()

    def _mend(self) -> None:
        """Start again, later each time, what ended by itself."""
        now = time.monotonic()
        for child in self._children:
            if child.now is None and now >= child.start_again_at:
                self._start(child)
            elif child.now is not None and not child.now.alive:
                self._note_fall(child, child.now, now)

    def _note_fall(self, child: Child, fallen: Running, now: float) -> None:
        child.falls = 0 if now - fallen.started_at > STEADY_S else child.falls
        wait_s = BACKOFF_S[min(child.falls, len(BACKOFF_S) - 1)]
        child.falls += 1
        child.start_again_at = now + wait_s
        self._bury(child, fallen)
        how = describe_exit(fallen.process.returncode)
        self._say(f"{child.service.name} {how}; it starts again in {wait_s:g} s")

    def _bury(self, child: Child, gone: Running) -> None:
        """Print the last words of a process that is gone, and end what it left behind."""
        leash.kill_group(gone.process)
        self._read(child)
        if not gone.stream.closed:
            if gone.rest:
                self._print(child.prefix + gone.rest.decode(errors="replace"))
            self._close(gone)
        child.now = None

    # --- stopping ------------------------------------------------------------------------

    def stop(self) -> None:
        """End every child within GRACE_S + LAST_GRACE_S; a second signal cuts that short."""
        self._stop_all([c for c in self._children if not c.service.last], GRACE_S)
        self._stop_all([c for c in self._children if c.service.last], LAST_GRACE_S)

    def _stop_all(self, children: list[Child], grace_s: float) -> None:
        started = [(child, child.now) for child in children if child.now is not None]
        for _, running in started:
            running.process.terminate()
        deadline = time.monotonic() + grace_s
        while any(running.alive for _, running in started):
            if time.monotonic() > deadline or self._signals > 1:
                break
            self._turn()
        for child, running in started:
            if running.alive:
                self._say(f"{child.service.name} did not stop in time and is killed")
                running.process.kill()
            running.process.wait()
            self._bury(child, running)

    # --- words ---------------------------------------------------------------------------

    def _say(self, text: str) -> None:
        self._print(f"{'labsched':>9} | {text}")

    def _print(self, line: str) -> None:
        if self.quiet:
            return
        try:
            print(line, flush=True)  # noqa: T201  the terminal is this module's business
        except (BrokenPipeError, ValueError):  # whoever read the output is gone; go on without
            self.quiet = True


def describe_exit(code: int) -> str:
    """How a process ended, for people."""
    if code < 0:
        return f"was ended by {signal.Signals(-code).name}"
    return f"ended with exit code {code}"
