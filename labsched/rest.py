"""The edge of the REST API that all apps share: bodies in, errors out, what the schema lists.

Settings name these by dotted path, so the apps below need not import them.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from typing import Any

from django.core.exceptions import SuspiciousOperation
from django.db import OperationalError
from django.http import Http404
from rest_framework import status
from rest_framework.exceptions import APIException, NotFound, ParseError
from rest_framework.negotiation import BaseContentNegotiation
from rest_framework.parsers import BaseParser
from rest_framework.response import Response

MAX_BODY = 32 * 1024 * 1024
"""Bytes of a JSON body: room for the largest submission."""

log = logging.getLogger(__name__)


class TooLarge(APIException):
    """The body is larger than any submission needs to be."""

    status_code = status.HTTP_413_REQUEST_ENTITY_TOO_LARGE
    default_code = "too_large"
    default_detail = f"The body is larger than {MAX_BODY >> 20} MiB: submit it in parts."


class BoundedJSONParser(BaseParser):
    """JSON of a bounded size, in UTF-8, whose texts every database can store."""

    media_type = "application/json"

    def parse(
        self,
        stream: Any,
        media_type: str | None = None,
        parser_context: Mapping[str, Any] | None = None,
    ) -> Any:
        raw = stream.read(MAX_BODY + 1)
        if len(raw) > MAX_BODY:
            raise TooLarge
        try:
            found = json.loads(raw.decode("utf-8"), parse_constant=_no_constant)
        except (ValueError, RecursionError) as error:
            raise ParseError(f"The body is not JSON: {_said(error)}.") from error
        if b"\\u" in raw:
            _check_texts(found)
        return found


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")


def _said(error: Exception) -> str:
    return "it is nested too deeply" if isinstance(error, RecursionError) else str(error)


def _check_texts(found: Any) -> None:
    """Refuse NUL and half surrogates, which JSON can write and a database can not keep."""
    text = json.dumps(found, ensure_ascii=False)
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ParseError("A text holds half a surrogate pair, which is no character.") from error
    if "\\u0000" in text.replace("\\\\", ""):
        raise ParseError("A text holds a NUL character, which can not be stored.")


class AlwaysJSON(BaseContentNegotiation):
    """Answer in the view's own format whatever `Accept` says: downloads are asked for as */*."""

    def select_parser(self, request: Any, parsers: Any) -> Any:
        """The JSON parser, also for a body without a content type."""
        sent = (request.content_type or "").split(";")[0].strip().lower()
        known = {parser.media_type: parser for parser in parsers}
        return known.get(sent or "application/json")

    def select_renderer(
        self, request: Any, renderers: Any, format_suffix: str | None = None
    ) -> tuple[Any, str]:
        return renderers[0], renderers[0].media_type


def answer_error(error: Exception, context: dict[str, Any]) -> Response | None:
    """`{"detail": …}` or field errors, with the right status. None: nobody foresaw this."""
    # late: their modules read the settings that name this one
    from rest_framework.views import exception_handler

    from jobs.slides.bucket import SlideAway
    from tenants.api import NOTHING_HERE

    if isinstance(error, Http404):
        error = NotFound(NOTHING_HERE)
    elif isinstance(error, SuspiciousOperation):
        error = ParseError("This request can not be read: check its address and headers.")
    elif isinstance(error, OperationalError):
        return _database_away(error)
    elif isinstance(error, SlideAway):
        return _slide_away(error)
    return exception_handler(error, context)


def _database_away(error: OperationalError) -> Response:
    log.error("the database refused: %s", error)
    return Response(
        {"detail": "The database does not answer just now: try again in a moment."},
        status=status.HTTP_503_SERVICE_UNAVAILABLE,
        headers={"Retry-After": "2"},
    )


def _slide_away(error: Exception) -> Response:
    """A slide in the bucket that is not here yet, or a bucket that does not answer."""
    retry_s = getattr(error, "retry_s", 30)  # None: it is not being fetched
    return Response(
        {"detail": str(error)},
        status=status.HTTP_503_SERVICE_UNAVAILABLE,
        headers={"Retry-After": str(retry_s)} if retry_s else {},
    )


def public_endpoints(endpoints: list[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    """The addresses that the schema lists: prefixed, without a trailing slash."""
    from labsched import schema  # noqa: F401 - late, as above: registers the ways in

    return [
        entry for entry in endpoints if entry[0].startswith("/api/") and not entry[0].endswith("/")
    ]
