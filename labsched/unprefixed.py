"""The API without `/api`, for the first published client; people are sent to the page instead."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from django.http import HttpRequest, HttpResponseBase, HttpResponseRedirect
from django.urls import Resolver404, URLPattern, path, resolve
from django.views.decorators.csrf import csrf_exempt

JSON = "application/json"
HOMES = ("/workflows", "/jobs", "/")


def without_prefix(patterns: list[URLPattern]) -> list[URLPattern]:
    """The same views under addresses without prefix and trailing slash."""
    return [
        path(str(pattern.pattern), _for_programs(pattern.callback))
        for pattern in patterns
        if not str(pattern.pattern).endswith("/") and pattern.callback is not None
    ]


def _for_programs(view: Callable[..., HttpResponseBase]) -> Callable[..., HttpResponseBase]:
    @csrf_exempt  # the API view itself checks it, for sessions
    def answer(request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
        if request.method in ("GET", "HEAD") and not is_program(request):
            return HttpResponseRedirect(_page(request))
        return view(request, *args, **kwargs)

    return answer


def is_program(request: HttpRequest) -> bool:
    """The client sends X-User-ID, a bearer token or JSON."""
    return (
        "X-User-ID" in request.headers
        or request.headers.get("Authorization", "").lower().startswith("bearer")
        or request.headers.get("Content-Type", "").startswith(JSON)
        or request.headers.get("Accept", "").startswith(JSON)
    )


def _page(request: HttpRequest) -> str:
    """The page of this address, else the API's own address."""
    query = f"?{request.GET.urlencode()}" if request.GET else ""
    if request.path in HOMES:
        return f"/{query}"
    try:
        resolve(f"{request.path}/")
    except Resolver404:
        return f"/api{request.path}{query}"
    return f"{request.path}/{query}"
