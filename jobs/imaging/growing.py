"""The inner loops of post-processing, as machine code: peaks, growing, claims on pixels.

All arithmetic is float32, in the order of the published TorchScript, so that labels come out equal.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from jobs.imaging.compiled import compiled


@compiled
def peaks(  # noqa: C901 -- machine code: one loop nest, no calls
    score: NDArray[np.float32], reach: int, least: np.float32
) -> NDArray[np.int32]:
    """Pixels (row, col), in raster order, that no other within `reach` exceeds. Of equals the first
    in raster order stays."""
    height, width = score.shape
    found = np.empty((1024, 2), np.int32)
    count = 0
    for row in range(height):
        for col in range(width):
            value = score[row, col]
            if not value > least:
                continue
            top = True
            for y in range(max(0, row - reach), min(height, row + reach + 1)):
                for x in range(max(0, col - reach), min(width, col + reach + 1)):
                    other = score[y, x]
                    before = y < row or (y == row and x < col)
                    if other > value or (before and other == value):
                        top = False
                        break
                if not top:
                    break
            if top:
                if count == len(found):
                    larger = np.empty((2 * count, 2), np.int32)
                    larger[:count] = found
                    found = larger
                found[count, 0] = row
                found[count, 1] = col
                count += 1
    return found[:count]


@compiled
def _belongs(
    features: NDArray[np.float32],
    y: int,
    x: int,
    seed_y: int,
    seed_x: int,
    step: np.float32,
    layers: tuple[NDArray[np.float32], ...],
    hidden: NDArray[np.float32],
) -> np.float32:
    """Probability that pixel (y, x) belongs to the seed. Coordinates are taken relative to the
    seed, so that they neither lose digits far from the origin nor depend on where a tile began."""
    w1, b1, w2, b2, w3, b3 = layers
    across = features[y, x, 0] - features[seed_y, seed_x, 0] + np.float32(x - seed_x) * step
    down = features[y, x, 1] - features[seed_y, seed_x, 1] + np.float32(y - seed_y) * step
    for i in range(len(b1)):
        widths = w1[i, 2] * features[y, x, 2]
        for k in range(3, features.shape[2]):
            widths += w1[i, k] * features[y, x, k]
        value = b1[i] + w1[i, 0] * across + w1[i, 1] * down
        value += widths
        hidden[i] = max(value, np.float32(0))
    total = b3[0]
    for i in range(len(b2)):
        value = b2[i]
        for k in range(len(b1)):
            value += w2[i, k] * hidden[k]
        total += w3[0, i] * max(value, np.float32(0))
    return np.float32(1) / (np.float32(1) + np.float32(math.exp(-total)))


@compiled
def _grow(
    features: NDArray[np.float32],
    seed: NDArray[np.int32],
    window: tuple[int, int, int, int],
    step: np.float32,
    threshold: np.float32,
    layers: tuple[NDArray[np.float32], ...],
    state: NDArray[np.uint8],
    found: NDArray[np.int32],
    probability: NDArray[np.float32],
    hidden: NDArray[np.float32],
) -> int:
    """Grow one seed over its 8-connected pixels; returns how many were written to `found` (y, x,
    window coordinates) and `probability`. The perceptron runs only on pixels that are reached."""
    top, left, height, width = window
    state[:height, :width] = 0
    count = 0
    head = -1
    y, x = seed[0] - top, seed[1] - left
    while head < count:
        if head >= 0:
            y, x = found[head, 0], found[head, 1]
        for ny in range(max(0, y - 1), min(height, y + 2)):
            for nx in range(max(0, x - 1), min(width, x + 2)):
                if state[ny, nx] != 0:
                    continue
                p = _belongs(features, ny + top, nx + left, seed[0], seed[1], step, layers, hidden)
                if p >= threshold:
                    state[ny, nx] = 1
                    found[count, 0], found[count, 1] = ny, nx
                    probability[count] = p
                    count += 1
                else:
                    state[ny, nx] = 2
        head += 1
    return count


@compiled
def _fill(  # noqa: C901 -- machine code: one loop nest, no calls
    height: int,
    width: int,
    count: int,
    threshold: np.float32,
    state: NDArray[np.uint8],
    found: NDArray[np.int32],
    probability: NDArray[np.float32],
    queue: NDArray[np.int32],
) -> int:
    """Add the holes of a grown object: background that no path joins to pixels more than 3 away
    from it. Returns the new count; holes carry the threshold as their probability."""
    y0, y1, x0, x1 = height, -1, width, -1
    for i in range(count):
        y0, y1 = min(y0, found[i, 0]), max(y1, found[i, 0])
        x0, x1 = min(x0, found[i, 1]), max(x1, found[i, 1])
    y0, y1 = max(0, y0 - 4), min(height, y1 + 5)
    x0, x1 = max(0, x0 - 4), min(width, x1 + 5)
    state[y0:y1, x0:x1] = 0
    for i in range(count):  # within 3 pixels: 4
        y, x = found[i, 0], found[i, 1]
        for ny in range(max(y0, y - 3), min(y1, y + 4)):
            for nx in range(max(x0, x - 3), min(x1, x + 4)):
                state[ny, nx] = 4
    for i in range(count):  # the object: 1
        state[found[i, 0], found[i, 1]] = 1
    waiting = 0
    for y in range(y0, y1):  # farther away, and what is reached from there: 3
        for x in range(x0, x1):
            if state[y, x] == 0:
                state[y, x] = 3
                queue[waiting, 0], queue[waiting, 1] = y, x
                waiting += 1
    head = 0
    while head < waiting:
        y, x = queue[head, 0], queue[head, 1]
        head += 1
        for ny in range(max(y0, y - 1), min(y1, y + 2)):
            for nx in range(max(x0, x - 1), min(x1, x + 2)):
                if state[ny, nx] == 4:
                    state[ny, nx] = 3
                    queue[waiting, 0], queue[waiting, 1] = ny, nx
                    waiting += 1
    for y in range(y0, y1):
        for x in range(x0, x1):
            if state[y, x] == 4:
                found[count, 0], found[count, 1] = y, x
                probability[count] = threshold
                count += 1
    return count


@compiled
def _root(parent: NDArray[np.int32], one: int) -> int:
    while parent[one] != one:
        parent[one] = parent[parent[one]]
        one = parent[one]
    return one


@compiled
def _longer(array: NDArray[np.int32]) -> NDArray[np.int32]:
    longer = np.empty(2 * len(array), np.int32)
    longer[: len(array)] = array
    return longer


@compiled
def grow_all(  # noqa: C901 -- machine code: one loop nest, no calls
    features: NDArray[np.float32],
    seeds: NDArray[np.int32],
    bounds: tuple[int, int, int, int],
    step: np.float32,
    threshold: np.float32,
    overlap: np.float32,
    over_union: bool,
    side: int,
    layers: tuple[NDArray[np.float32], ...],
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Grow every seed, give each pixel to its most probable one, and join seeds that overlap.

    bounds    (top, left, bottom, right) of the whole plane in the coordinates of `features`;
              windows are pushed inside it, and seeds whose window is cut by the array are left out
    overlap   two seeds are one object when they share more than this part of the smaller, or with
              `over_union` of both together
    side      of a seed's window, twice InstanSeg's `window_size`
    returns   label map: 0, or 1 + the root seed; and the root of every seed (the first in raster
              order of those joined), -1 for a seed that grew nothing
    """
    rows, cols = features.shape[:2]
    size_y = min(side, bounds[2] - bounds[0])
    size_x = min(side, bounds[3] - bounds[1])
    labels = np.zeros((rows, cols), np.int32)
    best = np.zeros((rows, cols), np.float32)
    latest = np.full((rows, cols), -1, np.int32)
    owner = np.empty(4096, np.int32)  # of each claim, and the claim before it on the same pixel
    previous = np.empty(4096, np.int32)
    claims = 0
    total = len(seeds)
    parent = np.arange(total).astype(np.int32)
    area = np.zeros(total, np.int32)
    shared = np.zeros(total, np.int32)
    touched = np.empty(total, np.int32)
    state = np.empty((side, side), np.uint8)
    found = np.empty((side * side, 2), np.int32)
    queue = np.empty((side * side, 2), np.int32)
    probability = np.empty(side * side, np.float32)
    hidden = np.empty(len(layers[1]), np.float32)
    for s in range(total):
        top = min(max(seeds[s, 0] - side // 2, bounds[0]), bounds[2] - size_y)
        left = min(max(seeds[s, 1] - side // 2, bounds[1]), bounds[3] - size_x)
        if top < 0 or left < 0 or top + size_y > rows or left + size_x > cols:
            continue
        window = (top, left, size_y, size_x)
        count = _grow(
            features, seeds[s], window, step, threshold, layers, state, found, probability, hidden
        )
        if count:
            count = _fill(size_y, size_x, count, threshold, state, found, probability, queue)
        area[s] = count
        others = 0
        for i in range(count):
            y, x = found[i, 0] + top, found[i, 1] + left
            claim = latest[y, x]
            while claim >= 0:
                if shared[owner[claim]] == 0:
                    touched[others] = owner[claim]
                    others += 1
                shared[owner[claim]] += 1
                claim = previous[claim]
            if claims == len(owner):
                owner = _longer(owner)
                previous = _longer(previous)
            owner[claims] = s
            previous[claims] = latest[y, x]
            latest[y, x] = claims
            claims += 1
            if probability[i] > best[y, x]:
                best[y, x] = probability[i]
                labels[y, x] = s + 1
        for i in range(others):
            other = touched[i]
            whole = min(area[s], area[other])
            if over_union:
                whole = area[s] + area[other] - shared[other]
            part = np.float32(shared[other]) / np.float32(whole)
            shared[other] = 0
            if part > overlap:
                one, two = _root(parent, s), _root(parent, other)
                parent[max(one, two)] = min(one, two)
    for s in range(total):
        parent[s] = _root(parent, s) if area[s] else -1
    for y in range(rows):
        for x in range(cols):
            if labels[y, x]:
                labels[y, x] = parent[labels[y, x] - 1] + 1
    return labels, parent
