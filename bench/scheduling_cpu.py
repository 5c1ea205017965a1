"""CPU seconds of process trees and of PostgreSQL backends, children that ended included."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

Seconds = dict[str, float]


@dataclass(frozen=True)
class Meter:
    """The trees that do a peer's work, by part, less the processes that only watch it."""

    trees: Mapping[str, Sequence[int]]
    leave_out: frozenset[int] = field(default_factory=frozenset)

    def seconds(self) -> Seconds:
        """User and system time so far, by part. An ended child counts with who reaped it."""
        return {
            part: sum(_used(process) for pid in pids for process in self._tree(pid))
            for part, pids in self.trees.items()
        }

    def since(self, before: Seconds) -> Seconds:
        """What was used since then."""
        return {part: used - before[part] for part, used in self.seconds().items()}

    def _tree(self, pid: int) -> Iterable[psutil.Process]:
        try:
            root = psutil.Process(pid)
            found = [root, *root.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []
        return [process for process in found if process.pid not in self.leave_out]


def _used(process: psutil.Process) -> float:
    with contextlib.suppress(psutil.NoSuchProcess):
        times = process.cpu_times()
        return float(times.user + times.system + times.children_user + times.children_system)
    return 0.0


def backend_seconds(pid: int) -> float:
    """CPU of one single-threaded process to the nanosecond: short statements need it."""
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1e9


def parent_of(pid: int) -> int:
    return int(psutil.Process(pid).ppid())
