"""`overlay.bin`: transparent PNG tiles of the outlines for the coarse levels of the deep zoom.

Tiles lie as those of the slide do: Deep Zoom's levels, 254 pixels with one of overlap, over what the
viewer shows (the slide's bounds where it has them). From DOWNSAMPLE on; finer ones the viewer draws
itself, from `chunks.bin`. Tiles without a cell are not in the file.

Where a cell is three pixels wide its outline is drawn. Where it is less, a pixel shows how much of it
is covered by the cells whose centroid it holds: every cell counts, and none is ever left out.
"""

from __future__ import annotations

import math
import struct
import zlib
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from isal import isal_zlib
from numpy.typing import NDArray

from jobs.imaging.ahead import in_order
from jobs.imaging.export.drawing import draw_dots, draw_lines
from jobs.imaging.export.frame import Frame
from jobs.imaging.export.pack import Box, Key, Pack, Packer
from jobs.imaging.export.places import Places
from jobs.imaging.export.writing import LEVEL, Step

TILE, OVERLAP = 254, 1
"""Those of the slide's own tiles (jobs/slides/deepzoom.py)."""

DOWNSAMPLE = 4
TILES = 8
"""Tiles along the side of a canvas, which are drawn together."""

OUTLINE_FROM_PX = 3.0
COLOUR = (255, 0, 0)
STRONGEST, FAINTEST = 15, 4
"""Palette entries: the index is the opacity, in fifteenths."""


@dataclass(frozen=True)
class Level:
    """One level of the pyramid: its number in the deep zoom, its size, how cells show on it."""

    number: int
    downsample: int
    width: int
    height: int
    outlines: bool

    @property
    def grid(self) -> tuple[int, int]:
        """Columns and rows of tiles."""
        return math.ceil(self.width / TILE), math.ceil(self.height / TILE)


@dataclass(frozen=True)
class _Tile:
    key: Key
    content: bytes
    box: Box


class Overlay:
    """The tiles of a slide, written at once when every outline is in its place."""

    def __init__(self, path: Path, places: Places, frame: Frame) -> None:
        self._path, self._places, self._frame = path, places, frame

    @property
    def steps(self) -> int:
        """How often `write` calls `step`."""
        return len(self._canvases())

    def write(self, pool: Executor, step: Step) -> None:
        """Write the file."""
        draw = partial(_drawn, self._places, self._frame)
        with Packer(self._path) as packer:
            for tiles in in_order(pool, draw, self._canvases(), ahead=3):
                for tile in tiles:
                    packer.add(tile.key, tile.content, box=tile.box)
                step()
            packer.close(self._facts())

    def _canvases(self) -> list[tuple[Level, tuple[int, int]]]:
        return [
            (level, (column, row))
            for level in levels_of(self._frame, self._places)
            for row in range(0, level.grid[1], TILES)
            for column in range(0, level.grid[0], TILES)
        ]

    def _facts(self) -> dict[str, Any]:
        return {
            "tile": TILE,
            "overlap": OVERLAP,
            "colour": COLOUR,
            "frame": self._frame.shown,
            "levels": [
                {"level": one.number, "downsample": one.downsample, "outlines": one.outlines}
                for one in levels_of(self._frame, self._places)
            ],
        }


def read_tile(stream: BinaryIO, level: int, column: int, row: int) -> bytes | None:
    """A tile as PNG; None where no cell shows. For many tiles of one file keep a `Pack`."""
    pack, key = Pack(stream), (level, column, row)
    return pack.read(key) if key in pack else None


def levels_of(frame: Frame, places: Places) -> list[Level]:
    """The levels that are drawn, the finest first."""
    _, _, width, height = frame.shown
    finest = (max(width, height) - 1).bit_length()
    diameter = 2 * math.sqrt(places.area / max(1, places.cells) / math.pi)
    levels = []
    for number in range(finest, -1, -1):
        downsample = 2 ** (finest - number)
        if downsample >= DOWNSAMPLE:
            size = math.ceil(width / downsample), math.ceil(height / downsample)
            outlines = diameter / downsample >= OUTLINE_FROM_PX
            levels.append(Level(number, downsample, *size, outlines))
    return levels


