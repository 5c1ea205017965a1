"""The segment phase: reading, the network and post-processing, overlapped, block by block.

Readers work ahead, one thread runs the network, others turn finished blocks into cells, one keeps
them. Memory holds the logits of a few rows of windows in one strip, whatever the slide's size.
"""

from __future__ import annotations

import random
import time
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from jobs.imaging.blocks import BlockFacts, BlockStore, Key
from jobs.imaging.contract import BadInput
from jobs.imaging.finishing import Piece, finish, halved
from jobs.imaging.gaps import Patient
from jobs.imaging.network import cores
from jobs.imaging.plan import Plan
from jobs.imaging.progress import Tick
from jobs.imaging.readers.reader import Pixels
from jobs.imaging.tiling import ALIGN, Grid, Rect, Window

Result = TypeVar("Result")
Logits = NDArray[np.float32]

BEAT_S = 0.5
READ_AHEAD = 4
"""Batches that are being read while the network works on others."""
FINISH_AHEAD = 4
"""Blocks that may wait to be kept before the network waits for them."""
LOOK_S = 1.0
"""How long the list of finished blocks is believed: others may work on the same slide."""


@dataclass(frozen=True)
class _Read:
    """A window as it was read."""

    window: Window
    pixels: Pixels
    gaps: tuple[Rect, ...]


