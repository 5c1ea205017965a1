"""Rectangles of the model plane: run squares, blocks, and the windows the network is given. Pure.

The grid is anchored at the slide's origin and everything sits on multiples of 8, because the
network pools three times: a window off that grid gives other nuclei (INSTANSEG.md §0).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

ALIGN = 8
PAD_TO = 16
"""The plane is padded by reflection, right and bottom, to a multiple of this, as InstanSeg does."""

HALO = 96
"""Plane pixels round a window's core beyond which the network cannot see: with it logits are exact."""

CONTEXT = 160
"""Plane pixels of logits that a block needs round its seeds: 64 to a partner, 64 to that one's
competitors, 32 for their windows."""

SQUARE = 128
"""Side of a run square: the grain in which background is left out."""

BLOCK = 1024
"""Side of a block: the unit of post-processing; the same whatever size of tile the network gets."""

STRIP_BLOCKS = 8
"""Blocks side by side in a strip. Strips bound how many logits wait for a neighbour."""


class Rect(NamedTuple):
    """A rectangle of plane pixels."""

    x: int
    y: int
    width: int
    height: int

    @property
    def right(self) -> int:
        return self.x + self.width

    @property
    def bottom(self) -> int:
        return self.y + self.height

    def grown(self, by: int) -> Rect:
        """The rectangle with `by` pixels more on every side."""
        return Rect(self.x - by, self.y - by, self.width + 2 * by, self.height + 2 * by)

    def clipped(self, other: Rect) -> Rect:
        """The part inside `other`; width or height 0 where there is none."""
        x, y = max(self.x, other.x), max(self.y, other.y)
        right, bottom = min(self.right, other.right), min(self.bottom, other.bottom)
        return Rect(x, y, max(0, right - x), max(0, bottom - y))

    def slices(self, origin: Rect) -> tuple[slice, slice]:
        """(rows, cols) of this rectangle in an array whose first pixel is `origin`'s."""
        return (
            slice(self.y - origin.y, self.bottom - origin.y),
            slice(self.x - origin.x, self.right - origin.x),
        )


@dataclass(frozen=True)
class Window:
    """One call of the network. `area` is what it reads, `keep` the part whose logits are exact."""

    index: tuple[int, int]
    area: Rect
    keep: Rect


