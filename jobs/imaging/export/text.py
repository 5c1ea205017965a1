"""Rows of text for a batch of cells, from a template of literals and fields, at machine speed.

Numbers are what `repr` gives of the same decimals: 12.0, 12.5, 12.25; so the text is that of any
JSON writer.
"""

from __future__ import annotations

from typing import Self

import numpy as np
from numpy.typing import NDArray

from jobs.imaging.compiled import compiled
from jobs.imaging.export.batch import Batch

LITERAL, CHOICE, RANK, ID, AREA, POINT, RING, NUCLEUS, VALUE = range(9)
LONGEST = 40
"""Characters of a number or id with what stands round it, at most."""

Steps = list[tuple[int, int, int, int]]


class Template:
    """What a row is made of, step by step; `render` gives the rows of a batch."""

    def __init__(self, *, not_a_number: str = '"NaN"') -> None:
        self._steps: Steps = []
        self._literals: list[bytes] = []
        self._nan = not_a_number.encode()

    def text(self, literal: str) -> Self:
        """The same in every row."""
        return self._with(LITERAL, self._literal(literal))

    def choice(self, flag: int, yes: str, no: str = "") -> Self:
        """One text or the other, by a column of the flags given to `render`."""
        return self._with(CHOICE, flag, self._literal(yes), self._literal(no))

    def rank(self) -> Self:
        """`cell_id`."""
        return self._with(RANK)

    def object_id(self) -> Self:
        """The UUID, bare."""
        return self._with(ID)

    def area(self) -> Self:
        """The area in level-0 pixels."""
        return self._with(AREA)

    def point(self, pair: int) -> Self:
        """`x,y` of one of the points given to `render`."""
        return self._with(POINT, pair)

    def ring(self, *, y_first: bool = False, closed: bool = False, origin: tuple[int, int]) -> Self:
        """`[[x,y],…]` from `origin` (level-0 pixels)."""
        return self._with(RING, y_first + 2 * closed, 100 * origin[0], 100 * origin[1])

    def nucleus(self, *, origin: tuple[int, int]) -> Self:
        """The closed ring of the nucleus; nothing where there is none."""
        return self._with(NUCLEUS, 2, 100 * origin[0], 100 * origin[1])

    def value(self, column: int) -> Self:
        """A number of the values given to `render`, with at most eight decimals."""
        return self._with(VALUE, column)

    def render(
        self,
        batch: Batch,
        *,
        points: tuple[NDArray[np.int64], ...] = (),
        flags: tuple[NDArray[np.bool_], ...] = (),
        values: NDArray[np.float64] | None = None,
    ) -> memoryview:
        """The rows of the batch, one after the other.

        points   (n, 2) each, hundredths
        values   (n, columns); the batch's own measurements where none are given
        """
        literals = [*self._literals, self._nan]
        ends = np.cumsum([0, *map(len, literals)])
        out, length = _rendered(
            np.array(self._steps, np.int64),
            np.frombuffer(b"".join(literals), np.uint8),
            ends,
            np.empty(self._most(batch), np.uint8),
            batch.ranks,
            batch.ids,
            batch.area,
            np.stack(points) if points else np.zeros((0, len(batch), 2), np.int64),
            np.stack(flags) if flags else np.zeros((0, len(batch)), np.bool_),
            batch.values if values is None else values,
            batch.corners,
            batch.starts,
            batch.nuclei,
            batch.nucleus_starts,
        )
        return out[:length].data

    def _most(self, batch: Batch) -> int:
        """Bytes that the rows can have; memory that is not written costs nothing."""
        row = sum(map(len, self._literals)) + 2 * LONGEST * len(self._steps)
        corners = len(batch.corners) + len(batch.nuclei) + 2 * len(batch)
        return len(batch) * row + 2 * LONGEST * corners

    def _literal(self, literal: str) -> int:
        self._literals.append(literal.encode())
        return len(self._literals) - 1

    def _with(self, kind: int, *arguments: int) -> Self:
        a, b, c, *_ = (*arguments, 0, 0, 0)
        self._steps.append((kind, a, b, c))
        return self


@compiled
def _put(
    out: NDArray[np.uint8], at: int, text: NDArray[np.uint8], ends: NDArray[np.int64], which: int
) -> int:
    for k in range(ends[which], ends[which + 1]):
        out[at] = text[k]
        at += 1
    return at


