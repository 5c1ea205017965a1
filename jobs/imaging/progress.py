"""Phases of a job: what the caller hears, and how long each took."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from jobs.imaging.contract import Report

Tick = Callable[[int, int], None]


class Progress:
    """Passes a phase's ticks on to the caller's report; whatever that raises ends the job."""

    def __init__(self, report: Report) -> None:
        self._report = report
        self.seconds: dict[str, float] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[Tick]:
        """The tick of a phase: `tick(done, total)`."""
        started = time.monotonic()
        self._report(name, 0, 1)
        last = (0, 1)

        def tick(done: int, total: int) -> None:
            nonlocal last
            last = (done, total)
            self._report(name, done, total)

        yield tick
        if last[0] != last[1]:
            self._report(name, last[1], last[1])
        self.seconds[name] = round(time.monotonic() - started, 3)


def halves(tick: Tick) -> tuple[Tick, Tick]:
    """Two ticks, one after the other, that together fill a phase."""
    steps = 1000

    def first(done: int, total: int) -> None:
        tick(steps * done // max(1, total) // 2, steps)

    def second(done: int, total: int) -> None:
        tick(steps // 2 + steps * done // max(1, total) // 2, steps)

    return first, second