def _drawn(places: Places, frame: Frame, canvas: tuple[Level, tuple[int, int]]) -> list[_Tile]:
    """The tiles of one canvas that show a cell."""
    level, (column, row) = canvas
    left, top = _begin(column), _begin(row)
    right = min(level.width, (column + TILES) * TILE + OVERLAP)
    bottom = min(level.height, (row + TILES) * TILE + OVERLAP)
    x, y = frame.origin
    box = (
        x + left * level.downsample,
        y + top * level.downsample,
        x + right * level.downsample,
        y + bottom * level.downsample,
    )
    squares = places.touching(box)
    if not squares:
        return []
    show = _outlines if level.outlines else _density
    pixels = show(places, squares, box, level.downsample, (bottom - top, right - left))
    columns = range(column, min(column + TILES, level.grid[0]))
    rows = range(row, min(row + TILES, level.grid[1]))
    tiles = (_cut(pixels, level, at, (left, top), frame) for at in product(columns, rows))
    return [tile for tile in tiles if tile is not None]


def _outlines(
    places: Places,
    squares: list[tuple[int, int]],
    box: tuple[int, int, int, int],
    downsample: int,
    shape: tuple[int, int],
) -> NDArray[np.uint8]:
    pixels = np.zeros(shape, np.uint8)
    for square in squares:
        shapes = places.read(square)
        draw_lines(pixels, shapes, corner=box[:2], downsample=downsample, value=STRONGEST)
    return pixels


def _density(
    places: Places,
    squares: list[tuple[int, int]],
    box: tuple[int, int, int, int],
    downsample: int,
    shape: tuple[int, int],
) -> NDArray[np.uint8]:
    covered = np.zeros(shape, np.float32)
    for square in squares:
        draw_dots(covered, places.heads(square), corner=box[:2], downsample=downsample)
    strength = FAINTEST + np.minimum(covered, 1) * (STRONGEST - FAINTEST)
    return np.where(covered > 0, np.rint(strength), 0).astype(np.uint8)


def _begin(tile: int) -> int:
    """The first pixel of a tile along one axis of its level."""
    return tile * TILE - OVERLAP * (tile > 0)


def _cut(
    pixels: NDArray[np.uint8],
    level: Level,
    at: tuple[int, int],
    corner: tuple[int, int],
    frame: Frame,
) -> _Tile | None:
    column, row = at
    left, top = _begin(column), _begin(row)
    right = min(level.width, (column + 1) * TILE + OVERLAP)
    bottom = min(level.height, (row + 1) * TILE + OVERLAP)
    part = pixels[top - corner[1] : bottom - corner[1], left - corner[0] : right - corner[0]]
    if not part.any():
        return None
    x, y = frame.origin
    scale = level.downsample
    box = (x + left * scale, y + top * scale, x + right * scale, y + bottom * scale)
    return _Tile((level.number, column, row), png(part), box)


def png(pixels: NDArray[np.uint8]) -> bytes:
    """A picture of palette entries 0 to 15 as PNG of four bits a pixel (RFC 2083)."""
    height, width = pixels.shape
    even = np.zeros((height, width + width % 2), np.uint8)
    even[:, :width] = pixels
    rows = np.zeros((height, 1 + even.shape[1] // 2), np.uint8)  # each begins with its filter: none
    rows[:, 1:] = even[:, 0::2] << 4 | even[:, 1::2]
    return b"".join(
        [
            b"\x89PNG\r\n\x1a\n",
            _part(b"IHDR", struct.pack(">IIBBBBB", width, height, 4, 3, 0, 0, 0)),
            _part(b"PLTE", bytes(COLOUR) * 16),
            _part(b"tRNS", bytes(17 * index for index in range(16))),
            _part(b"IDAT", isal_zlib.compress(rows.tobytes(), LEVEL)),
            _part(b"IEND", b""),
        ]
    )


def _part(kind: bytes, content: bytes) -> bytes:
    return (
        struct.pack(">I", len(content))
        + kind
        + content
        + struct.pack(">I", zlib.crc32(content, zlib.crc32(kind)))
    )