@compiled
def _put_whole(out: NDArray[np.uint8], at: int, value: int) -> int:
    if value < 0:
        out[at] = 45
        at, value = at + 1, -value
    digits, bound = 1, 10
    while digits < 18 and value >= bound:
        digits, bound = digits + 1, bound * 10
    for place in range(at + digits - 1, at - 1, -1):
        out[place] = 48 + value % 10
        value //= 10
    return at + digits


@compiled
def _put_decimal(out: NDArray[np.uint8], at: int, value: int, decimals: int) -> int:
    """Write value / 10**decimals; zeros at the end go, but for the one behind the point."""
    if value < 0:
        out[at] = 45
        at, value = at + 1, -value
    unit = 10**decimals
    at = _put_whole(out, at, value // unit)
    out[at] = 46
    at, rest = at + 1, value % unit
    while True:
        unit //= 10
        out[at] = 48 + rest // unit
        at, rest = at + 1, rest % unit
        if rest == 0:
            return at


@compiled
def _put_pair(out: NDArray[np.uint8], at: int, one: int, other: int) -> int:
    at = _put_decimal(out, at, one, 2)
    out[at] = 44
    return _put_decimal(out, at + 1, other, 2)


@compiled
def _put_ring(
    out: NDArray[np.uint8], at: int, ring: NDArray[np.int64], form: int, x0: int, y0: int
) -> int:
    """form: 1 for y before x, 2 for the first corner once more at the end, 3 for both."""
    count = len(ring)
    if count == 0:
        return at
    out[at] = 91
    for k in range(count + form // 2):
        corner = k if k < count else 0
        x, y = ring[corner, 0] - x0, ring[corner, 1] - y0
        out[at + 1] = 91
        at = _put_pair(out, at + 2, y, x) if form % 2 else _put_pair(out, at + 2, x, y)
        out[at], out[at + 1] = 93, 44
        at += 1
    out[at] = 93
    return at + 1


@compiled
def _put_value(out: NDArray[np.uint8], at: int, value: float) -> int:
    """A measurement: four decimals as it was rounded to, eight where it has more; -1 for none."""
    if not abs(value) < 1e10:
        return -1
    rounded = np.rint(value * 1e4)
    if abs(value * 1e4 - rounded) < 1e-6 * max(1.0, abs(value)):
        return _put_decimal(out, at, int(rounded), 4)
    return _put_decimal(out, at, int(np.rint(value * 1e8)), 8)


@compiled
def _rendered(  # noqa: C901 -- machine code: one loop nest over rows and steps
    steps: NDArray[np.int64],
    text: NDArray[np.uint8],
    ends: NDArray[np.int64],
    out: NDArray[np.uint8],
    ranks: NDArray[np.int64],
    ids: NDArray[np.uint8],
    area: NDArray[np.int64],
    points: NDArray[np.int64],
    flags: NDArray[np.bool_],
    values: NDArray[np.float64],
    corners: NDArray[np.int64],
    starts: NDArray[np.int64],
    nuclei: NDArray[np.int64],
    nucleus_starts: NDArray[np.int64],
) -> tuple[NDArray[np.uint8], int]:
    at = 0
    for i in range(len(ranks)):
        for s in range(len(steps)):
            kind, a, b, c = steps[s, 0], steps[s, 1], steps[s, 2], steps[s, 3]
            if kind == LITERAL:
                at = _put(out, at, text, ends, a)
            elif kind == CHOICE:
                at = _put(out, at, text, ends, b if flags[a, i] else c)
            elif kind == RANK:
                at = _put_whole(out, at, ranks[i])
            elif kind == ID:
                out[at : at + 36] = ids[i]
                at += 36
            elif kind == AREA:
                at = _put_decimal(out, at, area[i], 2)
            elif kind == POINT:
                at = _put_pair(out, at, points[a, i, 0], points[a, i, 1])
            elif kind == RING:
                at = _put_ring(out, at, corners[starts[i] : starts[i + 1]], a, b, c)
            elif kind == NUCLEUS:
                ring = nuclei[nucleus_starts[i] : nucleus_starts[i + 1]]
                at = _put_ring(out, at, ring, a, b, c)
            else:
                after = _put_value(out, at, values[i, a])
                at = after if after >= 0 else _put(out, at, text, ends, len(ends) - 2)
    return out, at
