"""A process that dies at step k: before a statement, around a commit, around a push to Redis.

The steps are counted from outside, in a forked child: no hook is in the product.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from typing import Any

import redis
from django.db import connection, connections

DIED = 17
LONGEST_S = 30.0


def dies_at(step: int, call: Callable[[], object]) -> bool:
    """Run `call` in a child that dies at its `step`-th step. False when it ended before that.

    raises AssertionError  when the child failed by itself, or hung
    """
    connections.close_all()  # a connection does not survive being shared
    pid = os.fork()
    if pid == 0:
        _be_the_child(step, call)
    code = _wait(pid)
    assert code in (0, DIED), f"the child ended with {code}"
    return code == DIED


def _be_the_child(step: int, call: Callable[[], object]) -> None:
    """Never returns: pytest must not go on twice."""
    try:
        _count_steps(step)
        with connection.execute_wrapper(_around_each_statement):
            call()
        connections.close_all()
    except BaseException as error:
        os.write(2, f"{type(error).__name__}: {error}\n".encode())
        os._exit(1)
    os._exit(0)


_left = {"steps": 0}


def _step() -> None:
    _left["steps"] -= 1
    if _left["steps"] == 0:
        os._exit(DIED)


def _around_each_statement(execute: Any, *arguments: Any) -> Any:
    _step()
    answer = execute(*arguments)
    if not connection.in_atomic_block:  # it has committed by itself
        _step()
    return answer


def _count_steps(step: int) -> None:
    """Death comes before each statement, before and after each commit, and around each pipeline."""
    _left["steps"] = step
    _around(type(connections["default"]), "_commit")
    _around(redis.client.Pipeline, "execute")


def _around(owner: Any, name: str) -> None:
    original = getattr(owner, name)

    def counted(*arguments: Any, **options: Any) -> Any:
        _step()
        answer = original(*arguments, **options)
        _step()
        return answer

    setattr(owner, name, counted)


def _wait(pid: int) -> int:
    deadline = time.monotonic() + LONGEST_S
    while time.monotonic() < deadline:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    raise AssertionError(f"the child did not end within {LONGEST_S:.0f} s")
