"""The segment phase: reading, the network and post-processing, overlapped, block by block.

Readers work ahead, one thread runs the network, others turn finished blocks into cells, one keeps
them. Memory holds the logits of a few rows of windows in one strip, whatever the slide's size.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Collection, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from jobs.imaging.blocks import BlockFacts, BlockStore, Key
from jobs.imaging.contract import BadInput
from jobs.imaging.course import Course, fraction
from jobs.imaging.finishing import Piece, finish, halved
from jobs.imaging.gaps import Patient
from jobs.imaging.memory import copied_apart
from jobs.imaging.network import cores
from jobs.imaging.plan import Plan
from jobs.imaging.progress import Tick
from jobs.imaging.readers.reader import Pixels
from jobs.imaging.tiling import ALIGN, SQUARE, Rect, Window

Result = TypeVar("Result")
Logits = NDArray[np.float32]

BEAT_S = 0.5
READ_AHEAD = 4
"""Batches that are being read while the network works on others."""
FINISH_AHEAD = 2
"""Blocks for each thread that finishes some, before the network waits for them."""
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
        self._seen: set[tuple[int, int]] = set()
        self._course = Course(plan.grid, self._finished, first=fraction(shard))
        self.total = self._course.total
        self._reader = Patient(plan.plane)
        self._most_gap_pixels = most_gaps * plan.grid.run_pixels()
        self._known: Collection[Key] = ()
        self._known_until = 0.0

    def run(self) -> None:
        """Compute and keep every block that is not finished. Raises BadInput above `most_gaps`."""
        with self._threads():
            keeping: deque[Future[None]] = deque()
            most = FINISH_AHEAD * _finishers()
            for window, piece in self._pieces():
                self._course.take(window, piece)
                self._finish_ready(keeping)
                while keeping and (keeping[0].done() or len(keeping) > most):
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
            self._finishers = pool(_finishers(), "post")
            self._readers = pool(max(2, cores() // 2), "read")
            yield

    # --- reading and the network ---------------------------------------------------------

    def _pieces(self) -> Iterator[tuple[Window, Piece]]:
        """Windows through readers and network, in order, each stage working ahead."""
        batches = _batches(self._course.windows(), self.plan)
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
        keep = [wanted(one.window) for one in read]
        tiles = [one.pixels for one in read]
        made = plan.network.submit(tiles, plan.scale, plan.precision, keep, batch=plan.batch)
        return read, made

    def _exact(self, read: list[_Read], made: list[Logits]) -> Iterator[tuple[Window, Piece]]:
        for one, logits in zip(read, made, strict=True):
            self._seen.add(one.window.index)
            self._tick()
            keep = one.window.keep
            rows, cols = keep.slices(one.window.area)
            pixels = copied_apart(one.pixels[rows, cols])  # a view would keep the halo in memory
            halves = self.plan.precision == "bf16"
            kept = halved(logits) if halves else copied_apart(logits)
            yield one.window, Piece(keep, kept, pixels, one.gaps)

    def _read(self, window: Window) -> _Read:
        pixels, gaps = self._pixels(window.area)
        return _Read(window, copied_apart(pixels), gaps)

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
        squares = self.plan.grid.squares
        gaps = [gap for gap in self._reader.gaps if squares[gap.y // SQUARE, gap.x // SQUARE]]
        if sum(gap.width * gap.height for gap in gaps) > self._most_gap_pixels:
            raise TooManyGaps(self.plan.plane.slide.path.name)

    # --- keeping -------------------------------------------------------------------------

    def _finish(self, block: Rect, pieces: list[Piece]) -> None:
        cells = finish(self.plan, block, pieces, self._computed)
        made_by = self.plan.fingerprint()  # now: a GPU whose memory ran out takes smaller batches
        facts = BlockFacts(len(cells), len(cells.gaps_l0), cells.box_l0, made_by)
        key = self.plan.grid.key(block)
        self._keeper.submit(self.store.put, self.name, key, cells.encoded(), facts).result()

    def _finished(self) -> Collection[Key]:
        now = time.monotonic()
        if now >= self._known_until:
            self._known = self.store.finished(self.name).keys()
            self._known_until = now + LOOK_S
        return self._known

    def _tick(self) -> None:
        self.tick(min(self.total, len(self._seen) + self._course.skipped), self.total)

    def _wait(self, future: Future[Result]) -> Result:
        """The result of `future`; meanwhile the caller hears a beat, and may stop the job."""
        while not wait([future], timeout=BEAT_S).done:
            self._tick()
        return future.result()


def _finishers() -> int:
    return max(1, cores() // 2)


class TooManyGaps(BadInput):
    """More of the slide is unreadable than a result may leave out."""

    def __init__(self, slide: str) -> None:
        super().__init__(
            f"{slide} is damaged: more of its tissue can not be read than a result may leave out. "
            "Compare its size with the original and copy it again; if its storage failed for a "
            "while, retry the job, which goes on from what is finished."
        )


def wanted(window: Window) -> Rect:
    """The part of a window whose logits are wanted, in its own pixels."""
    keep, area = window.keep, window.area
    return Rect(keep.x - area.x, keep.y - area.y, keep.width, keep.height)


def _batches(windows: Iterator[Window], plan: Plan) -> Iterator[list[Window]]:
    """Neighbours in order whose areas have one shape, as many together as the network takes."""
    batch: list[Window] = []
    for window in windows:
        if batch and batch[0].area[2:] != window.area[2:]:
            yield batch
            batch = []
        batch.append(window)
        if len(batch) >= plan.batch:
            yield batch
            batch = []
    if batch:
        yield batch
