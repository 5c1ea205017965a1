"""One stop for all, restart of what falls, and nobody who outlives a killed supervisor."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable

import psutil
import pytest

from labsched.supervisor import describe_exit
from tests.bootstrap.conftest import Owner, gone_within

SUPERVISE = """
import os, sys
from pathlib import Path
from labsched.supervisor import Service, Supervisor
supervisor = Supervisor(cwd=Path.cwd())
first = supervisor.add(Service("wire", ["sleep", "60"], os.environ, last=True))
second = supervisor.add(Service("worker", ["bash", "-c", sys.argv[1]], os.environ))
print(first.pid, second.pid, flush=True)
supervisor.run()
"""
STUBBORN = "trap '' TERM; echo up; while true; do sleep 0.1; done"
QUIET = "echo up; sleep 60"


def wait_until_supervised(parent: Owner) -> None:
    """Return once the child's first line was passed on: the supervisor runs, and listens."""
    assert next(line for line in parent.stdout if line.endswith("up\n"))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_one_signal_stops_every_child(owner: Callable[..., Owner], number: signal.Signals) -> None:
    parent = owner(SUPERVISE, QUIET)
    wait_until_supervised(parent)
    parent.popen.send_signal(number)
    assert parent.popen.wait(5) == 0
    assert not any(psutil.pid_exists(pid) for pid in parent.pids)


def test_a_killed_supervisor_leaves_nobody(owner: Callable[..., Owner]) -> None:
    parent = owner(SUPERVISE, "sleep 60")
    parent.kill()
    assert all(gone_within(pid, 2) for pid in parent.pids)


def test_a_child_that_ignores_the_signal_is_killed_within_15_s(
    owner: Callable[..., Owner],
) -> None:
    parent = owner(SUPERVISE, STUBBORN)
    wait_until_supervised(parent)
    began = time.monotonic()
    parent.popen.terminate()
    assert parent.popen.wait(15) == 0
    assert time.monotonic() - began < 15
    assert not any(psutil.pid_exists(pid) for pid in parent.pids)


def test_a_second_signal_does_not_wait(owner: Callable[..., Owner]) -> None:
    parent = owner(SUPERVISE, STUBBORN)
    wait_until_supervised(parent)
    parent.popen.terminate()
    time.sleep(0.5)
    parent.popen.terminate()
    assert parent.popen.wait(3) == 0


def test_what_falls_is_started_again_and_its_last_words_are_shown(
    owner: Callable[..., Owner],
) -> None:
    parent = owner(SUPERVISE, "echo hello from $$; printf 'last words'; exit 3")
    said = ""
    while said.count("hello from") < 3:
        said += parent.stdout.readline()
    parent.popen.terminate()
    said += parent.stdout.read()
    assert "   worker | last words\n" in said
    assert "worker ended with exit code 3; it starts again in 0.5 s" in said
    assert "it starts again in 1 s" in said


def test_what_a_fallen_child_left_behind_is_ended(owner: Callable[..., Owner]) -> None:
    parent = owner(SUPERVISE, "sleep 61 & echo left $!; exit 1")
    line = next(line for line in parent.stdout if "left" in line)
    assert gone_within(int(line.split()[-1]), 2)


def test_an_exit_is_told_in_words() -> None:
    assert describe_exit(3) == "ended with exit code 3"
    assert describe_exit(-9) == "was ended by SIGKILL"
