"""Which blocks of a slide are computed, in which order, and which windows they need for it."""

from __future__ import annotations

import random
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable, Iterator

from jobs.imaging.blocks import Key
from jobs.imaging.finishing import Piece
from jobs.imaging.tiling import Grid, Rect, Window


class _Strip:
    """The pieces that the unfinished blocks of rows of one strip still need."""

    def __init__(self, grid: Grid, blocks: Iterable[Rect], rows: range = range(0)) -> None:
        self.rows = rows
        self.uses = Counter(one.index for block in blocks for one in grid.windows(block))
        self.asked: set[tuple[int, int]] = set()
        self.pieces: dict[tuple[int, int], Piece] = {}

    def release(self, windows: list[Window]) -> None:
        """A block needs these no longer; a piece goes with the last that does."""
        for one in windows:
            self.uses[one.index] -= 1
            if not self.uses[one.index]:
                self.pieces.pop(one.index, None)


class Course:
    """The way over the blocks of a grid; what is finished when its turn comes is passed over.

    Rows follow each other, so that neighbours share their windows. Where somebody else was first, he
    is going the same way: then it goes on far from both ends of the longest stretch that is left.

    finished   looks up the keys of finished blocks
    first      where to begin, 0-1
    """

    def __init__(
        self, grid: Grid, finished: Callable[[], Collection[Key]], *, first: float = 0.0
    ) -> None:
        self.grid = grid
        self.skipped = 0
        self._finished = finished
        self._rows = grid.rows()
        self._first = int(first * len(self._rows))
        self._chance = random.Random(first)  # noqa: S311 - nothing secret: workers must not agree
        self._fresh = self._first_uses()
        self.total = sum(self._fresh.values())
        self._asked: deque[_Strip] = deque()
        self._waiting: deque[tuple[_Strip, Rect, list[Window]]] = deque()

    def _first_uses(self) -> dict[Key, int]:
        """How many windows each block is the first to ask for."""
        seen: set[tuple[int, int]] = set()
        fresh = {}
        for block in (block for row in self._rows for block in row):
            windows = {one.index for one in self.grid.windows(block)}
            fresh[self.grid.key(block)] = len(windows - seen)
            seen |= windows
        return fresh

    def windows(self) -> Iterator[Window]:
        """The windows that unfinished blocks need, each once as long as rows follow each other."""
        before = set(self._finished())
        left = dict.fromkeys(range(len(self._rows)))  # in order
        at, last, strip = self._first, -1, _Strip(self.grid, [])
        while left:
            at = next((row for row in left if row >= at), next(iter(left)))
            if at != last + 1 or at not in strip.rows:
                stretch = self._stretch(at, left)
                blocks = [block for row in stretch for block in self._rows[row]]
                strip = _Strip(self.grid, blocks, rows=stretch)
            del left[at]
            met = False
            for block in self._rows[at]:
                key = self.grid.key(block)
                if key in self._finished():
                    met |= key not in before
                    self.skipped += self._fresh[key]
                    strip.release(self.grid.windows(block))
                else:
                    yield from self._windows_of(block, strip)
            last, at = at, self._elsewhere(left) if met and left else at + 1

    def _stretch(self, at: int, left: Collection[int]) -> range:
        """The rows from `at` on that follow each other in its strip and are left."""
        strip = self.grid.strip(self._rows[at][0])
        stop = at + 1
        while stop in left and self.grid.strip(self._rows[stop][0]) == strip:
            stop += 1
        return range(at, stop)

    def _elsewhere(self, left: Iterable[int]) -> int:
        """A row in the middle half of the longest run of rows that nobody finished."""
        done = self._finished()
        runs: list[list[int]] = [[]]
        for row in left:
            if all(self.grid.key(block) in done for block in self._rows[row]):
                continue
            if runs[-1] and row != runs[-1][-1] + 1:
                runs.append([])
            runs[-1].append(row)
        longest = max(len(run) for run in runs)
        if not longest:
            return 0
        run = self._chance.choice([run for run in runs if len(run) == longest])
        quarter = longest // 4
        return self._chance.choice(run[quarter : longest - quarter])

    def _windows_of(self, block: Rect, strip: _Strip) -> Iterator[Window]:
        windows = self.grid.windows(block)
        self._waiting.append((strip, block, windows))
        for one in windows:
            if one.index not in strip.asked:
                strip.asked.add(one.index)
                self._asked.append(strip)
                yield one

    def take(self, window: Window, piece: Piece) -> None:
        """The piece of a window; they come in the order in which `windows` gave them."""
        self._asked.popleft().pieces[window.index] = piece

    def ready(self) -> Iterator[tuple[Rect, list[Piece]]]:
        """Blocks that have all their pieces now."""
        while self._waiting:
            strip, block, windows = self._waiting[0]
            if not all(one.index in strip.pieces for one in windows):
                return
            self._waiting.popleft()
            pieces = [strip.pieces[one.index] for one in windows]
            strip.release(windows)
            yield block, pieces


def windows_of(grid: Grid) -> int:
    """How many windows cover all blocks of a grid."""
    blocks = (block for row in grid.rows() for block in row)
    return len({one.index for block in blocks for one in grid.windows(block)})


def fraction(shard: int) -> float:
    """0, 1/2, 1/4, 3/4, 1/8, …: where the shards of a slide begin (van der Corput)."""
    fraction, step = 0.0, 0.5
    while shard:
        shard, bit = divmod(shard, 2)
        fraction += bit * step
        step /= 2
    return fraction
