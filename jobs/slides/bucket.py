"""Objects of S3-compatible storage below SLIDES_URL: which there are, what they are, their bytes.

Reads only. boto3 is loaded with the first question, so that stacks without a bucket never pay for it.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from django.conf import settings

from jobs.slides import answers
from jobs.slides.answers import fresh

OFTEN, MANY = 20, 100
"""Questions for single objects within a moment, after which their folder, or everything, is listed."""
STREAMS, CHUNK_BYTES = 6, 256 << 10
BUSY = ("429", "SlowDown", "Throttling", "RequestTimeout")


class SlideAway(Exception):
    """A slide is there, but its bytes are not here just now; the message says what to do."""


class Unanswered(SlideAway):
    """The server, or the way to it, is down just now: waiting may be all that it needs."""


class Gone(LookupError):
    """The bucket has no such object."""


@dataclass(frozen=True)
class Stored:
    """An object: its path below the prefix, and what changes with its bytes."""

    path: str
    size: int
    etag: str
    modified_ns: int


def is_configured() -> bool:
    """Whether this stack has slides in a bucket."""
    return settings.SLIDES_BUCKET is not None


def in_folder(folder: str) -> Mapping[str, Stored]:
    """The objects directly in a folder ("." is the prefix itself), by path. Raises SlideAway."""
    below = "" if folder == "." else f"{folder}/"
    return fresh(("folder", folder), lambda: _listed(below, Delimiter="/"))


def head_of(stored: Stored, most: int) -> bytes:
    """The first `most` bytes of the object. Raises Gone or SlideAway."""
    if not stored.size:
        return b""
    return b"".join(chunks(stored, 0, most))


def listed() -> Mapping[str, Stored]:
    """Every object below the prefix, by path. Raises SlideAway."""
    return fresh(("list",), lambda: _listed(""))


def find(path: str) -> Stored:
    """The object of this path, which is relative and has no `..`. Raises Gone or SlideAway."""
    if not _is_plain(path):
        raise Gone(path)
    return fresh(("find", path), lambda: _found(path))


def _found(path: str) -> Stored:
    """By a question for this object; where many are asked for, by one for their folder, or for all."""
    whole: Mapping[str, Stored] = answers.known(("list",)) or {}
    if path in whole:
        return whole[path]
    folder = PurePosixPath(path).parent.as_posix()
    asked: list[str] = fresh(("asked",), list)
    asked.append(folder)
    if asked.count(folder) > OFTEN:
        inside = in_folder(folder)
    elif len(asked) > MANY:  # dear where there are millions, so not before
        inside = listed()
    else:
        return _head(path)
    if path not in inside:
        raise Gone(path)
    return inside[path]


def identity() -> str:
    """Where the objects are, in one text."""
    return f"{_client().meta.endpoint_url}/{_place()[0]}"


def _place() -> tuple[str, str]:
    """Names of the bucket and of the prefix with a slash at its end, if there is one."""
    place = settings.SLIDES_BUCKET or {}
    prefix = place["location"]
    return place["bucket_name"], f"{prefix}/" if prefix else ""


def chunks(stored: Stored, start: int, end: int) -> Iterator[bytes]:
    """The object's bytes from `start` to before `end`. Raises Gone or SlideAway."""
    with _asking(stored.path):
        answer = _client().get_object(
            **_named(stored.path), Range=f"bytes={start}-{end - 1}", IfMatch=stored.etag
        )
        with contextlib.closing(answer["Body"]) as body:
            yield from body.iter_chunks(CHUNK_BYTES)


# --- asking the server --------------------------------------------------------------------


def _listed(below: str, **options: str) -> dict[str, Stored]:
    name, prefix = _place()
    found: dict[str, Stored] = {}
    with _asking(below):
        pages = (
            _client()
            .get_paginator("list_objects_v2")
            .paginate(Bucket=name, Prefix=prefix + below, **options)
        )
        for page in pages:
            for each in page.get("Contents", ()):
                path = str(each["Key"]).removeprefix(prefix)
                if _is_plain(path):
                    found[path] = _stored(path, each["Size"], each)
    return found


def _head(path: str) -> Stored:
    with _asking(path):
        answer = _client().head_object(**_named(path))
    return _stored(path, answer["ContentLength"], answer)


def _stored(path: str, size: int, facts: Mapping[str, Any]) -> Stored:
    seconds = int(facts["LastModified"].timestamp())  # of the two questions, one knows no more
    return Stored(path, int(size), str(facts["ETag"]), seconds * 10**9)


def _is_plain(path: str) -> bool:
    """Whether a path is one name below another, as it will be in the cache folder."""
    pieces = path.split("/")
    return all(piece not in ("", ".", "..") and "\0" not in piece for piece in pieces)


def _named(path: str) -> dict[str, str]:
    name, prefix = _place()
    return {"Bucket": name, "Key": prefix + path}


@functools.cache
def _client() -> Any:
    from boto3.session import Session
    from botocore.config import Config

    patience = Config(
        connect_timeout=5,
        read_timeout=20,
        retries={"total_max_attempts": 3, "mode": "standard"},
        max_pool_connections=STREAMS,
    )
    return Session().client("s3", config=patience)  # a session of its own: they are not for threads


@contextlib.contextmanager
def _asking(what: str) -> Iterator[None]:
    """Turn what boto3 raises into Gone or SlideAway."""
    from botocore.exceptions import (
        BotoCoreError,
        ClientError,
        ConnectionError,  # noqa: A004 - botocore's, which is no OSError
        HTTPClientError,
        IncompleteReadError,
    )

    try:
        yield
    except ClientError as error:
        code = str(error.response.get("Error", {}).get("Code", ""))
        if code in ("404", "NoSuchKey"):
            raise Gone(what) from error
        if code in ("412", "PreconditionFailed"):
            answers.forget()  # they are of what was there before
            raise SlideAway(
                f"{what} changed while it was fetched from the slide bucket: try again."
            ) from error
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        raise _away(code, passing=status >= 500 or code in BUSY) from error
    except (HTTPClientError, ConnectionError, IncompleteReadError) as error:
        raise _away(type(error).__name__, passing=True) from error
    except BotoCoreError as error:
        raise _away(type(error).__name__, passing=False) from error


def _away(why: str, *, passing: bool) -> SlideAway:
    return (Unanswered if passing else SlideAway)(
        f"The slide bucket did not answer as it should ({why}). Try again in a moment; if that does "
        "not help, ask the operator to look at SLIDES_URL and the keys that go with it."
    )


def forget() -> None:
    """Drop what is remembered: the settings, or the server, are others."""
    answers.forget()
    _client.cache_clear()
