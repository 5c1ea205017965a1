"""What tests of /metrics begin with."""

from __future__ import annotations

import time
from typing import Any

import pytest

from jobs.scheduling import tally
from tests import factories
from workflows.models import Workflow


@pytest.fixture
def nothing_counted_yet(settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """This process counted nothing, and keeps what it counts when a test says so."""
    settings.LABSCHED_ENABLE_PROBE_JOBS = True
    tally._counts.clear()
    tally._noted.clear()
    monkeypatch.setitem(tally._kept, "at", time.monotonic() + 600)


@pytest.fixture
def flow(db: None, nothing_counted_yet: None) -> Workflow:
    """Three probe jobs that can start."""
    factories.capacity()
    return factories.workflow(factories.tenant(), [factories.job(f"j{n}") for n in range(3)])
