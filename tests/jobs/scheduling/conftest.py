"""The house of every test of this folder."""

from __future__ import annotations

from typing import Any

import pytest

from tests.jobs.scheduling.steps import small_house


@pytest.fixture(autouse=True)
def rules(settings: Any) -> None:
    small_house(settings)
