"""The pixels of one TIFF level: which tiles or strips a rectangle needs, decoded one at a time."""

from __future__ import annotations

import os
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jobs.imaging.readers.reader import NotRead, Pixels

Page = Any
Box = tuple[int, int, int, int]
Key = tuple[int, int, int]

CACHE_BYTES = 64 << 20
"""Decoded tiles that a slide keeps."""

LARGEST_TILE = 64 << 20
"""Bytes that one tile or strip may decode to."""

LARGEST_BAND = 256 << 20
"""Bytes of strips kept for rows that are read again and again, part by part across the slide."""

BAND = 1024
"""Rows that one read may ask for."""


class TileCache:
    """Decoded tiles by level, page and index; the least used go first."""

    def __init__(self, levels: Sequence[LevelPages]) -> None:
        self._most = max(CACHE_BYTES, *(one.band_bytes for one in levels))
        self._kept: OrderedDict[Key, Pixels | None] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def get(self, key: Key, make: Callable[[], Pixels | None]) -> Pixels | None:
        """The tile of `key`, made now where it is not kept; None is an empty one."""
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        tile = make()  # two threads may make the same one; neither waits for the other
        with self._lock:
            if key not in self._kept:
                self._kept[key] = tile
                self._bytes += 0 if tile is None else tile.nbytes
            while self._bytes > self._most:
                dropped = self._kept.popitem(last=False)[1]
                self._bytes -= 0 if dropped is None else dropped.nbytes
        return tile


class File:
    """A file that is closed with its last use. It is read by position, by any thread."""

    def __init__(self, path: Path) -> None:
        self._number = os.open(path, os.O_RDONLY)
        self.close = weakref.finalize(self, os.close, self._number)

    def read(self, offset: int, count: int) -> bytes:
        """Up to `count` bytes from `offset`."""
        return os.pread(self._number, count, offset)


@dataclass(frozen=True)
class Segments:
    """Where the bytes of a level come from."""

    read: Callable[[int, int], bytes]
    cache: TileCache
    level: int


