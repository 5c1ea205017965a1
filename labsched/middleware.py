"""What every answer carries: a content policy that lets nothing load from another host."""

from __future__ import annotations

from collections.abc import Callable

from asgiref.sync import iscoroutinefunction, markcoroutinefunction
from django.http import HttpRequest, HttpResponseBase

BASE = {
    "default-src": "'self'",
    "img-src": "'self' data: blob:",
    "connect-src": "'self'",
    "object-src": "'none'",
    "base-uri": "'self'",
    "form-action": "'self'",
    "frame-ancestors": "'self'",
}
# Swagger UI and ReDoc set styles by attribute; ReDoc searches in a worker made from a blob
DOCS = BASE | {"style-src": "'self' 'unsafe-inline'", "worker-src": "'self' blob:"}
# the admin sets styles by attribute, no scripts
ADMIN = BASE | {"style-src": "'self' 'unsafe-inline'"}
# django-rq's lists start their actions from a script in the page; operators alone see them
QUEUES = ADMIN | {"script-src": "'self' 'unsafe-inline'"}


class ContentSecurityPolicy:
    """Add the policy of the address to every answer that has none."""

    sync_capable = True
    async_capable = True

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponseBase]) -> None:
        self.get_response = get_response
        self.is_async = iscoroutinefunction(get_response)
        if self.is_async:
            markcoroutinefunction(self)

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        if self.is_async:
            return self._call_async(request)  # type: ignore[return-value]
        return _with_policy(request, self.get_response(request))

    async def _call_async(self, request: HttpRequest) -> HttpResponseBase:
        return _with_policy(request, await self.get_response(request))  # type: ignore[misc]


def _with_policy(request: HttpRequest, response: HttpResponseBase) -> HttpResponseBase:
    response.headers.setdefault("Content-Security-Policy", policy_of(request.path))
    return response


def policy_of(path: str) -> str:
    """The policy text for an address."""
    rules = BASE
    if path.startswith(("/docs", "/redoc")):
        rules = DOCS
    elif path.startswith(("/admin/django-rq/", "/admin/django_rq/")):
        rules = QUEUES
    elif path.startswith("/admin/"):
        rules = ADMIN
    return "; ".join(f"{name} {value}" for name, value in rules.items())
