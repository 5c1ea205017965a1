"""Outlines of labelled objects along pixel edges: one simple, valid ring each.

Of an object in parts the largest (joined by edges, not corners) is kept, and what it encloses is
filled. Both sides being joined by edges alone, no corner is passed twice: the ring cannot touch itself.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from jobs.imaging.compiled import compiled


@dataclass(frozen=True)
class Outlines:
    """Rings of n objects, corners (x, y) in whole pixels of the label map; not closed.

    corners    (k, 2); ring i is corners[starts[i] : starts[i + 1]]
    area_px    pixels inside
    centroid   (n, 2) x, y
    pixels     (m, 2) y, x of the pixels inside; object i has pixel_starts[i] : pixel_starts[i + 1]
    """

    corners: NDArray[np.int32]
    starts: NDArray[np.int64]
    area_px: NDArray[np.int64]
    centroid: NDArray[np.float64]
    pixels: NDArray[np.int32]
    pixel_starts: NDArray[np.int64]


def outlines(labels: NDArray[np.int32], wanted: NDArray[np.int32]) -> Outlines:
    """Trace the objects of `labels` whose label is in `wanted`, in that order. One that is nowhere
    gets an empty ring and no centroid (nan)."""
    corners, starts, pixels, pixel_starts = _trace(labels, wanted.astype(np.int32))
    area = np.diff(pixel_starts)
    centroid = np.zeros((len(wanted), 2))
    for axis, column in ((0, 1), (1, 0)):
        sums = np.concatenate([[0], np.cumsum(pixels[:, column], dtype=np.int64)])
        with np.errstate(invalid="ignore"):
            centroid[:, axis] = (sums[pixel_starts[1:]] - sums[pixel_starts[:-1]]) / area + 0.5
    return Outlines(corners, starts, area, centroid, pixels, pixel_starts)


def outlines_inside(
    outer: Outlines, labels: NDArray[np.int32], wanted: NDArray[np.int32]
) -> Outlines:
    """Trace the parts of `labels` (nuclei) that lie inside the outlines (of cells) they belong to.

    outer    object i holds label `wanted[i]`; its outline encloses what is returned for it
    """
    wanted = wanted.astype(np.int32)
    inside = np.zeros_like(labels)
    _kept(outer.pixels, outer.pixel_starts, labels, wanted, inside)
    return outlines(inside, wanted)


@dataclass(frozen=True)
class Pixels:
    """Pixels of n objects: (m, 2) y, x; object i has at[starts[i] : starts[i + 1]]."""

    at: NDArray[np.int32]
    starts: NDArray[np.int64]


def cytoplasm(cells: Outlines, nuclei: Outlines, shape: tuple[int, int]) -> Pixels:
    """The pixels of each cell outside its nucleus; `shape` is the label map's."""
    mark = np.zeros(shape, np.int32)
    return Pixels(
        *_outside(cells.pixels, cells.pixel_starts, nuclei.pixels, nuclei.pixel_starts, mark)
    )


def membrane(cells: Outlines, shape: tuple[int, int]) -> Pixels:
    """The pixels of each cell beside (above, below, left, right) one that is not the cell's.
    What lies outside `shape` does not count, as in QuPath."""
    return Pixels(*_rim(cells.pixels, cells.pixel_starts, np.zeros(shape, np.int32)))


def warm() -> None:
    """Compile the tracer, or load it from numba's cache."""
    labels = np.zeros((4, 4), np.int32)
    labels[1:3, 1:3] = 1
    one = np.array([1], np.int32)
    traced = outlines(labels, one)
    cytoplasm(traced, outlines_inside(traced, labels, one), labels.shape)
    membrane(traced, labels.shape)


@compiled
def _kept(
    pixels: NDArray[np.int32],
    starts: NDArray[np.int64],
    labels: NDArray[np.int32],
    wanted: NDArray[np.int32],
    inside: NDArray[np.int32],
) -> None:
    for i in range(len(wanted)):
        for k in range(starts[i], starts[i + 1]):
            y, x = pixels[k, 0], pixels[k, 1]
            if labels[y, x] == wanted[i]:
                inside[y, x] = wanted[i]


