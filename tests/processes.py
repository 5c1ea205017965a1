"""Real processes of a test: each with its log file, and none left behind."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil

REPOSITORY = Path(__file__).resolve().parent.parent
PR_SET_PDEATHSIG = 1
STOP_TIMEOUT_S = 20
FROM_OUTSIDE = ("LABSCHED_CACHE", "INSTANSEG_MODEL")  # the settings that stacks do not choose
SETTINGS_PREFIXES = ("LABSCHED_", "DJANGO_", "RATE_LIMIT_", "METRICS_")
SETTINGS_NAMES = frozenset(
    [
        "DATABASE_URL",
        "REDIS_URL",
        "STORAGE_URL",
        "ALLOWED_HOSTS",
        "CSRF_TRUSTED_ORIGINS",
        "TRUST_USER_HEADER",
        "MAX_WORKERS",
        "CPU_WORKERS",
        "GPU_WORKERS",
        "MAX_ACTIVE_USERS",
        "ACTIVE_USER_QUANTUM_S",
        "LEASE_S",
        "STALL_S",
        "RETRY_BACKOFF_S",
        "SWEEP_S",
        "MAX_PENDING_JOBS",
        "MAX_ATTEMPTS",
        "WORKER_TTL_S",
        "WITHDRAW_S",
        "CANCEL_GRACE_S",
        "LOG_LEVEL",
    ]
)


def plain_environment() -> dict[str, str]:
    """This process' environment without labsched's settings, but where to find the model."""
    return {
        name: value
        for name, value in os.environ.items()
        if name in FROM_OUTSIDE
        or not (name in SETTINGS_NAMES or name.startswith(SETTINGS_PREFIXES))
    }


def free_port() -> int:
    """A loopback port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def die_with_parent() -> None:
    """Have the kernel kill this process when the tests' own process goes (Linux only)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


class Process:
    """One child process, written into its own log, in its own session."""

    def __init__(
        self, name: str, command: Sequence[str], *, env: Mapping[str, str], log: Path
    ) -> None:
        self.name = name
        self.log = log
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as sink:
            self.popen = subprocess.Popen(
                list(command),
                cwd=REPOSITORY,
                env=dict(env),
                stdout=sink,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
                preexec_fn=die_with_parent,
            )

    @property
    def pid(self) -> int:
        return self.popen.pid

    @property
    def alive(self) -> bool:
        return self.popen.poll() is None

    def descendants(self) -> list[psutil.Process]:
        """The processes under this one, as they are now."""
        try:
            return psutil.Process(self.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return []

    def send(self, number: int) -> None:
        """Signal this one process alone."""
        if self.alive:
            os.kill(self.pid, number)

    def send_all(self, number: int) -> None:
        """Signal this process and everything under it."""
        under = self.descendants()
        self.send(number)
        for child in under:
            _send(child, number)

    def kill(self) -> None:
        """SIGKILL for the whole tree, and wait until none of it lives."""
        self.end_tree(self.descendants(), wait_s=0)

    def stop(self, *, timeout_s: float = STOP_TIMEOUT_S) -> float:
        """SIGTERM, then SIGKILL for what is left; the seconds until the process was gone."""
        under = self.descendants()
        began = time.monotonic()
        self.send(signal.SIGCONT)
        self.send(signal.SIGTERM)
        self.wait(timeout_s)
        took = time.monotonic() - began
        self.end_tree(under, wait_s=2)
        return took

    def wait(self, timeout_s: float) -> bool:
        """Whether the process ended within the time."""
        try:
            self.popen.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return False
        return True

    def end_tree(self, under: Sequence[psutil.Process], *, wait_s: float) -> None:
        """SIGKILL what of this process and of `under` still lives after `wait_s`."""
        psutil.wait_procs(under, timeout=wait_s)
        if self.alive:
            self.popen.kill()
        for child in under:
            _send(child, signal.SIGKILL)
        self.popen.wait(10)
        psutil.wait_procs(under, timeout=5)

    def tail(self, lines: int = 30) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])


def _send(child: psutil.Process, number: int) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):
        child.send_signal(number)


def run(command: Sequence[str], *, env: Mapping[str, str], timeout_s: float = 300) -> str:
    """The output of a command that must end 0."""
    done = subprocess.run(
        list(command),
        cwd=REPOSITORY,
        env=dict(env),
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )
    assert done.returncode == 0, f"{command}: {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout
