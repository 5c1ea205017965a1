"""A stack with one cpu worker and short bounds, so that every way a job can be stopped shows fast."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.conftest import Cast
from tests.processes import Process
from tests.stack import Stack

HERE = Path(__file__).parent
STALL_S = 2.0
CANCEL_GRACE_S = 2.0


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(HERE) and "stack" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.stack)


@pytest.fixture(scope="session")
def strict_stack() -> Iterator[Stack]:
    bounds = {"LEASE_S": 8, "STALL_S": STALL_S, "CANCEL_GRACE_S": CANCEL_GRACE_S}
    with Stack(cpu_workers=1, settings={**bounds, "RETRY_BACKOFF_S": 0.2}) as made:
        yield made


@pytest.fixture
def stack(strict_stack: Stack) -> Iterator[Stack]:
    """All processes up before each test, nothing active after it."""
    strict_stack.start()
    yield strict_stack
    strict_stack.start()
    strict_stack.settle()


@pytest.fixture
def cast(stack: Stack) -> Cast:
    return Cast(stack)


@pytest.fixture
def worker(stack: Stack) -> Process:
    """The one worker, warm."""
    (process,) = stack.workers()
    return process


def child_of(worker: Process) -> psutil.Process:
    """The process that runs the jobs of a worker."""
    spawned = [
        process for process in worker.descendants() if "spawn_main" in " ".join(process.cmdline())
    ]
    assert len(spawned) == 1, spawned
    return spawned[0]
