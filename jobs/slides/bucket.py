"""Objects of S3-compatible storage below SLIDES_URL: which there are, what they are, their bytes.

Reads only. boto3 is loaded with the first question, so that stacks without a bucket never pay for it.
"""

from __future__ import annotations

import contextlib
import functools
import os
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from django.conf import settings

from jobs.slides.files import Beat

FRESH_S = 10.0
"""For how long an answer is taken as still true: a viewer asks for a hundred tiles a second."""
KEPT = 10_000
OFTEN = 20
STREAMS, PART_BYTES, CHUNK_BYTES = 6, 16 << 20, 256 << 10
BEAT_S = 0.5

Kept = TypeVar("Kept")


class SlideAway(Exception):
    """A slide is there, but its bytes are not here just now; the message says what to do."""


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
    with _asking(stored.path):
        answer = _client().get_object(
            **_named(stored.path), Range=f"bytes=0-{most - 1}", IfMatch=stored.etag
        )
        with contextlib.closing(answer["Body"]) as body:
            return bytes(body.read())


def listed() -> Mapping[str, Stored]:
    """Every object below the prefix, by path. Raises SlideAway."""
    return fresh(("list",), lambda: _listed(""))


def find(path: str) -> Stored:
    """The object of this path, which is relative and has no `..`. Raises Gone or SlideAway."""
    if not _is_plain(path):
        raise Gone(path)
    return fresh(("find", path), lambda: _found(path))


def _found(path: str) -> Stored:
    """By a question for this object; where many of one folder are asked for, by one for them all."""
    whole: Mapping[str, Stored] = _known(("list",)) or {}
    if path in whole:
        return whole[path]
    folder = PurePosixPath(path).parent.as_posix()
    asked: list[str] = fresh(("asked", folder), list)
    asked.append(path)
    if len(asked) <= OFTEN:
        return _head(path)
    inside = in_folder(folder)
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


def fetch(stored: Stored, into: Path, *, beat: Beat) -> None:
    """Write the object's bytes over the file `into`, with several requests at once.

    beat     called every BEAT_S; what it raises ends the download
    raises   Gone; SlideAway, also when the object changes meanwhile
    """
    starts = iter(range(0, stored.size, PART_BYTES))
    lock, stop = threading.Lock(), threading.Event()
    faults: list[Exception] = []

    def work(descriptor: int) -> None:
        try:
            while not stop.is_set():
                with lock:
                    start = next(starts, None)
                if start is None:
                    return
                _fetch_part(stored, start, descriptor, stop)
        except Exception as fault:  # told by the thread that waits
            faults.append(fault)
            stop.set()

    with into.open("r+b" if into.exists() else "w+b") as file:
        file.truncate(stored.size)
        # not a pool: Python waits for the threads of pools at exit, whatever they still have to do
        threads = [
            threading.Thread(target=work, args=(file.fileno(),), daemon=True)
            for _ in range(min(STREAMS, -(-stored.size // PART_BYTES)))
        ]
        try:
            for thread in threads:
                thread.start()
            _wait(threads, beat)
        finally:
            stop.set()
            _wait(threads, lambda: None)
        if faults:
            raise faults[0]
        os.fsync(file.fileno())
    os.utime(into, ns=(stored.modified_ns, stored.modified_ns))


def _wait(threads: list[threading.Thread], beat: Beat) -> None:
    for thread in threads:
        while thread.is_alive():
            thread.join(BEAT_S)
            beat()


def _fetch_part(stored: Stored, start: int, descriptor: int, stop: threading.Event) -> None:
    end = min(start + PART_BYTES, stored.size)
    with _asking(stored.path):
        answer = _client().get_object(
            **_named(stored.path), Range=f"bytes={start}-{end - 1}", IfMatch=stored.etag
        )
        with contextlib.closing(answer["Body"]) as body:
            for chunk in body.iter_chunks(CHUNK_BYTES):
                if stop.is_set():
                    return
                os.pwrite(descriptor, chunk, start)
                start += len(chunk)
    if start != end:
        raise SlideAway(f"The slide bucket sent too little of {stored.path}: try again.")


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
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        yield
    except ClientError as error:
        code = str(error.response.get("Error", {}).get("Code", ""))
        if code in ("404", "NoSuchKey"):
            raise Gone(what) from error
        if code in ("412", "PreconditionFailed"):
            _answers.clear()  # they are of what was there before
            raise SlideAway(
                f"{what} changed while it was fetched from the slide bucket: try again."
            ) from error
        raise _away(code) from error
    except BotoCoreError as error:
        raise _away(type(error).__name__) from error


def _away(why: str) -> SlideAway:
    return SlideAway(
        f"The slide bucket did not answer as it should ({why}). Try again in a moment; if that does "
        "not help, ask the operator to look at SLIDES_URL and the keys that go with it."
    )


_answers: OrderedDict[object, tuple[float, Any]] = OrderedDict()
_answers_lock = threading.Lock()


def fresh(question: object, ask: Callable[[], Kept]) -> Kept:
    """The answer to `question`, asked again when it is older than FRESH_S."""
    if (known := _known(question)) is not None:
        return known
    asked = ask()
    with _answers_lock:
        _answers[question] = time.monotonic(), asked
        _answers.move_to_end(question)
        while len(_answers) > KEPT:
            _answers.popitem(last=False)
    return asked


def _known(question: object) -> Any:
    with _answers_lock:
        at, answer = _answers.get(question, (0.0, None))
        if answer is None or time.monotonic() - at >= FRESH_S:
            return None
        _answers.move_to_end(question)
        return answer


def forget() -> None:
    """Drop what is remembered: the settings, or the server, are others."""
    _answers.clear()
    _client.cache_clear()
