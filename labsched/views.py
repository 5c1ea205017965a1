"""Answers for what no view of an app answers: unknown addresses, faults, metrics."""

from __future__ import annotations

import secrets
from functools import cache
from pathlib import Path
from typing import Any

from django.conf import settings
from django.contrib.staticfiles import finders
from django.http import HttpRequest, HttpResponse, HttpResponseBase, JsonResponse
from django.template.exceptions import TemplateDoesNotExist
from django.template.loader import render_to_string
from django.views.decorators.cache import cache_control
from django_prometheus.exports import ExportToDjangoView

from labsched.unprefixed import is_program

FAULT = (
    "Something went wrong on our side. It was logged; try again, and tell an operator if it stays."
)
NOT_FOUND = "There is nothing at this address."


def not_found(request: HttpRequest, exception: Exception) -> HttpResponseBase:
    """404, as JSON for programs and as a page for people."""
    return _answer(request, 404, NOT_FOUND)


def fault(request: HttpRequest) -> HttpResponseBase:
    """500 without a traceback, as JSON for programs and as a page for people."""
    return _answer(request, 500, FAULT)


def refused(request: HttpRequest, exception: Exception) -> HttpResponseBase:
    """400 for requests that can not be read."""
    return _answer(request, 400, "This request can not be read: check its address and headers.")


def _answer(request: HttpRequest, status: int, sentence: str) -> HttpResponseBase:
    if request.path.startswith("/api/") or is_program(request):
        return JsonResponse({"detail": sentence}, status=status)
    try:
        page = render_to_string(f"{status}.html", {"reason": sentence}, request=request)
    except TemplateDoesNotExist:
        return HttpResponse(sentence, status=status, content_type="text/plain; charset=utf-8")
    return HttpResponse(page, status=status)


def metrics(request: HttpRequest) -> HttpResponseBase:
    """Prometheus; with METRICS_TOKEN set only for `Authorization: Bearer <token>`."""
    if settings.METRICS_TOKEN and not _has_token(request):
        refusal: dict[str, Any] = {"detail": "Send METRICS_TOKEN as `Authorization: Bearer …`."}
        response = JsonResponse(refusal, status=401)
        response["WWW-Authenticate"] = 'Bearer realm="metrics"'
        return response
    answer: HttpResponseBase = ExportToDjangoView(request)
    return answer


def _has_token(request: HttpRequest) -> bool:
    kind, _, text = request.headers.get("Authorization", "").partition(" ")
    return kind.lower() == "bearer" and secrets.compare_digest(
        text.strip().encode(), settings.METRICS_TOKEN.encode()
    )


@cache_control(max_age=86_400, public=True)
def redoc_script(request: HttpRequest) -> HttpResponse:
    """ReDoc's own script, without the picture that it would fetch from its maker's host."""
    return HttpResponse(_redoc_script(), content_type="text/javascript; charset=utf-8")


@cache
def _redoc_script() -> bytes:
    found = finders.find("drf_spectacular_sidecar/redoc/bundles/redoc.standalone.js")
    script = Path(str(found)).read_bytes()
    # an empty picture fails to load, and ReDoc leaves it out then
    return script.replace(b"https://cdn.redoc.ly/redoc/logo-mini.svg", b"data:,")
