"""Processes of a stack as a chaos run sees them: who belongs to whom, frozen, woken, gone."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Callable, Iterator, Sequence

import psutil

from tests.processes import Process

FELT_S = 1.0  # how long a signal may take to be felt


def family_of(process: Process) -> tuple[psutil.Process, list[psutil.Process]]:
    """A process and the children that do its work, without the helper of multiprocessing."""
    workers = [child for child in process.descendants() if "resource_tracker" not in _line(child)]
    return psutil.Process(process.pid), workers


def _line(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def parts_of(
    target: str, parent: psutil.Process, children: Sequence[psutil.Process]
) -> list[psutil.Process]:
    """Who of a family a fault hits."""
    if target == "child":
        return list(children)
    return [parent, *children] if target == "worker" else [parent]


@contextlib.contextmanager
def frozen(processes: Sequence[psutil.Process]) -> Iterator[None]:
    """Nothing of these runs inside the block; who is left of them goes on afterwards."""
    send(processes, signal.SIGSTOP)
    try:
        yield
    finally:
        send(processes, signal.SIGCONT)


def send(processes: Sequence[psutil.Process], number: int) -> None:
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(number)
    if number == signal.SIGSTOP:
        wait_until(lambda: all(map(_stands_still, processes)))


def wait_until(look: Callable[[], bool]) -> None:
    """Signals take a moment to be felt."""
    deadline = time.monotonic() + FELT_S
    while not look() and time.monotonic() < deadline:
        time.sleep(0.001)


def _stands_still(process: psutil.Process) -> bool:
    return is_gone(process) or _status(process) == psutil.STATUS_STOPPED


def is_gone(process: psutil.Process) -> bool:
    return _status(process) in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)


def _status(process: psutil.Process) -> str:
    try:
        return str(process.status())
    except psutil.NoSuchProcess:
        return psutil.STATUS_DEAD
