"""Every scenario runs on the engine that DATABASE_URL names; what the rows decide, on both."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.stack import Stack

HERE = Path(__file__).parent
ONE_ENGINE_IS_ENOUGH = (
    "test_12_paths.py",
    "test_20_start.py",
    "test_unprefixed_routes.py",
)
# on PostgreSQL these run with `bin/test -m proof`, as in CI: bin/test itself has to end in time
LATER_ON_POSTGRES = (
    "test_05_tenants_apart.py",
    "test_06_cancel.py",
    "test_07_no_leak.py",
    "test_08_dependencies.py",
    "test_09_failure_is_local.py",
    "test_10_live.py",
    "test_11_isolation.py",
    "test_14_stop.py",
    "test_15_rate.py",
    "test_17_metrics.py",
)
LATER = ("test_16_load.py",)  # these on both
LEASE_S = 6


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    on_postgres = os.environ.get("DATABASE_URL", "").startswith("postgres")
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker(pytest.mark.stack)
            if item.path.name not in ONE_ENGINE_IS_ENOUGH:
                item.add_marker(pytest.mark.postgres)
            if item.path.name in LATER or (on_postgres and item.path.name in LATER_ON_POSTGRES):
                item.add_marker(pytest.mark.proof)


@pytest.fixture(scope="package")
def doomed_stack() -> Iterator[Stack]:
    """A stack of two workers that tests kill and stop whole, with short leases."""
    with Stack(cpu_workers=2, settings={"LEASE_S": LEASE_S, "MAX_WORKERS": 2}) as stack:
        yield stack


@pytest.fixture
def private(doomed_stack: Stack) -> Iterator[Stack]:
    """The doomed stack, whole again."""
    doomed_stack.start()
    yield doomed_stack
    doomed_stack.start()
    doomed_stack.settle()
