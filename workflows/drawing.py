"""Where the lanes, jobs and arrows of a workflow stand in its picture. Pure: numbers in, numbers out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

NODE_W, NODE_H = 196, 78
GAP = 60
PAD = 18
LABEL_H = 30
LANE_H = LABEL_H + NODE_H + 20
TIP = 5  # room for the tip of an arrow
TRACK = 6  # between arrows that run beside each other
CORNER = 8
INSET = 14  # of the texts and the bar in a box
TITLE_CHARS = 21
LANE_CHARS = 60


@dataclass(frozen=True)
class Step:
    """A job to draw, with the name of its branch; None is a lane of its own."""

    key: str
    lane: str | None
    upstream: tuple[str, ...]


@dataclass(frozen=True)
class Place:
    """The top left corner of a job's box."""

    x: int
    y: int

    @property
    def right(self) -> int:
        return self.x + NODE_W

    @property
    def middle(self) -> int:
        return self.y + NODE_H // 2


@dataclass(frozen=True)
class Arrow:
    """An edge as an SVG path; a plain link is the order inside a lane."""

    upstream: str
    downstream: str
    path: str


@dataclass(frozen=True)
class Lane:
    """A branch and its band of the picture; a job without a branch has a nameless one."""

    name: str
    y: int

    @property
    def label(self) -> str:
        return shortened(self.name, LANE_CHARS) if self.name else "a lane of its own"


@dataclass(frozen=True)
class Picture:
    """All of it, in pixels."""

    width: int
    height: int
    lanes: tuple[Lane, ...]
    places: Mapping[str, Place]
    arrows: tuple[Arrow, ...]
    links: tuple[Arrow, ...]
    node_width: int = NODE_W
    node_height: int = NODE_H
    bar_width: int = NODE_W - 2 * INSET
    lane_height: int = LANE_H


def draw(steps: Sequence[Step]) -> Picture:
    """Lanes from top to bottom in order of appearance, jobs left to right after what they need.

    steps  in sequence order, which is a topological order (R2)
    """
    rows = {lane: row for row, lane in enumerate(dict.fromkeys(map(lane_of, steps)))}
    columns = columns_of(steps)
    places = {
        step.key: Place(
            PAD + columns[step.key] * (NODE_W + GAP), rows[lane_of(step)] * LANE_H + LABEL_H
        )
        for step in steps
    }
    edges = {(up, step.key) for step in steps for up in step.upstream if up in places}
    links = [pair for pair in neighbours(steps) if pair not in edges]
    widest = max(columns.values(), default=0) + 1
    return Picture(
        width=2 * PAD + widest * NODE_W + (widest - 1) * GAP,
        height=max(len(rows), 1) * LANE_H,
        lanes=tuple(Lane(name, row * LANE_H) for (name, _), row in rows.items()),
        places=places,
        arrows=tuple(arrow(places, *pair, turn=turn) for turn, pair in enumerate(sorted(edges))),
        links=tuple(arrow(places, *pair) for pair in links),
    )


def lane_of(step: Step) -> tuple[str, str]:
    """What tells lanes apart: their name, or the job where it has none."""
    return (step.lane, "") if step.lane is not None else ("", step.key)


def columns_of(steps: Iterable[Step]) -> dict[str, int]:
    """The column of each job: right of its predecessor in the lane and of all it waits for."""
    columns: dict[str, int] = {}
    filled: dict[tuple[str, str], int] = {}
    for step in steps:
        before = [columns[key] for key in step.upstream if key in columns]
        column = max([filled.get(lane_of(step), -1), *before]) + 1
        columns[step.key] = filled[lane_of(step)] = column
    return columns


def neighbours(steps: Iterable[Step]) -> list[tuple[str, str]]:
    """Each job with the next one of its lane."""
    last: dict[tuple[str, str], str] = {}
    pairs = []
    for step in steps:
        lane = lane_of(step)
        if lane in last:
            pairs.append((last[lane], step.key))
        last[lane] = step.key
    return pairs


def arrow(places: Mapping[str, Place], upstream: str, downstream: str, *, turn: int = 0) -> Arrow:
    """From the right side of one box to the left side of the other, past the boxes between them.

    turn  tells arrows apart that would share a track
    """
    start, end = places[upstream], places[downstream]
    x0, y0, x1, y1 = start.right, start.middle, end.x - TIP, end.middle
    if end.x - start.right > GAP:  # over the next box: along the strip above the target's lane
        shift = TRACK * (turn % 3)
        first, last, strip = x0 + 18 + shift, x1 - 22 - shift, end.y - 9 - shift
        path = rounded([(x0, y0), (first, y0), (first, strip), (last, strip), (last, y1), (x1, y1)])
    elif y0 == y1:
        path = f"M{x0} {y0}H{x1}"
    else:
        bend = (x1 - x0) * 3 // 5
        path = f"M{x0} {y0}C{x0 + bend} {y0} {x1 - bend} {y1} {x1} {y1}"
    return Arrow(upstream, downstream, path)


def rounded(points: Sequence[tuple[int, int]]) -> str:
    """A line through `points`, horizontal and vertical by turns, with round corners."""
    path = f"M{points[0][0]} {points[0][1]}"
    for before, corner, after in zip(points, points[1:], points[2:], strict=False):
        into, out = towards(corner, before), towards(corner, after)
        path += f"L{into[0]} {into[1]}Q{corner[0]} {corner[1]} {out[0]} {out[1]}"
    return f"{path}L{points[-1][0]} {points[-1][1]}"


def towards(corner: tuple[int, int], other: tuple[int, int]) -> tuple[int, int]:
    """The point CORNER pixels from `corner` on the way to `other`, at most half way."""
    dx, dy = other[0] - corner[0], other[1] - corner[1]
    length = min(CORNER, (abs(dx) + abs(dy)) // 2)
    return corner[0] + length * _sign(dx), corner[1] + length * _sign(dy)


def _sign(number: int) -> int:
    return (number > 0) - (number < 0)


def shortened(text: str, most: int = TITLE_CHARS) -> str:
    """`text` in at most `most` characters: its end tells more than its middle."""
    if len(text) <= most:
        return text
    tail = most // 3
    return f"{text[: most - tail - 1]}…{text[-tail:]}"
