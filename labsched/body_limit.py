"""A bound on the bytes of any request body, held before they fill the disk."""

from __future__ import annotations

import json
from typing import Any

MOST = 64 * 1024 * 1024
DRAINED = 512 * 1024 * 1024
"""A client that is still sending hears nothing: this much is read and dropped before the answer."""
REFUSAL = {"detail": f"The body is larger than {MOST >> 20} MiB: send it in parts."}


class _TooLarge(Exception):
    """More came than may."""


class BodyLimit:
    """ASGI: 413 for a body of more than MOST bytes, whether or not its length was announced."""

    def __init__(self, application: Any) -> None:
        self.application = application

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self.application(scope, receive, send)
            return
        if _announced(scope) > MOST:
            await _refuse(receive, send, 0)
            return
        counting = _Counting(receive)
        try:
            await self.application(scope, counting, send)
        except _TooLarge:
            await _refuse(receive, send, counting.seen)


class _Counting:
    """`receive` that stops at MOST bytes."""

    def __init__(self, receive: Any) -> None:
        self.receive = receive
        self.seen = 0

    async def __call__(self) -> Any:
        message = await self.receive()
        if message["type"] == "http.request":
            self.seen += len(message.get("body", b""))
            if self.seen > MOST:
                raise _TooLarge
        return message


def _announced(scope: dict[str, Any]) -> int:
    for name, value in scope["headers"]:
        if name == b"content-length" and value.isdigit():
            return int(value)
    return 0


async def _refuse(receive: Any, send: Any, seen: int) -> None:
    more = True
    while more and seen < DRAINED:
        message = await receive()
        seen += len(message.get("body", b""))
        more = message["type"] == "http.request" and message.get("more_body", False)
    body = json.dumps(REFUSAL).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    if more:
        headers.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": 413, "headers": headers})
    await send({"type": "http.response.body", "body": body})
