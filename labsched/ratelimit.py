"""Rate limits at the door (R11): who asks too fast is told so before any work is done for them.

The address of every request is counted here, and the tenant where a trusted header names it. A
tenant that a token, a session or a websocket names is counted once it is known, by
tenants/permissions.py, tenants/pages.py and realtime/consumers.py.
"""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Iterable
from typing import Any

from django.conf import settings

from tenants.limiter import CHARGED, address_bucket, limiter, tenant_bucket
from tenants.limits import Bucket, Refusal
from tenants.models import TENANT_KEY

UNCOUNTED = ("/health", "/health/", "/health/live", "/health/live/", "/metrics", "/metrics/")


class RateLimit:
    """ASGI: 429 with Retry-After for requests and websockets that come too fast."""

    def __init__(self, application: Any) -> None:
        self.application = application

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        refusal = None
        if scope["type"] in ("http", "websocket") and not _uncounted(scope["path"]):
            refusal = await limiter().take_async(_buckets(scope))
        if refusal is None:
            await self.application(scope, receive, send)
        elif scope["type"] == "http":
            await _refuse(refusal, send, "http.response")
        else:
            await receive()  # websocket.connect
            await _refuse_socket(refusal, scope, send)


def _uncounted(path: str) -> bool:
    return path in UNCOUNTED or path.startswith(settings.STATIC_URL)


def _buckets(scope: dict[str, Any]) -> list[Bucket]:
    """The buckets of this request; the tenant's is noted, so that it is charged once."""
    buckets = address_bucket(client_address(scope))
    tenant = _tenant_by_header(scope)
    if tenant is not None:
        scope[CHARGED] = tenant
        buckets += tenant_bucket(tenant)
    return buckets


def _tenant_by_header(scope: dict[str, Any]) -> str | None:
    """The tenant that X-User-ID names, where the header decides: without a bearer token."""
    if not settings.TRUST_USER_HEADER:
        return None
    named = [value for name, value in scope["headers"] if name == b"x-user-id"]
    if len(named) != 1 or any(name == b"authorization" for name, _ in scope["headers"]):
        return None
    key = named[0].decode("latin-1")
    return key if TENANT_KEY.fullmatch(key) else None


def client_address(scope: dict[str, Any]) -> str:
    """Who is at the other end; X-Forwarded-For counts as far as TRUSTED_PROXIES wrote it."""
    address = str((scope.get("client") or ("unknown",))[0])
    for named in reversed(_forwarded_for(scope["headers"])):
        if not _is_trusted(address):
            break
        address = named
    return address


def _forwarded_for(headers: Iterable[tuple[bytes, bytes]]) -> list[str]:
    if not settings.TRUSTED_PROXIES:
        return []
    lines = [value.decode("latin-1") for name, value in headers if name == b"x-forwarded-for"]
    return [each.strip() for each in ",".join(lines).split(",") if each.strip()]


def _is_trusted(address: str) -> bool:
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return False
    return any(parsed in network for network in settings.TRUSTED_PROXIES)


async def _refuse_socket(refusal: Refusal, scope: dict[str, Any], send: Any) -> None:
    if "websocket.http.response" in scope.get("extensions", {}):
        await _refuse(refusal, send, "websocket.http.response")
    else:
        await send({"type": "websocket.close", "code": 1013})  # try again later


async def _refuse(refusal: Refusal, send: Any, kind: str) -> None:
    body = json.dumps({"detail": refusal.sentence}).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", b"%d" % len(body)),
        (b"retry-after", b"%d" % refusal.retry_after),
    ]
    await send({"type": f"{kind}.start", "status": 429, "headers": headers})
    await send({"type": f"{kind}.body", "body": body})