class Grid:
    """What runs on a plane of `width` × `height` pixels, with network tiles of `tile` pixels.

    squares   (rows, cols) of SQUARE-sized cells; True is computed, the rest is background
    whole     every window has the size of a tile, as a GPU wants it; else each is cut down to what
              is needed of it
    block     side of a block; of no influence on the cells, and the same in every job
    halo, context   as HALO and CONTEXT, of the model that runs
    """

    def __init__(
        self,
        width: int,
        height: int,
        *,
        tile: int,
        squares: NDArray[np.bool_],
        whole: bool = False,
        block: int = BLOCK,
        halo: int = HALO,
        context: int = CONTEXT,
    ) -> None:
        if tile % ALIGN or tile < 2 * halo + 64:
            raise ValueError(f"tile is {tile}: a multiple of {ALIGN}, at least {2 * halo + 64}")
        self.plane = Rect(0, 0, width, height)
        self.padded = Rect(0, 0, _up(width, PAD_TO), _up(height, PAD_TO))
        self.tile = tile
        self.halo, self.context = halo, context
        self.core = tile - 2 * halo
        self.whole = whole
        self.block = block
        self.squares = squares
        self._windows: dict[tuple[int, int], Window | None] = {}

    def rows(self) -> list[list[Rect]]:
        """Blocks that run, in the order they are computed: row by row down each strip."""
        side, across = self.block, STRIP_BLOCKS * self.block
        found = []
        for left in range(0, self.plane.width, across):
            columns = range(left, min(left + across, self.plane.width), side)
            for y in range(0, self.plane.height, side):
                row = [Rect(x, y, side, side).clipped(self.plane) for x in columns]
                found.append([block for block in row if self.runs(block).any()])
        return [row for row in found if row]

    def key(self, block: Rect) -> tuple[int, int]:
        """Row and column of a block in the grid."""
        return block.y // self.block, block.x // self.block

    def strip(self, block: Rect) -> int:
        """The number of the strip that a block lies in."""
        return block.x // (STRIP_BLOCKS * self.block)

    def runs(self, area: Rect) -> NDArray[np.bool_]:
        """The run squares that `area` touches."""
        return self.squares[
            max(0, area.y) // SQUARE : _up(max(0, area.bottom), SQUARE) // SQUARE,
            max(0, area.x) // SQUARE : _up(max(0, area.right), SQUARE) // SQUARE,
        ]

    def run_pixels(self) -> int:
        """Plane pixels that run squares cover."""
        squares = np.argwhere(self.squares) * SQUARE
        sides = np.minimum(squares + SQUARE, [self.plane.height, self.plane.width]) - squares
        return int(sides.prod(axis=1).sum())

    def region(self, block: Rect, context: int = 0) -> Rect:
        """The plane pixels whose logits decide the cells of `block`, in the usual context or more."""
        return block.grown(max(context, self.context)).clipped(self.plane)

    def windows(self, block: Rect) -> list[Window]:
        """The windows that cover what `block` needs; the same window for whoever asks."""
        region = self.region(block)
        found = []
        for row in range(region.y // self.core, _up(region.bottom, self.core) // self.core):
            for col in range(region.x // self.core, _up(region.right, self.core) // self.core):
                window = self.window(row, col)
                if window is not None and _touch(window.keep, region):
                    found.append(window)
        return found

    def window(self, row: int, col: int) -> Window | None:
        """The window of one tile; None where neither run squares nor their context need it."""
        if (row, col) not in self._windows:
            self._windows[row, col] = self._window(row, col)
        return self._windows[row, col]

    def _window(self, row: int, col: int) -> Window | None:
        tile = Rect(col * self.core, row * self.core, self.core, self.core).clipped(self.plane)
        needed = self._needed(tile)
        if needed is None:
            return None
        if self.whole:
            return Window((row, col), self._whole_area(tile), tile)
        x, width = _span(needed.x, needed.right, self.padded.width, self.halo)
        y, height = _span(needed.y, needed.bottom, self.padded.height, self.halo)
        return Window((row, col), Rect(x, y, width, height), needed)

    def _whole_area(self, tile: Rect) -> Rect:
        """A tile's full square round a core, pushed inward at the edges of the padded plane."""
        width, height = min(self.tile, self.padded.width), min(self.tile, self.padded.height)
        x = max(0, min(tile.x - self.halo, self.padded.width - width))
        y = max(0, min(tile.y - self.halo, self.padded.height - height))
        return Rect(x, y, width, height)

    def _needed(self, tile: Rect) -> Rect | None:
        near = self.runs(tile.grown(self.context))
        rows, cols = np.nonzero(near)
        if not len(rows):
            return None
        origin_y = max(0, tile.y - self.context) // SQUARE * SQUARE
        origin_x = max(0, tile.x - self.context) // SQUARE * SQUARE
        bounding = Rect(
            origin_x + int(cols.min()) * SQUARE,
            origin_y + int(rows.min()) * SQUARE,
            int(cols.max() - cols.min() + 1) * SQUARE,
            int(rows.max() - rows.min() + 1) * SQUARE,
        )
        return bounding.grown(self.context).clipped(tile)


def run_squares(width: int, height: int) -> NDArray[np.bool_]:
    """Squares of a plane on which everything is computed."""
    return np.ones((_up(height, SQUARE) // SQUARE, _up(width, SQUARE) // SQUARE), np.bool_)


def squares_of_mask(
    mask: NDArray[np.bool_], scale: tuple[float, float], width: int, height: int
) -> NDArray[np.bool_]:
    """The run squares touched by a mask of which one pixel is `scale` (x, y) plane pixels."""
    squares = np.zeros_like(run_squares(width, height))
    rows, cols = np.nonzero(mask)
    last_row, last_col = squares.shape[0] - 1, squares.shape[1] - 1
    for dy in (0.0, 1.0 - 1e-6):
        for dx in (0.0, 1.0 - 1e-6):
            row = ((rows + dy) * scale[1] / SQUARE).astype(np.intp)
            col = ((cols + dx) * scale[0] / SQUARE).astype(np.intp)
            squares[np.minimum(row, last_row), np.minimum(col, last_col)] = True
    return squares


def _span(low: int, high: int, limit: int, halo: int) -> tuple[int, int]:
    """Start and length of a window's side: halo, on the grid, and in steps of 64 where there is
    room, so that few shapes occur (each new one costs the CPU kernels a compilation)."""
    start, stop = max(0, low - halo), min(limit, _up(high + halo, ALIGN))
    missing = -(stop - start) % 64
    wider = min(limit, stop + missing)
    start = max(0, start - (missing - (wider - stop)))
    return start, wider - start


def _touch(one: Rect, other: Rect) -> bool:
    both = one.clipped(other)
    return both.width > 0 and both.height > 0


def _up(value: int, step: int) -> int:
    return -(-value // step) * step