class Segmenter:
    """Computes what is not finished of a plan and keeps it in `store` under `name`.

    tick        called as `tick(done, total)` in windows, at least twice a second; what it raises
                ends the work
    shard       0 begins at the first block; others begin elsewhere, so that workers meet late
    most_gaps   the part of what is computed that may be unreadable
    """

    def __init__(
        self,
        plan: Plan,
        store: BlockStore,
        name: str,
        tick: Tick,
        *,
        shard: int = 0,
        most_gaps: float = 1.0,
    ) -> None:
        self.plan, self.store, self.name, self.tick = plan, store, name, tick
        self.done = 0
        self._course = Course(plan.grid, self._finished, first=_fraction(shard))
        self.total = self._course.total
        self._reader = Patient(plan.plane)
        self._most_gap_pixels = most_gaps * plan.grid.run_pixels()
        self._fingerprint = plan.fingerprint()
        self._known: Collection[Key] = ()
        self._known_until = 0.0

    @property
    def gaps(self) -> list[Rect]:
        """The rectangles of the plane that this run could not read."""
        return self._reader.gaps

    def run(self) -> None:
        """Compute and keep every block that is not finished. Raises BadInput above `most_gaps`."""
        with self._threads():
            keeping: deque[Future[None]] = deque()
            for window, piece in self._pieces():
                self._course.take(window, piece)
                self._finish_ready(keeping)
                while len(keeping) > FINISH_AHEAD:
                    self._wait(keeping.popleft())
            self._finish_ready(keeping)  # blocks that needed no window of their own
            for future in keeping:
                self._wait(future)

    def _finish_ready(self, keeping: deque[Future[None]]) -> None:
        for block, pieces in self._course.ready():
            keeping.append(self._finishers.submit(self._finish, block, pieces))

    @contextmanager
    def _threads(self) -> Iterator[None]:
        """The threads use the slide, which the caller closes next: they are gone at the end."""
        with ExitStack() as stack:

            def pool(count: int, name: str) -> ThreadPoolExecutor:
                made = ThreadPoolExecutor(count, thread_name_prefix=name)
                stack.callback(made.shutdown, wait=True, cancel_futures=True)
                return made

            self._keeper = pool(1, "keep")
            self._finishers = pool(max(1, cores() // 2), "post")
            self._readers = pool(max(2, cores() // 2), "read")
            yield

    # --- reading and the network ---------------------------------------------------------

    def _pieces(self) -> Iterator[tuple[Window, Piece]]:
        """Windows through readers and network, in order, each stage working ahead."""
        batches = _batches(self._course.windows(), self.plan.batch)
        reads: deque[list[Future[_Read]]] = deque()
        runs: deque[tuple[list[_Read], Future[list[Logits]]]] = deque()
        more = True
        try:
            while more or reads or runs:
                while more and len(reads) < READ_AHEAD:
                    batch = next(batches, None)
                    more = batch is not None
                    if batch is not None:
                        reads.append([self._readers.submit(self._read, one) for one in batch])
                if reads and len(runs) < 2:
                    runs.append(self._submit([self._wait(one) for one in reads.popleft()]))
                    continue
                if runs:
                    read, run = runs.popleft()
                    yield from self._exact(read, self._wait(run))
        finally:  # what the network has not begun it need not begin
            for _, run in runs:
                run.cancel()

    def _submit(self, read: list[_Read]) -> tuple[list[_Read], Future[list[Logits]]]:
        self._check_gaps()
        plan = self.plan
        keep = wanted(read[0].window)
        tiles = [one.pixels for one in read]
        return read, plan.network.submit(tiles, plan.scale, plan.precision, keep)

    def _exact(self, read: list[_Read], made: list[Logits]) -> Iterator[tuple[Window, Piece]]:
        for one, logits in zip(read, made, strict=True):
            self.done += 1
            self._tick()
            keep = one.window.keep
            rows, cols = keep.slices(one.window.area)
            pixels = one.pixels[rows, cols].copy()  # a view would keep the halo in memory
            if self.plan.precision == "bf16":
                yield one.window, Piece(keep, halved(logits), pixels, one.gaps)
            else:
                yield one.window, Piece(keep, logits, pixels, one.gaps)

    def _read(self, window: Window) -> _Read:
        pixels, gaps = self._pixels(window.area)
        return _Read(window, pixels, gaps)

    def _pixels(self, area: Rect) -> tuple[Pixels, tuple[Rect, ...]]:
        """An area of the padded plane; beyond the plane it is reflected, as InstanSeg pads."""
        inside = area.clipped(self.plan.grid.plane)
        pixels, gaps = self._reader.read_telling(inside)
        missing = ((0, area.height - inside.height), (0, area.width - inside.width), (0, 0))
        padded = np.pad(pixels, missing, mode="reflect") if inside != area else pixels
        return padded, tuple(gaps)

    def _computed(self, region: Rect) -> Piece:
        """The piece of any region, in one call of the network."""
        grown = region.grown(self.plan.grid.halo)
        x, y = grown.x // ALIGN * ALIGN, grown.y // ALIGN * ALIGN
        right, bottom = -(-grown.right // ALIGN) * ALIGN, -(-grown.bottom // ALIGN) * ALIGN
        area = Rect(x, y, right - x, bottom - y).clipped(self.plan.grid.padded)
        pixels, gaps = self._pixels(area)
        window = Window((-1, -1), area, region)
        plan = self.plan
        logits = plan.network.logits(pixels, plan.scale, plan.precision, wanted(window))
        rows, cols = region.slices(area)
        return Piece(region, logits, pixels[rows, cols], gaps)

    def _check_gaps(self) -> None:
        gaps = self._reader.gaps
        if gaps and sum(gap.width * gap.height for gap in gaps) > self._most_gap_pixels:
            raise TooManyGaps(self.plan.plane.slide.path.name)

    # --- keeping -------------------------------------------------------------------------

    def _finish(self, block: Rect, pieces: list[Piece]) -> None:
        cells = finish(self.plan, block, pieces, self._computed)
        facts = BlockFacts(len(cells), len(cells.gaps_l0), cells.box_l0, self._fingerprint)
        key = self.plan.grid.key(block)
        self._keeper.submit(self.store.put, self.name, key, cells.encoded(), facts).result()

    def _finished(self) -> Collection[Key]:
        now = time.monotonic()
        if now >= self._known_until:
            self._known = self.store.finished(self.name).keys()
            self._known_until = now + LOOK_S
        return self._known

    def _tick(self) -> None:
        self.tick(min(self.total, self.done + self._course.skipped), self.total)

    def _wait(self, future: Future[Result]) -> Result:
        """The result of `future`; meanwhile the caller hears a beat, and may stop the job."""
        while not wait([future], timeout=BEAT_S).done:
            self._tick()
        return future.result()


class TooManyGaps(BadInput):
    """More of the slide is unreadable than a result may leave out."""

    def __init__(self, slide: str) -> None:
        super().__init__(
            f"{slide} is damaged: more of its tissue can not be read than a result may leave out. "
            "Compare its size with the original and copy it again; if its storage failed for a "
            "while, retry the job, which goes on from what is finished."
        )


# --- which blocks, in which order ------------------------------------------------------------


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


def _fraction(shard: int) -> float:
    """0, 1/2, 1/4, 3/4, 1/8, …: where the shards of a slide begin (van der Corput)."""
    fraction, step = 0.0, 0.5
    while shard:
        shard, bit = divmod(shard, 2)
        fraction += bit * step
        step /= 2
    return fraction


def _form(window: Window) -> tuple[int, ...]:
    return (*window.area[2:], *wanted(window))


def wanted(window: Window) -> Rect:
    """The part of a window whose logits are wanted, in its own pixels."""
    keep, area = window.keep, window.area
    return Rect(keep.x - area.x, keep.y - area.y, keep.width, keep.height)


def _batches(windows: Iterator[Window], most: int) -> Iterator[list[Window]]:
    """Neighbours in order whose areas have one shape and use, up to `most` together."""
    batch: list[Window] = []
    for window in windows:
        if batch and _form(batch[0]) != _form(window):
            yield batch
            batch = []
        batch.append(window)
        if len(batch) == most:
            yield batch
            batch = []
    if batch:
        yield batch
