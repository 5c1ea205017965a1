"""The house of every test of this folder."""

from __future__ import annotations

import os
from typing import Any

import pytest

from tests.jobs.scheduling.steps import small_house

ON_POSTGRES = os.environ.get("DATABASE_URL", "").startswith("postgres")
collect_ignore = [] if ON_POSTGRES else ["test_held_rows.py"]


@pytest.fixture(autouse=True)
def rules(settings: Any) -> None:
    small_house(settings)
