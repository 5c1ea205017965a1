"""A file of many small pieces with an index, so that one piece costs one ranged read.

Layout, little-endian: `LABPACK1`, the pieces, the index (ENTRY each, sorted by key), facts as JSON,
and a foot of 32 bytes: where the index begins, how many entries, how long the facts are, `LABPACK1`.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

import numpy as np
from numpy.typing import NDArray

from jobs.imaging.contract import BadInput

MAGIC = b"LABPACK1"
FOOT = struct.Struct("<QQQ8s")
ENTRY = np.dtype(
    [
        ("key", "<i4", 3),
        ("cells", "<u4"),
        ("offset", "<u8"),
        ("length", "<u8"),
        ("box", "<f4", 4),
    ]
)
"""`box` is x0, y0, x1, y1 in level-0 pixels round what the piece shows."""

Key = tuple[int, int, int]
Box = tuple[float, float, float, float]


class Packer:
    """Writes pieces one after the other; `close` ends the file with the index."""

    def __init__(self, path: Path) -> None:
        self._stream = path.open("wb")
        self._stream.write(MAGIC)
        self._entries: list[tuple[Key, int, int, int, Box]] = []

    def add(self, key: Key, piece: bytes, *, box: Box, cells: int = 0) -> None:
        """Append a piece that shows `cells` cells, where that is counted."""
        self._entries.append((key, cells, self._stream.tell(), len(piece), box))
        self._stream.write(piece)

    def close(self, facts: Mapping[str, Any]) -> None:
        """Write index and facts."""
        index = np.array(sorted(self._entries), ENTRY)
        told = json.dumps(facts, sort_keys=True).encode()
        at = self._stream.tell()
        self._stream.write(index.tobytes() + told + FOOT.pack(at, len(index), len(told), MAGIC))
        self._stream.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self._stream.close()


class Pack:
    """An opened file of pieces: its index is read once, pieces by `read`.

    stream   anything with `seek` and `read`; three reads to open, one a piece
    """

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        size = stream.seek(0, 2)
        at, count, length, magic = self._foot(size)
        if magic != MAGIC or at + count * ENTRY.itemsize + length + FOOT.size != size:
            raise BadInput("This is not a whole chunk or overlay file: run the job once more.")
        stream.seek(at)
        self.index: NDArray[np.void] = np.frombuffer(stream.read(count * ENTRY.itemsize), ENTRY)
        self.facts: dict[str, Any] = json.loads(stream.read(length))
        self._rows = {tuple(key): row for row, key in enumerate(self.index["key"].tolist())}

    def __contains__(self, key: Key) -> bool:
        return key in self._rows

    def place(self, key: Key) -> tuple[int, int]:
        """Offset and length of a piece in the file. Raises KeyError where there is none."""
        entry = self.index[self._rows[key]]
        return int(entry["offset"]), int(entry["length"])

    def read(self, key: Key) -> bytes:
        """A piece as it was added. Raises KeyError where there is none."""
        offset, length = self.place(key)
        self._stream.seek(offset)
        return self._stream.read(length)

    def _foot(self, size: int) -> tuple[int, int, int, bytes]:
        if size < FOOT.size:
            return 0, 0, 0, b""
        self._stream.seek(size - FOOT.size)
        at, count, length, magic = FOOT.unpack(self._stream.read(FOOT.size))
        return at, count, length, magic
