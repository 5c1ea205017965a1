"""A watcher of the websocket: collects messages with the moment each arrived."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import Any
from urllib.parse import urlencode

from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from tests.client import until


@dataclass(frozen=True)
class Message:
    """One message of the feed; `arrived` is CLOCK_MONOTONIC, as in the probe log."""

    type: str
    seq: int
    at: str
    data: dict[str, Any]
    arrived: float


class Feed:
    """`with Feed(url, user_id=…) as feed:` listens until left; `feed.messages` grows meanwhile."""

    def __init__(
        self,
        url: str,
        *,
        subprotocols: Sequence[str] | None = None,
        headers: dict[str, str] | None = None,
        **query: object,
    ) -> None:
        self.address = f"{url}?{urlencode(query)}" if query else url
        self.subprotocols = subprotocols
        self.headers = headers
        self.messages: list[Message] = []
        self.close_code: int | None = None
        self.connection: ClientConnection | None = None
        self.open = ExitStack()
        self.reader = threading.Thread(target=self._read, daemon=True)

    def __enter__(self) -> Feed:
        self.connection = self.open.enter_context(
            connect(
                self.address,
                subprotocols=self.subprotocols,  # type: ignore[arg-type]
                additional_headers=self.headers,
                open_timeout=20,
                max_size=None,
            )
        )
        self.reader.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.open.close()
        self.reader.join(10)

    def _read(self) -> None:
        assert self.connection is not None
        try:
            for text in self.connection:
                self._keep(json.loads(text))
        except ConnectionClosed:
            pass
        self.close_code = self.connection.close_code

    def _keep(self, said: dict[str, Any]) -> None:
        self.messages.append(
            Message(said["type"], said["seq"], said["at"], said["data"], time.monotonic())
        )

    def of_type(self, name: str) -> list[Message]:
        return [message for message in list(self.messages) if message.type == name]

    def states_of(self, job_id: str) -> list[str]:
        """The states told of one job, in order of arrival."""
        return [m.data["state"] for m in self.of_type("job") if m.data["id"] == job_id]

    def wait_for(
        self, match: Callable[[Message], bool], *, what: str, timeout_s: float = 20
    ) -> Message:
        """The first message that matches, waiting for it."""

        def found() -> Message | None:
            return next((message for message in list(self.messages) if match(message)), None)

        message = until(found, timeout_s=timeout_s, what=what, every_s=0.02)
        assert message is not None
        return message

    def wait_closed(self, *, timeout_s: float = 15) -> int | None:
        """The code with which the server closed."""
        self.reader.join(timeout_s)
        return self.close_code


def refusal(url: str, **options: Any) -> int | None:
    """The code with which a feed is closed, at once or instead of the first message."""
    with Feed(url, **options) as feed:
        code = feed.wait_closed()
        assert feed.messages == [], "a refused watcher must see nothing"
        return code