class LevelPages:
    """One level: a page of all samples, or a page a channel, cut into equal tiles or strips."""

    def __init__(self, pages: list[Page], rgb: bool) -> None:
        key = pages[0].keyframe
        self.width, self.height = int(key.imagewidth), int(key.imagelength)
        self.dtype: np.dtype[Any] = np.dtype(key.dtype).newbyteorder("=")
        self.tile_h, self.tile_w = (int(side) for side in key.chunks[:2])
        self._across = -(-self.width // self.tile_w)
        self._down = -(-self.height // self.tile_h)
        self._rgb = rgb
        self._apart = key.planarconfig == 2 and key.samplesperpixel > 1
        self.samples = 1 if self._apart else int(key.samplesperpixel)
        self._stored = len(pages) * int(key.samplesperpixel)
        self.channels = 3 if rgb else self._stored
        self.strips = not key.is_tiled
        self._decode = key.decode
        self._places = [(page.dataoffsets, page.databytecounts) for page in pages]
        self._tables = [page.jpegtables for page in pages]
        self._raw = bool(key.is_final) and self.strips and not self._apart
        self._raw_dtype = np.dtype(key.parent.byteorder + self.dtype.char)

    @property
    def tile_bytes(self) -> int:
        """What one tile or strip takes when it is decoded."""
        return self.tile_h * self.tile_w * self.samples * self.dtype.itemsize

    @property
    def band_bytes(self) -> int:
        """What the strips of one read take; they lie across the whole width."""
        if not self.strips or self._raw:
            return 0
        rows = min(self.height, -(-BAND // self.tile_h) * self.tile_h + self.tile_h)
        return rows * self.width * self._stored * self.dtype.itemsize

    @property
    def in_parts(self) -> bool:
        """True where a small rectangle can be read without unpacking much more than it."""
        return self._raw or (self.tile_bytes <= LARGEST_TILE and self.band_bytes <= LARGEST_BAND)

    def beyond(self, size: int) -> bool:
        """True where a tile's bytes are missing, or lie behind the end of a file of `size` bytes."""
        needed = self._across * self._down * (self._stored if self._apart else 1)
        return any(
            (len(offsets) < needed and not self._raw)
            or any(at + n > size for at, n in zip(offsets, counts, strict=False) if n)
            for offsets, counts in self._places
        )

    def read(self, box: Box, segments: Segments) -> Pixels:
        """(rows, cols, channels) of a box (x, y, width, height); empty beyond the level."""
        x, y, width, height = box
        out = np.full((height, width, self._stored), 255 if self._rgb else 0, self.dtype)
        x0, y0 = max(0, x), max(0, y)
        x1, y1 = min(self.width, x + width), min(self.height, y + height)
        if x1 <= x0 or y1 <= y0:
            return self._shown(out)
        part = out[y0 - y : y1 - y, x0 - x : x1 - x]
        try:
            if self._raw:
                self._read_rows(part, (x0, y0), segments)
            else:
                self._read_tiles(part, (x0, y0), segments)
        except Exception as error:  # damaged tiles make their decoders fail in any way
            raise NotRead(str(error) or type(error).__name__) from error
        return self._shown(out)

    def _read_tiles(self, out: Pixels, corner: tuple[int, int], segments: Segments) -> None:
        x, y = corner
        height, width = out.shape[:2]
        for plane in range(self._stored // self.samples):
            into = out[..., plane * self.samples : (plane + 1) * self.samples]
            for row, col in self._touched(x, y, width, height):
                tile = self._tile(plane, row * self._across + col, segments)
                if tile is None:
                    continue
                left, top = col * self.tile_w, row * self.tile_h
                x0, x1 = max(left, x), min(left + tile.shape[1], x + width)
                y0, y1 = max(top, y), min(top + tile.shape[0], y + height)
                into[y0 - y : y1 - y, x0 - x : x1 - x] = tile[
                    y0 - top : y1 - top, x0 - left : x1 - left
                ]

    def _touched(self, x: int, y: int, width: int, height: int) -> Iterator[tuple[int, int]]:
        for row in range(y // self.tile_h, (y + height - 1) // self.tile_h + 1):
            for col in range(x // self.tile_w, (x + width - 1) // self.tile_w + 1):
                yield row, col

    def _tile(self, plane: int, index: int, segments: Segments) -> Pixels | None:
        page = 0 if self._apart else plane
        index += plane * self._across * self._down if self._apart else 0
        offsets, counts = self._places[page]
        if not counts[index]:
            return None

        def decoded() -> Pixels | None:
            return self.unpacked(segments.read(offsets[index], counts[index]), page, index)

        return segments.cache.get((segments.level, page, index), decoded)

    def unpacked(self, data: bytes, page: int, index: int) -> Pixels | None:
        """(rows, cols, samples) of a tile or strip, or None for an empty one. Raises anything."""
        tile = self._decode(data, index, jpegtables=self._tables[page])[0]
        return None if tile is None else tile[0]

    def _read_rows(self, out: Pixels, corner: tuple[int, int], segments: Segments) -> None:
        """Pixels that lie in the file as they are, row by row, whatever strips they are in."""
        x, y = corner
        pixel = self.samples * self.dtype.itemsize
        for plane in range(self._stored // self.samples):
            start = self._places[plane][0][0]
            for row in range(out.shape[0]):
                at = start + ((y + row) * self.width + x) * pixel
                data = segments.read(at, out.shape[1] * pixel)
                values = np.frombuffer(data, self._raw_dtype).reshape(-1, self.samples)
                out[row, :, plane * self.samples : (plane + 1) * self.samples] = values

    def _shown(self, pixels: Pixels) -> Pixels:
        return _on_white(pixels) if self._rgb and self._stored == 4 else pixels


def unreadable_in_parts(levels: Sequence[LevelPages]) -> str:
    """Why a level could only be read as a whole, or nothing."""
    for one in levels:
        if not one.in_parts:
            what = "strips as wide as the image" if one.strips else "tiles"
            return (
                f"is stored in {what} of {one.tile_w} × {one.tile_h} pixels, so that no small part "
                f"of its {one.width} × {one.height} pixels can be read without unpacking far more: "
                "export it as a tiled pyramidal TIFF."
            )
    return ""


def _on_white(rgba: NDArray[np.uint8]) -> NDArray[np.uint8]:
    weight = rgba[..., 3:].astype(np.uint16)
    mixed = (rgba[..., :3] * weight + 255 * (255 - weight) + 127) // 255
    return mixed.astype(np.uint8)
