"""Scripts that own child processes, so that a test can kill the owner and look at what is left."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

REPOSITORY = Path(__file__).resolve().parent.parent.parent


class Owner:
    """A Python process that runs `source` and prints the pids it started, one line."""

    def __init__(self, source: str, *arguments: str) -> None:
        self.popen = subprocess.Popen(
            [sys.executable, "-c", source, *arguments],
            cwd=REPOSITORY,
            stdout=subprocess.PIPE,
            text=True,
            preexec_fn=_as_from_a_terminal,
        )
        stdout = self.popen.stdout
        assert stdout is not None
        self.stdout = stdout
        self.pids = [int(word) for word in stdout.readline().split()]

    def kill(self) -> None:
        self.popen.kill()
        self.popen.wait()


def _as_from_a_terminal() -> None:
    """Also when the tests themselves were started by nohup, which the supervisor heeds."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture
def owner() -> Iterator[Callable[..., Owner]]:
    """Make owners; whatever they started is gone after the test."""
    made: list[Owner] = []

    def make(source: str, *arguments: str) -> Owner:
        made.append(Owner(source, *arguments))
        return made[-1]

    yield make
    for one in made:
        one.kill()
        one.stdout.close()
        for pid in one.pids:
            if psutil.pid_exists(pid):
                psutil.Process(pid).kill()


def gone_within(pid: int, timeout_s: float) -> bool:
    """Whether the process ends in time; a zombie has ended."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        try:
            if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
                return True
        except psutil.NoSuchProcess:
            return True
        time.sleep(0.02)
    return False
