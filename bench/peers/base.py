"""What every measured system can do, so that one stop-watch serves them all."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from bench.scheduling_cpu import Meter
from tests.processes import REPOSITORY, Process, plain_environment

WIDE, CHAIN = "wide", "chain"
TENANTS = 3  # as many as may be active: nobody waits for a user slot
LANES = 100  # branches of each tenant in the wide shape


@dataclass(frozen=True)
class Place:
    """Where one benchmark run lives: its servers, its folder, and how many workers each peer gets."""

    postgres: str
    redis: str
    folder: Path
    workers: int

    def redis_db(self, number: int) -> str:
        """The address of another database of the same Redis."""
        return f"{self.redis.rsplit('/', 1)[0]}/{number}"


class Peer(Protocol):
    """One system with its worker processes. Between measures its work is held back."""

    name: str
    engine: str
    layout: str

    def open(self) -> None:
        """Start what stays up during the whole run."""

    def fill(self, shape: str, waiting: int) -> None:
        """Make at least `waiting` jobs wait."""

    def done(self) -> int:
        """A count that rises by one with each job that ended."""

    def running(self) -> AbstractContextManager[None]:
        """A context in which its workers take jobs."""

    def clear(self) -> None:
        """Forget every job."""

    def meter(self) -> Meter:
        """What its processes and servers have used so far."""

    def close(self) -> None:
        """End its processes."""


@dataclass
class Crew:
    """Worker processes of one peer, each with a log, none left behind."""

    name: str
    folder: Path
    members: list[Process] = field(default_factory=list)

    def hire(self, *command: str, **variables: str) -> Process:
        """Start one more process with this repository on its path."""
        env = {**plain_environment(), "PYTHONPATH": str(REPOSITORY), **variables}
        number = len(self.members)
        log = self.folder / "logs" / f"{self.name}-{number}.log"
        self.members.append(Process(f"{self.name}-{number}", command, env=env, log=log))
        return self.members[-1]

    @property
    def pids(self) -> list[int]:
        return [process.pid for process in self.members]

    def check(self) -> None:
        """Raise with its last words when one ended by itself."""
        for process in self.members:
            if not process.alive:
                raise RuntimeError(f"{process.name} ended by itself:\n{process.tail()}")

    def dismiss(self) -> None:
        """SIGTERM for all, SIGKILL for who does not go."""
        for process in self.members:
            process.send(15)
        for process in self.members:
            process.stop(timeout_s=10)
        self.members.clear()
