"""Where finished blocks are kept, so that what was computed once is not computed again (DESIGN I6).

A plan, under a name, is what decides the cells of a slide; its blocks are finished one by one, by
whoever runs it. The worker keeps them where every worker sees them; here they are kept in a folder.
"""

from __future__ import annotations

import json
import os
import tempfile
import threading
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

Key = tuple[int, int]
"""Row and column of a block in the grid of blocks."""


@dataclass(frozen=True)
class BlockFacts:
    """What is told of a finished block without opening it.

    cells         how many objects it owns
    gaps          how many rectangles of it could not be read
    box_l0        x0, y0, x1, y1 round its objects; None without any
    fingerprint   what computed it: blocks of one fingerprint are equal to the last bit
    """

    cells: int
    gaps: int
    box_l0: tuple[float, float, float, float] | None
    fingerprint: str


class BlockStore(Protocol):
    """Keeps plans and blocks. All four may be called by several workers at once."""

    def plan(self, name: str, make: Callable[[], bytes]) -> bytes:
        """The plan kept under `name`; where there is none, that of `make`, kept from now on."""

    def finished(self, name: str) -> Mapping[Key, BlockFacts]:
        """The blocks that need not be computed, looked up now. One with gaps is among them only
        while the attempt that found the gaps goes on."""

    def put(self, name: str, key: Key, content: bytes, facts: BlockFacts) -> None:
        """Keep a block. The first one stays, unless it had gaps."""

    def get(self, name: str, key: Key) -> bytes:
        """The content of a finished block."""


class FolderStore:
    """Blocks in a folder of their own: `<name>/<row>_<col>.block`, facts beside them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._known: dict[tuple[str, Key], BlockFacts] = {}
        self._lock = threading.Lock()

    def plan(self, name: str, make: Callable[[], bytes]) -> bytes:
        path = self.folder / name / "plan"
        if not path.exists():
            _write(path, make())
        return path.read_bytes()

    def finished(self, name: str) -> Mapping[Key, BlockFacts]:
        with self._lock:
            for path in (self.folder / name).glob("*_*.json"):
                if (name, _key(path)) not in self._known and not (facts := _facts(path)).gaps:
                    self._known[name, _key(path)] = facts
            return {key: facts for (of, key), facts in self._known.items() if of == name}

    def put(self, name: str, key: Key, content: bytes, facts: BlockFacts) -> None:
        known = self._path(name, key, "json")
        if not known.exists() or _facts(known).gaps:
            _write(self._path(name, key, "block"), content)
            _write(known, json.dumps(asdict(facts)).encode())  # last: from here on it is finished
        with self._lock:
            self._known[name, key] = facts

    def get(self, name: str, key: Key) -> bytes:
        return self._path(name, key, "block").read_bytes()

    def _path(self, name: str, key: Key, suffix: str) -> Path:
        return self.folder / name / f"{key[0]}_{key[1]}.{suffix}"


def _facts(path: Path) -> BlockFacts:
    told = json.loads(path.read_bytes())
    box = told.pop("box_l0")
    return BlockFacts(box_l0=tuple(box) if box else None, **told)


def _key(path: Path) -> Key:
    row, col = path.stem.split("_")
    return int(row), int(col)


def _write(path: Path, content: bytes) -> None:
    """Write `path` so that it is there as a whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(content)
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise
