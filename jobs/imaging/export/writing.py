"""What every export shares: writers that take one block of cells at a time."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import orjson

from jobs.imaging.cells import Cells


class Writer(Protocol):
    """A file being written; `add` gets the blocks in grid order, `close` completes it."""

    path: Path

    def add(self, cells: Cells, ids: list[str], first: int) -> None: ...

    def close(self) -> None: ...


class Separated:
    """Puts `separator` between items, not before the first."""

    def __init__(self, separator: bytes) -> None:
        self._separator = separator
        self._pending = b""

    def before_next(self) -> bytes:
        pending, self._pending = self._pending, self._separator
        return pending


def encoded(value: Any) -> bytes:
    """Compact JSON; whole numbers lose their `.0` nowhere, so that types stay the same per field."""
    return orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY)


def numbered(cells: Cells, ids: list[str], first: int) -> Iterator[tuple[int, int, str]]:
    """(index in the block, rank in the slide, object id) of each nucleus."""
    for index in range(len(cells)):
        yield index, first + index, ids[index]