@compiled
def _outside(
    pixels: NDArray[np.int32],
    starts: NDArray[np.int64],
    inner: NDArray[np.int32],
    inner_starts: NDArray[np.int64],
    mark: NDArray[np.int32],
) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    at = np.empty_like(pixels)
    found = np.zeros(len(starts), np.int64)
    count = 0
    for i in range(len(starts) - 1):
        for k in range(inner_starts[i], inner_starts[i + 1]):
            mark[inner[k, 0], inner[k, 1]] = i + 1
        for k in range(starts[i], starts[i + 1]):
            y, x = pixels[k, 0], pixels[k, 1]
            if mark[y, x] != i + 1:
                at[count, 0], at[count, 1] = y, x
                count += 1
        found[i + 1] = count
    return at[:count].copy(), found


@compiled
def _rim(
    pixels: NDArray[np.int32], starts: NDArray[np.int64], mark: NDArray[np.int32]
) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    rows, cols = mark.shape
    at = np.empty_like(pixels)
    found = np.zeros(len(starts), np.int64)
    count = 0
    for i in range(len(starts) - 1):
        for k in range(starts[i], starts[i + 1]):
            mark[pixels[k, 0], pixels[k, 1]] = i + 1
        for k in range(starts[i], starts[i + 1]):
            y, x = pixels[k, 0], pixels[k, 1]
            whole = y == 0 or mark[y - 1, x] == i + 1
            whole = whole and (y == rows - 1 or mark[y + 1, x] == i + 1)
            whole = whole and (x == 0 or mark[y, x - 1] == i + 1)
            if not (whole and (x == cols - 1 or mark[y, x + 1] == i + 1)):
                at[count, 0], at[count, 1] = y, x
                count += 1
        found[i + 1] = count
    return at[:count].copy(), found


@compiled
def _boxes(labels: NDArray[np.int32], most: int) -> NDArray[np.int32]:
    rows, cols = labels.shape
    boxes = np.empty((most + 1, 4), np.int32)  # top, left, bottom, right
    boxes[:, 0], boxes[:, 1] = rows, cols
    boxes[:, 2], boxes[:, 3] = 0, 0
    for y in range(rows):
        for x in range(cols):
            label = labels[y, x]
            if 0 < label <= most:
                boxes[label, 0] = min(boxes[label, 0], y)
                boxes[label, 1] = min(boxes[label, 1], x)
                boxes[label, 2] = max(boxes[label, 2], y + 1)
                boxes[label, 3] = max(boxes[label, 3], x + 1)
    return boxes


@compiled
def _flood(
    mask: NDArray[np.uint8],
    y: int,
    x: int,
    old: np.uint8,
    new: np.uint8,
    queue: NDArray[np.int32],
) -> int:
    """Turn the edge-joined area of `old` round (y, x) into `new`; returns its size."""
    height, width = mask.shape
    mask[y, x] = new
    queue[0, 0], queue[0, 1] = y, x
    head, count = 0, 1
    while head < count:
        y, x = queue[head, 0], queue[head, 1]
        head += 1
        for side in range(4):
            ny = y + (side == 0) - (side == 1)
            nx = x + (side == 2) - (side == 3)
            if 0 <= ny < height and 0 <= nx < width and mask[ny, nx] == old:
                mask[ny, nx] = new
                queue[count, 0], queue[count, 1] = ny, nx
                count += 1
    return count


