"""What every export shares: writers that take one batch of cells at a time."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor
from typing import Any, Protocol

import orjson

from jobs.imaging.export.batch import Batch

LEVEL = 1
"""Of ISA-L's deflate: as small as zlib's level 1, six times as fast, and no time in the header."""

GZIP = 31
"""Window bits that ask for a gzip header."""


class Stream(Protocol):
    """A file being written; `add` gets the batches in grid order, `close` completes it."""

    def add(self, batch: Batch) -> None: ...

    def close(self) -> None: ...


Step = Callable[[], None]
"""Called after every step of a longer work; raises what is to stop it."""


class Picture(Protocol):
    """A file that is written when every outline is in its place."""

    @property
    def steps(self) -> int: ...

    def write(self, pool: Executor, step: Step) -> None: ...


class Unled:
    """Rows that each begin with `separator`: takes it off the first one of the file."""

    def __init__(self, separator: bytes) -> None:
        self._pending = len(separator)

    def unled(self, rows: memoryview) -> memoryview:
        """`rows`, without what the first row of all begins with."""
        cut = min(self._pending, len(rows))
        self._pending -= cut
        return rows[cut:]


def encoded(value: Any) -> bytes:
    """Compact JSON; whole numbers lose their `.0` nowhere, so that types stay the same per field."""
    return orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY)
