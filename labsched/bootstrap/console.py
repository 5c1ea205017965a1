"""What set-up says: one line a step, and one plain sentence with the next step on every failure."""

from __future__ import annotations

import sys
import threading
import time
from types import TracebackType

REMINDER_S = 20  # without a terminal: a line at most this often, so that logs stay short


class Trouble(Exception):
    """What was wrong and what to do next, each one sentence for a person."""

    def __init__(self, wrong: str, next_step: str) -> None:
        super().__init__(f"{wrong} {next_step}")
        self.wrong = wrong
        self.next_step = next_step


def say(text: str) -> None:
    """Print one line at once, also through a pipe."""
    print(text, flush=True)


def complain(trouble: Trouble) -> None:
    """Print what was wrong and the next step to stderr."""
    sys.stdout.flush()
    print(f"\nlabsched: {trouble.wrong}\n  Next: {trouble.next_step}", file=sys.stderr, flush=True)


class Progress:
    """One line that is rewritten each second on a terminal, a line now and then elsewhere."""

    def __init__(self, title: str) -> None:
        self.title = title
        self.note = ""
        self._started = time.monotonic()
        self._done = threading.Event()
        self._ticker = threading.Thread(target=self._tick, daemon=True)

    def __enter__(self) -> Progress:
        if not sys.stdout.isatty():
            say(f"{self.title} …")
        self._ticker.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._done.set()
        self._ticker.join()
        if sys.stdout.isatty():
            print("\r\033[K", end="")
        outcome = "done" if kind is None else "stopped"
        say(f"{self.title}: {outcome} after {self._elapsed_s():.0f} s")

    def _elapsed_s(self) -> float:
        return time.monotonic() - self._started

    def _tick(self) -> None:
        live = sys.stdout.isatty()
        while not self._done.wait(1 if live else REMINDER_S):
            line = f"{self.title}: {self._elapsed_s():.0f} s  {self.note}"
            print(
                f"\r\033[K{line[:100]}" if live else f"  {line}",
                end="" if live else "\n",
                flush=True,
            )
