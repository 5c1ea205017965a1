"""Slots, workers and settings of the proofs, and a Redis of their own for the wire."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from jobs.scheduling import wake
from labsched.embedded_redis import EmbeddedRedis
from tests.proofs import bench


@pytest.fixture(scope="session")
def wire_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a Redis of these tests alone."""
    server = EmbeddedRedis.claim(tmp_path_factory.mktemp("redis"))
    yield server.start()
    server.stop()


@pytest.fixture
def wire(settings: Any, wire_url: str) -> Iterator[None]:
    """The process talks to that Redis."""
    settings.REDIS_URL = wire_url
    settings.CHANNEL_LAYERS = {
        "default": {
            "BACKEND": "channels_redis.pubsub.RedisPubSubChannelLayer",
            "CONFIG": {"hosts": [wire_url], "prefix": "proofs"},
        }
    }
    wake.client.cache_clear()
    yield
    wake.client().flushall()
    wake.client.cache_clear()


@pytest.fixture
def small_house(settings: Any, transactional_db: None, wire: None) -> None:
    """Three workers for two active users: every limit is met all the time."""
    for name, value in bench.LIMITS.items():
        setattr(settings, name, value)
