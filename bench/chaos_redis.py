"""Redis loses its data, or stands still for some seconds, and is back."""

from __future__ import annotations

import contextlib
import itertools
import random
import shutil
import signal
import time
from collections.abc import Callable
from typing import Any

import redis

from tests.stack import Stack

IN_TURN = ("killed", "emptied", "killed", "emptied", "stopped")
LONGEST_DOWN_S = 3.0
LONGEST_STOP_S = 6.0


class Wire:
    """What is done to Redis; each fault goes into `history` once it is back."""

    def __init__(self, stack: Stack, rng: random.Random, history: list[dict[str, Any]]) -> None:
        self.stack = stack
        self.rng = rng
        self.history = history
        self._faults = itertools.cycle(IN_TURN)
        self._back: Callable[[], None] | None = None
        self._back_at = 0.0

    def lose(self, _leases: object) -> None:
        """Begin the next fault, unless one is under way."""
        if self._back is not None:
            return
        how, began = next(self._faults), time.monotonic()

        def note() -> None:
            entry = {"what": "redis", "how": how, "at": began, "until": time.monotonic()}
            self.history.append(entry)

        {"emptied": self._empty, "killed": self._kill, "stopped": self._stop}[how](note)

    def mend(self, now: float) -> None:
        """Bring Redis back once it was away for long enough."""
        if self._back is not None and now >= self._back_at:
            back, self._back = self._back, None
            back()

    def end(self) -> None:
        """The next mend() brings it back."""
        self._back_at = 0.0

    def _empty(self, note: Callable[[], None]) -> None:
        with contextlib.suppress(redis.RedisError), self.stack.redis() as wire:
            wire.flushall()
            note()

    def _kill(self, note: Callable[[], None]) -> None:
        self.stack.processes["redis"].kill()
        shutil.rmtree(self.stack.data / "redis", ignore_errors=True)

        def back() -> None:
            self.stack.start_redis()
            note()

        self._back, self._back_at = back, time.monotonic() + self.rng.uniform(0, LONGEST_DOWN_S)

    def _stop(self, note: Callable[[], None]) -> None:
        process = self.stack.processes["redis"]
        process.send(signal.SIGSTOP)

        def back() -> None:
            process.send(signal.SIGCONT)
            note()

        self._back, self._back_at = back, time.monotonic() + self.rng.uniform(1, LONGEST_STOP_S)
