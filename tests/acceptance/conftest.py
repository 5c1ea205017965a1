"""Every scenario runs on the engine that DATABASE_URL names, and is worth running on both."""

from __future__ import annotations

from pathlib import Path

import pytest

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker(pytest.mark.stack)
            item.add_marker(pytest.mark.postgres)
