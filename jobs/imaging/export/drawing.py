"""Draws outlines from `places` on small canvases: lines, dots and filled labels."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from jobs.imaging.compiled import compiled
from jobs.imaging.export.places import CELL, Shapes

FAR = 1 << 60


def draw_lines(
    canvas: NDArray[np.uint8],
    shapes: Shapes,
    *,
    corner: tuple[float, float],
    downsample: float,
    value: int,
) -> None:
    """Draw every outline, one pixel wide.

    corner   x, y in level-0 pixels of the canvas's own
    """
    heads = shapes.heads
    _lines(
        canvas,
        heads["x"],
        heads["y"],
        heads["corners"],
        heads["reach"],
        shapes.steps,
        np.array(corner, np.float64),
        1 / downsample,
        np.uint8(value),
    )


def draw_dots(
    canvas: NDArray[np.float32],
    heads: NDArray[np.void],
    *,
    corner: tuple[float, float],
    downsample: float,
) -> None:
    """Add each cell's area, in pixels of the canvas, to the pixel of its centroid."""
    cells = heads[heads["kind"] == CELL]
    _dots(
        canvas,
        cells["x"],
        cells["y"],
        cells["area"],
        np.array(corner, np.float64),
        1 / downsample,
    )


def fill_labels(
    canvas: NDArray[np.uint32],
    areas: NDArray[np.float32],
    shapes: Shapes,
    *,
    kind: int,
    corner: tuple[int, int],
    scale: tuple[float, float],
    stride: int,
) -> None:
    """Fill the pixels of each outline of `kind` with its cell's id; of two cells the smaller stays.

    areas    of the cell at every pixel of the canvas; kept with it
    corner   x, y on the plane of the canvas's own, in canvas pixels
    scale    level-0 pixels a plane pixel
    stride   plane pixels a canvas pixel, a power of two; the one right below its middle is shown
    """
    heads = shapes.heads
    _fill(
        canvas,
        areas,
        heads["id"],
        heads["x"],
        heads["y"],
        heads["area"],
        heads["corners"],
        heads["reach"],
        heads["kind"] == kind,
        shapes.steps,
        np.array(corner, np.int64),
        np.array(scale, np.float64),
        stride.bit_length() - 1,
    )


@compiled
def _start(x: float, y: float) -> tuple[int, int]:
    """The centre of an outline in whole quarters, where its steps begin."""
    return math.floor(4 * np.float64(x) + 0.5), math.floor(4 * np.float64(y) + 0.5)


@compiled
def _near(x: float, low: float, high: float, reach: int) -> bool:
    """True where what reaches so far from x to both sides comes between low and high."""
    return low - reach <= x <= high + reach


@compiled
def _line(canvas: NDArray[np.uint8], x0: int, y0: int, x1: int, y1: int, value: np.uint8) -> None:
    """Bresenham's line, as far as it lies on the canvas."""
    height, width = canvas.shape
    across, down = abs(x1 - x0), -abs(y1 - y0)
    step_x, step_y = (1 if x0 < x1 else -1), (1 if y0 < y1 else -1)
    error = across + down
    while True:
        if 0 <= x0 < width and 0 <= y0 < height:
            canvas[y0, x0] = value
        if x0 == x1 and y0 == y1:
            return
        doubled = 2 * error
        if doubled >= down:
            error, x0 = error + down, x0 + step_x
        if doubled <= across:
            error, y0 = error + across, y0 + step_y


@compiled
def _lines(
    canvas: NDArray[np.uint8],
    xs: NDArray[np.float32],
    ys: NDArray[np.float32],
    counts: NDArray[np.uint16],
    reaches: NDArray[np.uint16],
    steps: NDArray[np.int16],
    corner: NDArray[np.float64],
    factor: float,
    value: np.uint8,
) -> None:
    at, end = 0, 0
    right, bottom = corner[0] + canvas.shape[1] / factor, corner[1] + canvas.shape[0] / factor
    for i in range(len(xs)):
        at, end = end, end + int(counts[i])
        if not _near(xs[i], corner[0], right, reaches[i]):
            continue
        if not _near(ys[i], corner[1], bottom, reaches[i]):
            continue
        x, y = _start(xs[i], ys[i])
        first_x, first_y, last_x, last_y = 0, 0, 0, 0
        for k in range(counts[i]):
            x, y = x + int(steps[at, 0]), y + int(steps[at, 1])
            at += 1
            column = math.floor((x / 4 - corner[0]) * factor)
            row = math.floor((y / 4 - corner[1]) * factor)
            if k == 0:
                first_x, first_y = column, row
            else:
                _line(canvas, last_x, last_y, column, row, value)
            last_x, last_y = column, row
        _line(canvas, last_x, last_y, first_x, first_y, value)


