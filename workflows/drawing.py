"""Where the lanes, jobs and arrows of a workflow stand in its picture. Pure: numbers in, numbers out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

NODE_W, NODE_H = 196, 78
GAP = 60
PAD = 18
LABEL_H = 30
LANE_H = LABEL_H + NODE_H + 20
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
        arrows=tuple(arrow(places, *pair) for pair in sorted(edges)),
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


def arrow(places: Mapping[str, Place], upstream: str, downstream: str) -> Arrow:
    """From the right side of one box to the left side of the other."""
    start, end = places[upstream], places[downstream]
    x0, y0, x1, y1 = start.right, start.middle, end.x - 5, end.middle
    if y0 == y1 and x1 - x0 <= GAP:
        path = f"M{x0} {y0}H{x1}"
    elif y0 == y1:  # over the boxes between them
        top = start.y - 12
        path = f"M{x0} {y0}C{x0 + 30} {top} {x0 + 20} {top} {x0 + 60} {top}H{x1 - 60}"
        path += f"C{x1 - 20} {top} {x1 - 34} {y1} {x1} {y1}"
    else:
        bend = max((x1 - x0) * 3 // 5, 28)
        path = f"M{x0} {y0}C{x0 + bend} {y0} {x1 - bend} {y1} {x1} {y1}"
    return Arrow(upstream, downstream, path)


def shortened(text: str, most: int = TITLE_CHARS) -> str:
    """`text` in at most `most` characters: its end tells more than its middle."""
    if len(text) <= most:
        return text
    tail = most // 3
    return f"{text[: most - tail - 1]}…{text[-tail:]}"
