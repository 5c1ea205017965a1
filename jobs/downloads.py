"""Sending stored files: ranges, validators, and streams that never hold a whole file in memory."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Iterator
from typing import IO, Any

from asgiref.sync import sync_to_async
from django.core.files.storage import default_storage
from django.core.handlers.asgi import ASGIRequest
from django.http import HttpRequest, HttpResponse, HttpResponseBase, StreamingHttpResponse
from django.utils.http import content_disposition_header
from rest_framework.exceptions import NotFound

from jobs.models import Artifact

CHUNK = 1024 * 1024
RANGE = re.compile(r"bytes=(\d*)-(\d*)")
CONTENT_TYPES = {
    ".json": "application/json",
    ".jsonl": "application/x-ndjson",
    ".geojson": "application/geo+json",
    ".gz": "application/gzip",
    ".png": "image/png",
    ".jpg": "image/jpeg",
    ".csv": "text/csv; charset=utf-8",
}


def send(request: HttpRequest, artifact: Artifact, *, attachment: bool = True) -> HttpResponseBase:
    """The file of `artifact`, whole or the range asked for; 304 when the client has it."""
    etag = f'"{artifact.sha256}"'
    if etag in request.headers.get("If-None-Match", ""):
        return _with_validators(HttpResponse(status=304), etag)
    wanted = _range(request, artifact.size, etag)
    if wanted is None:
        return _unsatisfiable(artifact, etag)
    start, end = wanted
    partial = (start, end) != (0, artifact.size)
    file = open_stored(artifact)
    response = StreamingHttpResponse(
        _body(request, file, start, end - start),
        status=206 if partial else 200,
        content_type=_content_type(artifact.name),
    )
    response._resource_closers.append(file.close)  # type: ignore[attr-defined] # never read: HEAD
    if partial:
        response["Content-Range"] = f"bytes {start}-{end - 1}/{artifact.size}"
    response["Content-Length"] = str(end - start)
    how = content_disposition_header(as_attachment=attachment, filename=artifact.name)
    response["Content-Disposition"] = how or "inline"
    return _with_validators(response, etag)


def open_stored(artifact: Artifact) -> IO[bytes]:
    """The stored file, open for reading. Raises NotFound when the storage has lost it."""
    try:
        opened: IO[bytes] = default_storage.open(artifact.path, "rb")
    except OSError as error:
        raise NotFound(
            f"The file of {artifact.name} is gone from the storage: retry the job to make it again."
        ) from error
    return opened


def _range(request: HttpRequest, size: int, etag: str) -> tuple[int, int] | None:
    """[start, end) to send; None when nothing of the range exists.

    Several ranges, or a validator of an older file, get the whole: the standard allows both.
    """
    asked = RANGE.fullmatch(request.headers.get("Range", "").strip())
    if asked is None or request.headers.get("If-Range", etag) != etag:
        return 0, size
    first, last = asked.groups()
    if not first and not last:
        return 0, size
    if not first:
        return (max(0, size - int(last)), size) if int(last) and size else None
    start, end = int(first), min(size, int(last) + 1 if last else size)
    if last and int(last) < int(first):
        return 0, size
    return (start, end) if start < size else None


def _unsatisfiable(artifact: Artifact, etag: str) -> HttpResponse:
    response = HttpResponse(status=416)
    response["Content-Range"] = f"bytes */{artifact.size}"
    return _with_validators(response, etag)  # type: ignore[return-value]


def _with_validators(response: HttpResponseBase, etag: str) -> HttpResponseBase:
    response["ETag"] = etag
    response["Accept-Ranges"] = "bytes"
    # an artifact is never written twice under one hash, but who may read it can change
    response["Cache-Control"] = "private, no-cache"
    return response


def _content_type(name: str) -> str:
    return next(
        (kind for suffix, kind in CONTENT_TYPES.items() if name.endswith(suffix)),
        "application/octet-stream",
    )


def _body(request: HttpRequest, file: IO[bytes], start: int, length: int) -> Any:
    """An iterator of the server's own kind: the other kind would be read into memory whole."""
    if isinstance(request, ASGIRequest):
        return _read_async(file, start, length)
    return _read(file, start, length)


def _read(file: IO[bytes], start: int, length: int) -> Iterator[bytes]:
    file.seek(start)
    while length > 0 and (chunk := file.read(min(CHUNK, length))):
        length -= len(chunk)
        yield chunk


async def _read_async(file: IO[bytes], start: int, length: int) -> AsyncIterator[bytes]:
    chunks = _read(file, start, length)

    def following() -> bytes:
        return next(chunks, b"")

    in_thread = sync_to_async(following, thread_sensitive=False)
    while chunk := await in_thread():
        yield chunk
