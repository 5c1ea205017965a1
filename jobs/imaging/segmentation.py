"""The segment phase: reading, the network and post-processing, overlapped, block by block.

Readers work ahead, one thread runs the network, others turn finished blocks into cells. Memory holds
the logits of a few rows of windows in one strip, whatever the slide's size.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from jobs.imaging import contours, measurement, postprocess
from jobs.imaging.cells import Cells, located
from jobs.imaging.network import Network, cores
from jobs.imaging.normalisation import Normalisation
from jobs.imaging.plane import Plane
from jobs.imaging.tiling import ALIGN, CONTEXT, HALO, SQUARE, Grid, Rect, Window

Result = TypeVar("Result")
Tick = Callable[[int, int], None]

BEAT_S = 0.5
READ_AHEAD = 4
WIDEST = CONTEXT + 6 * postprocess.REACH


@dataclass(frozen=True)
class Piece:
    """What one window gave: the exact part of its logits, and the pixels under it."""

    keep: Rect
    logits: NDArray[np.float32]
    rgb: NDArray[np.uint8]


@dataclass(frozen=True)
class Plan:
    """Everything that decides the cells of a slide, fixed before the first block."""

    plane: Plane
    grid: Grid
    scale: Normalisation
    network: Network
    precision: str
    pixel_size: tuple[float, float]
    smallest_um2: float


class Segmenter:
    """Runs a plan. `blocks()` gives every block's cells; `tick(done, total)` counts windows."""

    def __init__(self, plan: Plan, tick: Tick) -> None:
        self.plan = plan
        self.tick = tick
        self.done = 0
        self.strips = [_Strip(plan.grid, blocks) for blocks in plan.grid.strips()]
        self.total = sum(len(strip.order) for strip in self.strips)
        self.batch = 1 if plan.network.device.type == "cpu" else 8
        self._readers = ThreadPoolExecutor(min(4, max(2, cores())), thread_name_prefix="read")
        self._finishers = ThreadPoolExecutor(
            min(4, max(1, cores() // 2)), thread_name_prefix="post"
        )

    def blocks(self) -> Generator[tuple[Rect, Cells]]:
        """Every block that runs, as soon as it is finished, with its cells. Close it to stop."""
        try:
            for strip in self.strips:
                yield from self._strip(strip)
        finally:  # these threads use the slide, which the caller closes next
            self._finishers.shutdown(wait=True, cancel_futures=True)
            self._readers.shutdown(wait=True, cancel_futures=True)

    def _strip(self, strip: _Strip) -> Iterator[tuple[Rect, Cells]]:
        finishing: deque[tuple[Rect, Future[Cells]]] = deque()
        for window, piece in self._pieces(strip.order):
            for block, pieces in strip.finished_by(window, piece):
                finishing.append((block, self._finishers.submit(self._cells, block, pieces)))
                while len(finishing) > 3:
                    yield finishing[0][0], self._wait(finishing[0][1])
                    finishing.popleft()
        for block, future in finishing:
            yield block, self._wait(future)

    def _pieces(self, order: list[Window]) -> Iterator[tuple[Window, Piece]]:
        """Windows through readers and network, in order, each stage working ahead."""
        waiting = deque(_batches(order, self.batch))
        reads: deque[tuple[list[Window], list[Future[NDArray[np.uint8]]]]] = deque()
        runs: deque[
            tuple[list[Window], list[NDArray[np.uint8]], Future[list[NDArray[np.float32]]]]
        ] = deque()
        try:
            while waiting or reads or runs:
                while waiting and len(reads) < READ_AHEAD:
                    batch = waiting.popleft()
                    reads.append(
                        (batch, [self._readers.submit(self._read, one.area) for one in batch])
                    )
                if reads and len(runs) < 2:
                    batch, futures = reads.popleft()
                    tiles = [self._wait(future) for future in futures]
                    run = self.plan.network.submit(tiles, self.plan.scale, self.plan.precision)
                    runs.append((batch, tiles, run))
                    continue
                batch, tiles, run = runs.popleft()
                made = self._wait(run)
                for window, tile, logits in zip(batch, tiles, made, strict=True):
                    self.done += 1
                    self.tick(self.done, self.total)
                    rows, cols = window.keep.slices(window.area)
                    yield window, Piece(window.keep, logits[:, rows, cols].copy(), tile[rows, cols])
        finally:  # what the network has not begun it need not begin
            for _, _, run in runs:
                run.cancel()

    def _read(self, area: Rect) -> NDArray[np.uint8]:
        """RGB of an area of the padded plane; beyond the plane it is reflected, as InstanSeg pads."""
        inside = area.clipped(self.plan.grid.plane)
        rgb = self.plan.plane.read(*inside)
        missing = ((0, area.height - inside.height), (0, area.width - inside.width), (0, 0))
        return np.pad(rgb, missing, mode="reflect") if inside != area else rgb

    def _cells(self, block: Rect, pieces: list[Piece]) -> Cells:
        region = self.plan.grid.region(block)
        logits, rgb = _assembled(region, pieces)
        labelled = self._labelled(logits, region)
        own = self._owned(labelled, block)
        context = CONTEXT
        while np.isin(labelled.far, own).any() and context < WIDEST:
            context += postprocess.REACH
            region = self.plan.grid.region(block, context)
            logits, rgb = self._computed(region)
            labelled = self._labelled(logits, region)
            own = self._owned(labelled, block)
        return self._measured(labelled, own, rgb, block)

    def _labelled(self, logits: NDArray[np.float32], region: Rect) -> postprocess.Labelled:
        network, plane = self.plan.network, self.plan.grid.plane
        return postprocess.label_nuclei(logits, region, plane, network.settings, network.classifier)

    def _owned(self, labelled: postprocess.Labelled, block: Rect) -> NDArray[np.int32]:
        """Roots that are seen in the label map, lie in the block and in a run square of it."""
        roots = np.unique(labelled.labels)
        roots = roots[roots > 0] - 1
        rows = labelled.seeds[roots, 0] + labelled.region.y
        cols = labelled.seeds[roots, 1] + labelled.region.x
        inside = (
            (rows >= block.y) & (rows < block.bottom) & (cols >= block.x) & (cols < block.right)
        )
        runs = self.plan.grid.squares[rows // SQUARE, cols // SQUARE]
        return np.asarray(roots[inside & runs], np.int32)

    def _measured(
        self,
        labelled: postprocess.Labelled,
        own: NDArray[np.int32],
        rgb: NDArray[np.uint8],
        block: Rect,
    ) -> Cells:
        plan = self.plan
        outlined = contours.outlines(labelled.labels, own + 1)
        large = outlined.area_px * plan.pixel_size[0] * plan.pixel_size[1] >= plan.smallest_um2
        if not large.all():
            own = own[large]
            outlined = contours.outlines(labelled.labels, own + 1)
        return located(
            outlined,
            labelled.seeds[own],
            measurement.measure(outlined, rgb, plan.pixel_size),
            region=labelled.region,
            block=block,
            scale=plan.plane.geometry.scale,
        )

    def _computed(self, region: Rect) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
        """Logits and pixels of any region, in one call of the network."""
        grown = region.grown(HALO)
        x, y = grown.x // ALIGN * ALIGN, grown.y // ALIGN * ALIGN
        right, bottom = -(-grown.right // ALIGN) * ALIGN, -(-grown.bottom // ALIGN) * ALIGN
        area = Rect(x, y, right - x, bottom - y).clipped(self.plan.grid.padded)
        tile = self._read(area)
        logits = self.plan.network.logits(tile, self.plan.scale, self.plan.precision)
        rows, cols = region.slices(area)
        return np.ascontiguousarray(logits[:, rows, cols]), tile[rows, cols]

    def _wait(self, future: Future[Result]) -> Result:
        """The result of `future`; meanwhile the caller hears a beat, and may stop the job."""
        while not wait([future], timeout=BEAT_S).done:
            self.tick(self.done, self.total)
        return future.result()


class _Strip:
    """Blocks of one strip, and which of them still wait for which windows."""

    def __init__(self, grid: Grid, blocks: list[Rect]) -> None:
        self.blocks = deque((block, grid.windows(block)) for block in blocks)
        order = {window.index: window for _, windows in self.blocks for window in windows}
        self.order = list(order.values())
        self._uses = Counter(window.index for _, windows in self.blocks for window in windows)
        self._pieces: dict[tuple[int, int], Piece] = {}

    def finished_by(self, window: Window, piece: Piece) -> Iterator[tuple[Rect, list[Piece]]]:
        """Blocks that have all their pieces now that `piece` is there; pieces go with their last."""
        self._pieces[window.index] = piece
        while self.blocks and all(one.index in self._pieces for one in self.blocks[0][1]):
            block, windows = self.blocks.popleft()
            pieces = [self._pieces[one.index] for one in windows]
            for one in windows:
                self._uses[one.index] -= 1
                if not self._uses[one.index]:
                    del self._pieces[one.index]
            yield block, pieces


def _batches(order: list[Window], most: int) -> list[list[Window]]:
    """Neighbours in order whose areas have one shape, up to `most` together."""
    batches: list[list[Window]] = []
    for window in order:
        last = batches[-1] if batches else []
        if last and len(last) < most and last[0].area[2:] == window.area[2:]:
            last.append(window)
        else:
            batches.append([window])
    return batches


def _assembled(region: Rect, pieces: list[Piece]) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """Logits and pixels of a region; where nothing was computed no seed can be found."""
    logits = np.zeros((5, region.height, region.width), np.float32)
    logits[4] = -np.inf
    rgb = np.full((region.height, region.width, 3), 255, np.uint8)
    for piece in pieces:
        part = piece.keep.clipped(region)
        if part.width and part.height:
            target, source = part.slices(region), part.slices(piece.keep)
            logits[:, target[0], target[1]] = piece.logits[:, source[0], source[1]]
            rgb[target] = piece.rgb[source]
    return logits, rgb