@compiled
def _dots(
    canvas: NDArray[np.float32],
    xs: NDArray[np.float32],
    ys: NDArray[np.float32],
    areas: NDArray[np.float32],
    corner: NDArray[np.float64],
    factor: float,
) -> None:
    height, width = canvas.shape
    for i in range(len(xs)):
        column = math.floor((xs[i] - corner[0]) * factor)
        row = math.floor((ys[i] - corner[1]) * factor)
        if 0 <= column < width and 0 <= row < height:
            canvas[row, column] += areas[i] * factor * factor


@compiled
def _cross(
    marks: NDArray[np.uint8], ax: int, ay: int, bx: int, by: int, shift: int, half: int
) -> None:
    """Turn over the mark of each row at the first pixel whose middle is right of the side a-b.

    a, b    corners in plane pixels, from the corner of `marks`
    shift   a pixel of `marks` is 2**shift plane pixels wide and shows the plane pixel at `half`
    """
    if ay == by:
        return
    if ay > by:
        ax, ay, bx, by = bx, by, ax, ay
    up = (1 << shift) - 1 - half
    top, bottom = max(0, (ay + up) >> shift), min(marks.shape[0], (by + up) >> shift)
    column = max(0, (ax + up) >> shift)
    for row in range(top, bottom):
        if ax != bx:
            middle = (row << shift) + half + 0.5
            x = ax + (middle - ay) * (bx - ax) / (by - ay)
            column = max(0, math.ceil((x - half - 0.5) / (1 << shift)))
        if column < marks.shape[1]:
            marks[row, column] ^= 1


@compiled
def _fill(  # noqa: C901 -- machine code: one loop nest
    canvas: NDArray[np.uint32],
    canvas_areas: NDArray[np.float32],
    ids: NDArray[np.uint32],
    xs: NDArray[np.float32],
    ys: NDArray[np.float32],
    areas: NDArray[np.float32],
    counts: NDArray[np.uint16],
    reaches: NDArray[np.uint16],
    wanted: NDArray[np.bool_],
    steps: NDArray[np.int16],
    corner: NDArray[np.int64],
    scale: NDArray[np.float64],
    shift: int,
) -> None:
    height, width = canvas.shape
    stride, half = 1 << shift, (1 << shift) // 2
    x0, y0 = corner[0] * stride * scale[0], corner[1] * stride * scale[1]
    x1, y1 = x0 + width * stride * scale[0], y0 + height * stride * scale[1]
    per_x, per_y = 1 / (4 * scale[0]), 1 / (4 * scale[1])
    end = 0
    for i in range(len(ids)):
        count = int(counts[i])
        first, end = end, end + count
        if not (wanted[i] and _near(xs[i], x0, x1, reaches[i])):
            continue
        if not _near(ys[i], y0, y1, reaches[i]):
            continue
        ring = np.empty((count, 2), np.int64)
        x, y = _start(xs[i], ys[i])
        left, top, right, bottom = FAR, FAR, -FAR, -FAR
        for k in range(count):
            x, y = x + int(steps[first + k, 0]), y + int(steps[first + k, 1])
            column, row = int(np.rint(x * per_x)), int(np.rint(y * per_y))
            ring[k, 0], ring[k, 1] = column, row
            left, right = min(left, column), max(right, column)
            top, bottom = min(top, row), max(bottom, row)
        left = max(0, (left >> shift) - corner[0])
        top = max(0, (top >> shift) - corner[1])
        right = min(width, (right >> shift) + 1 - corner[0])
        bottom = min(height, (bottom >> shift) + 1 - corner[1])
        if left >= right or top >= bottom:
            continue
        marks = np.zeros((bottom - top, right - left), np.uint8)
        off_x, off_y = (left + corner[0]) << shift, (top + corner[1]) << shift
        ax, ay = ring[count - 1, 0] - off_x, ring[count - 1, 1] - off_y
        for k in range(count):
            bx, by = ring[k, 0] - off_x, ring[k, 1] - off_y
            _cross(marks, ax, ay, bx, by, shift, half)
            ax, ay = bx, by
        for row in range(bottom - top):
            inside = np.uint8(0)
            for column in range(right - left):
                inside ^= marks[row, column]
                if not inside:
                    continue
                there = canvas[top + row, left + column]
                known = canvas_areas[top + row, left + column]
                if there == 0 or areas[i] < known or (areas[i] == known and ids[i] < there):
                    canvas[top + row, left + column] = ids[i]
                    canvas_areas[top + row, left + column] = areas[i]
