"""The graph of a submission: its faults and its order. Pure."""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence

SHOWN = 5  # culprits that a message names


class BadGraph(ValueError):
    """The jobs do not form a DAG; the text names the culprits."""


def topological_order(keys: Sequence[str], upstream: Mapping[str, Sequence[str]]) -> list[int]:
    """Positions of `keys` so that every job comes after its upstream jobs.

    keys      the job ids in submitted order
    upstream  for a job id, the ids it waits for
    returns   the lexicographically first such order by submitted position (R2)
    raises    BadGraph for duplicate, unknown, self-referring, repeated or circular references
    """
    position = _positions(keys)
    downstream: list[list[int]] = [[] for _ in keys]
    waiting = [0] * len(keys)
    for key, names in upstream.items():
        for name in _checked(key, names, position):
            downstream[position[name]].append(position[key])
            waiting[position[key]] += 1
    order = _first_order(downstream, waiting)
    if len(order) < len(keys):
        raise BadGraph(f"These jobs wait for each other in a circle: {_circle(keys, upstream)}.")
    return order


def _positions(keys: Sequence[str]) -> dict[str, int]:
    position: dict[str, int] = {}
    twice = [key for place, key in enumerate(keys) if position.setdefault(key, place) != place]
    if twice:
        raise BadGraph(f"These job ids are used more than once: {_some(twice)}.")
    return position


def _checked(key: str, names: Sequence[str], known: Mapping[str, int]) -> Sequence[str]:
    if key in names:
        raise BadGraph(f"Job {key} depends on itself.")
    if unknown := [name for name in names if name not in known]:
        raise BadGraph(
            f"Job {key} depends on jobs that are not in this workflow: {_some(unknown)}."
        )
    if len(set(names)) < len(names):
        raise BadGraph(f"Job {key} names a dependency twice.")
    return names


def _first_order(downstream: list[list[int]], waiting: list[int]) -> list[int]:
    ready = [place for place, count in enumerate(waiting) if count == 0]
    order: list[int] = []
    while ready:
        place = heapq.heappop(ready)
        order.append(place)
        for below in downstream[place]:
            waiting[below] -= 1
            if waiting[below] == 0:
                heapq.heappush(ready, below)
    return order


def _circle(keys: Sequence[str], upstream: Mapping[str, Sequence[str]]) -> str:
    """One circle, as `a → b → a`. Called only when there is one."""
    left = {key: set(upstream.get(key, ())) for key in keys}
    free = [key for key, names in left.items() if not names]
    below: dict[str, list[str]] = {}
    for key, names in left.items():
        for name in names:
            below.setdefault(name, []).append(key)
    while free:
        gone = free.pop()
        del left[gone]
        for key in below.get(gone, ()):
            left[key].discard(gone)
            if not left[key]:
                free.append(key)
    path = [next(iter(left))]
    while path[-1] not in path[:-1]:
        path.append(min(name for name in left[path[-1]] if name in left))
    circle = path[path.index(path[-1]) :]
    return " → ".join(circle if len(circle) <= 12 else [*circle[:12], "…"])


def _some(names: Sequence[str]) -> str:
    shown = sorted(set(names))
    more = f" and {len(shown) - SHOWN} more" if len(shown) > SHOWN else ""
    return ", ".join(shown[:SHOWN]) + more
