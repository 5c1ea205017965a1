"""Working ahead in threads, not too far, and in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future
from typing import TypeVar

Item = TypeVar("Item")
Made = TypeVar("Made")


def in_order(
    pool: Executor, make: Callable[[Item], Made], items: Iterable[Item], *, ahead: int
) -> Iterator[Made]:
    """What `make` gives of each item, in their order; at most `ahead` are made or wait to be taken."""
    waiting: deque[Future[Made]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(make, item))
            if len(waiting) >= ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()
