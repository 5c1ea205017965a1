"""A stack whose processes are meant to be killed, with short leases."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import Cast
from tests.stack import Stack

HERE = Path(__file__).parent
LEASE_S = 3


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker(pytest.mark.stack)
            item.add_marker(pytest.mark.chaos)
            if item.path.name == "test_two_schedulers.py":  # their lock differs by engine
                item.add_marker(pytest.mark.postgres)


@pytest.fixture(scope="package")
def fragile_stack() -> Iterator[Stack]:
    with Stack(
        cpu_workers=3, settings={"LEASE_S": LEASE_S, "STALL_S": 4, "MAX_WORKERS": 3}
    ) as made:
        yield made


@pytest.fixture
def stack(fragile_stack: Stack) -> Iterator[Stack]:
    """All processes up before each test, nothing active after it."""
    fragile_stack.start()
    yield fragile_stack
    fragile_stack.start()
    fragile_stack.settle()


@pytest.fixture
def cast(stack: Stack) -> Cast:
    return Cast(stack)
