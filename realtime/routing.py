"""The way of a websocket: its origin, its session, its address."""

from __future__ import annotations

from typing import Any

from channels.auth import AuthMiddlewareStack
from channels.routing import URLRouter
from channels.security.websocket import AllowedHostsOriginValidator
from django.urls import re_path

from realtime.consumers import FeedConsumer


class OriginIfGiven:
    """Check the origin of browsers. Programs send none, and carry no one else's cookies."""

    def __init__(self, application: Any) -> None:
        self.application = application
        self.checked = AllowedHostsOriginValidator(application)

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> Any:
        named = any(name == b"origin" for name, _ in scope.get("headers", ()))
        return await (self.checked if named else self.application)(scope, receive, send)


class Nowhere:
    """Closes sockets of unknown addresses, where the router would raise."""

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "websocket.close", "code": 4404})


def websocket_application() -> OriginIfGiven:
    """Everything below /api/progress/ws, with and without a trailing slash."""
    router = URLRouter(
        [
            re_path(r"^(?:api/)?progress/ws/?$", FeedConsumer.as_asgi()),
            re_path(r"", Nowhere()),  # type: ignore[arg-type]
        ]
    )
    return OriginIfGiven(AuthMiddlewareStack(router))