@compiled
def _solid(  # noqa: C901 -- machine code: one loop nest, no calls
    labels: NDArray[np.int32], label: int, box: NDArray[np.int32]
) -> NDArray[np.uint8]:
    """The largest part of an object, filled: 1 inside, 0 outside, with a frame of one pixel."""
    height, width = box[2] - box[0] + 2, box[3] - box[1] + 2
    mask = np.zeros((height, width), np.uint8)
    for y in range(1, height - 1):
        for x in range(1, width - 1):
            mask[y, x] = labels[y + box[0] - 1, x + box[1] - 1] == label
    queue = np.empty((height * width, 2), np.int32)
    largest, start_y, start_x = 0, 0, 0
    for y in range(1, height - 1):
        for x in range(1, width - 1):
            if mask[y, x] == 1:
                size = _flood(mask, y, x, np.uint8(1), np.uint8(2), queue)
                if size > largest:
                    largest, start_y, start_x = size, y, x
    _flood(mask, start_y, start_x, np.uint8(2), np.uint8(3), queue)
    for y in range(height):
        for x in range(width):
            if mask[y, x] != 3:
                mask[y, x] = 0
    _flood(mask, 0, 0, np.uint8(0), np.uint8(4), queue)
    for y in range(height):
        for x in range(width):
            mask[y, x] = mask[y, x] != 4
    return mask


@compiled
def _ring(mask: NDArray[np.uint8], ring: NDArray[np.int32]) -> int:
    """Walk the outer edge with the inside on the right; returns how many corners were written."""
    width = mask.shape[1]
    y, x = 0, 0
    while mask[y, x] == 0:
        x += 1
        if x == width:
            y, x = y + 1, 0
    start_y, start_x = y, x
    dy, dx = 0, 1
    ring[0, 0], ring[0, 1] = x, y
    count = 1
    while True:
        y, x = y + dy, x + dx
        if y == start_y and x == start_x:
            return count
        left = mask[y + (dy - dx - 1) // 2, x + (dx + dy - 1) // 2]
        right = mask[y + (dy + dx - 1) // 2, x + (dx - dy - 1) // 2]
        if left:
            dy, dx = -dx, dy
        elif right:
            continue
        else:
            dy, dx = dx, -dy
        ring[count, 0], ring[count, 1] = x, y
        count += 1


@compiled
def _grown(array: NDArray[np.int32], least: int) -> NDArray[np.int32]:
    longer = np.empty((max(2 * len(array), least), 2), np.int32)
    longer[: len(array)] = array
    return longer


@compiled
def _trace(  # noqa: C901 -- machine code: one loop nest, no calls
    labels: NDArray[np.int32], wanted: NDArray[np.int32]
) -> tuple[NDArray[np.int32], NDArray[np.int64], NDArray[np.int32], NDArray[np.int64]]:
    most = 0
    for label in wanted:
        most = max(most, label)
    boxes = _boxes(labels, most)
    corners = np.empty((4096, 2), np.int32)
    pixels = np.empty((16384, 2), np.int32)
    starts = np.zeros(len(wanted) + 1, np.int64)
    pixel_starts = np.zeros(len(wanted) + 1, np.int64)
    corner, pixel = 0, 0
    for i in range(len(wanted)):
        box = boxes[wanted[i]]
        starts[i + 1], pixel_starts[i + 1] = corner, pixel
        if box[2] == 0:  # the label is nowhere
            continue
        mask = _solid(labels, wanted[i], box)
        if corner + 2 * mask.size + 4 > len(corners):
            corners = _grown(corners, corner + 2 * mask.size + 4)
        if pixel + mask.size > len(pixels):
            pixels = _grown(pixels, pixel + mask.size)
        count = _ring(mask, corners[corner:])
        for c in range(corner, corner + count):
            corners[c, 0] += box[1] - 1
            corners[c, 1] += box[0] - 1
        corner += count
        for y in range(mask.shape[0]):
            for x in range(mask.shape[1]):
                if mask[y, x]:
                    pixels[pixel, 0], pixels[pixel, 1] = y + box[0] - 1, x + box[1] - 1
                    pixel += 1
        starts[i + 1], pixel_starts[i + 1] = corner, pixel
    return corners[:corner].copy(), starts, pixels[:pixel].copy(), pixel_starts
