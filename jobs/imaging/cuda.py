"""The network on a GPU: uploads, computing and downloads overlap, and the batch fits the memory.

Tiles go up as they were read (1 or 2 bytes a value) and are normalised on the device; of each only the
part that is kept comes down. Batches of the grid's tiles have one shape, the last is filled with copies,
so that equal tiles give equal logits whoever shares their batch.
"""

from __future__ import annotations

import functools
import math
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from jobs.imaging.contract import BadInput
from jobs.imaging.device import DTYPES
from jobs.imaging.normalisation import HIGHEST, LOWEST, Normalisation
from jobs.imaging.tiling import Rect

SHARE = 0.5
"""Part of the device's memory that a batch may take; the rest is for other processes and compiled
kernels' scratch space."""

MOST_PX = 1 << 25
"""Pixels beyond which a larger batch gains nothing: 8 tiles of 2,048."""

PROBE_PX = 512
IN_FLIGHT = 2

Logits = list[NDArray[np.float32]]
Pixels = NDArray[np.uint8] | NDArray[np.uint16]
Shape = tuple[int, ...]
"""(rows, cols, channels) of a tile; (tiles, rows, cols, channels) of a batch."""

Made = TypeVar("Made")


@dataclass(frozen=True)
class _Order:
    """What was asked for: tiles of one shape, and the part of each whose logits are wanted."""

    tiles: Sequence[Pixels]
    scale: Normalisation
    precision: str
    keep: Sequence[Rect | None]
    batch: int | None

    def parts(self, most: int) -> list[_Order]:
        """The same in orders of up to `most` tiles."""
        return [
            replace(self, tiles=self.tiles[at : at + most], keep=self.keep[at : at + most])
            for at in range(0, len(self.tiles), most)
        ]


@dataclass
class _Batch:
    """A batch on its way: what comes down, and the event after which it is all there.

    logits   those of all tiles one after the other, of the `shapes`
    """

    logits: Tensor
    finite: Tensor
    arrived: torch.cuda.Event
    shapes: list[torch.Size]


class Feed:
    """Runs batches of tiles on one device. `submit` may be called from any thread."""

    def __init__(self, device: torch.device, network: Callable[[str], nn.Module]) -> None:
        self.device = device
        self._network = network
        self._up = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._down = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._launcher = ThreadPoolExecutor(1, thread_name_prefix="network")
        self._collector = ThreadPoolExecutor(1, thread_name_prefix="download")
        self._flying = threading.Semaphore(IN_FLIGHT)
        self._measuring = threading.Lock()
        self._bytes_per_px: dict[tuple[int, str], float] = {}
        self._compiled: dict[tuple[str, Shape], Callable[[Tensor], Tensor]] = {}
        self._most: dict[tuple[str, Shape], int] = {}

    def form(self, shape: Shape, precision: str, batch: int) -> str:
        """How the network runs for such batches, for the manifest."""
        return "compiled" if (precision, (batch, *shape)) in self._compiled else "eager"

    def submit(
        self,
        tiles: Sequence[Pixels],
        scale: Normalisation,
        precision: str,
        keep: Sequence[Rect | None],
        batch: int | None,
    ) -> Future[Logits]:
        """Logits of the parts `keep` of tiles of one shape, which run in batches of `batch`, or
        all at once without it; several batches are in flight."""
        found: Future[Logits] = Future()
        order = _Order(list(tiles), scale, precision, list(keep), batch)
        self._launcher.submit(self._launch, found, order)
        return found

    def batch_size(self, shape: Shape, precision: str) -> int:
        """Tiles of `shape` that fill `SHARE` of the device's memory, by what one of 512 px needed;
        fewer where so many did not fit."""
        rows, cols, channels = shape
        key = (channels, precision)
        with self._measuring:
            if key not in self._bytes_per_px:
                # on the launcher's thread nothing else takes memory meanwhile
                measured = self._launcher.submit(self._measured, channels, precision)
                self._bytes_per_px[key] = measured.result()
        total = torch.cuda.get_device_properties(self.device).total_memory
        fitting = int(SHARE * total / (self._bytes_per_px[key] * rows * cols))
        full = 1 << max(0, min(fitting, MOST_PX // (rows * cols)).bit_length() - 1)
        return min(full, self._most.get((precision, shape), full))

    def compile(self, shape: Shape, precision: str, batch: int) -> bool:
        """Keep a compiled form for batches of tiles of `shape`, if it can be made and is faster.
        Needs a compiler; without one nothing changes."""
        return self._launcher.submit(self._try_compiled, shape, precision, batch).result()

    def _measured(self, channels: int, precision: str) -> float:
        image = torch.zeros(1, channels, PROBE_PX, PROBE_PX, device=self.device)
        torch.cuda.synchronize(self.device)  # batches in flight end first
        with torch.inference_mode():
            self._network(precision)(image.to(DTYPES[precision]))  # loads the kernels
            torch.cuda.synchronize(self.device)
            torch.cuda.reset_peak_memory_stats(self.device)
            before = torch.cuda.memory_allocated(self.device)
            self._network(precision)(image.to(DTYPES[precision])).float()
            torch.cuda.synchronize(self.device)
        return (torch.cuda.max_memory_allocated(self.device) - before) / PROBE_PX**2

    def _try_compiled(self, shape: Shape, precision: str, batch: int) -> bool:
        rows, cols, channels = shape
        eager = self._network(precision)
        try:
            with torch.inference_mode():  # another kind of tensor would be compiled for again
                image = torch.rand((batch, channels, rows, cols), device=self.device)
                image = image.to(DTYPES[precision], memory_format=torch.channels_last)
                made = torch.compile(eager, dynamic=False)
                ahead = _milliseconds(eager, image) / _milliseconds(made, image)
        except Exception:  # no compiler, no memory, an unknown device: the eager form stays
            return False
        if ahead > 1.05:
            self._compiled[precision, (batch, *shape)] = made
        return ahead > 1.05

    def _launch(self, found: Future[Logits], order: _Order) -> None:
        self._flying.acquire()
        if not found.set_running_or_notify_cancel():
            self._flying.release()
            return
        try:
            batches = self._batches(order)
        except BaseException as error:
            self._flying.release()
            found.set_exception(error)
        else:
            self._collector.submit(self._collect, found, batches)

    def _batches(self, order: _Order) -> list[_Batch]:
        """All tiles on their way, in batches that halve until they fit."""
        key = (order.precision, order.tiles[0].shape)
        wanted = order.batch or len(order.tiles)
        most = min(wanted, self._most.get(key, wanted))
        size, batches = fitted(most, functools.partial(self._all_started, order), self._recover)
        if size < most:
            self._most[key] = size
        return batches

    def _all_started(self, order: _Order, most: int) -> list[_Batch]:
        """Every batch on its way; filled to one shape, unless the tiles are to run alone."""
        return [
            self._started(part, len(part.tiles) if order.batch is None else most)
            for part in order.parts(most)
        ]

    def _recover(self) -> None:
        torch.cuda.synchronize(self.device)
        torch.cuda.empty_cache()

    def _started(self, order: _Order, size: int) -> _Batch:
        compute = torch.cuda.current_stream(self.device)
        image = self._uploaded(order.tiles, size)
        compute.wait_stream(self._up)
        with torch.inference_mode():
            batch = _normalised(image, order.scale).to(DTYPES[order.precision])
            image.record_stream(compute)
            runs = (order.precision, tuple(image.shape))
            net = self._compiled.get(runs) or self._network(order.precision)
            parts = cut(net(batch), order.keep)
            out = torch.cat([part.flatten() for part in parts]).float()
            finite = torch.isfinite(out).all()
        self._down.wait_stream(compute)
        with torch.cuda.stream(self._down):
            logits = _pinned_like(out)
            logits.copy_(out, non_blocking=True)
            flag = _pinned_like(finite)
            flag.copy_(finite, non_blocking=True)
            out.record_stream(self._down)
            finite.record_stream(self._down)
            arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
            arrived.record(self._down)
        return _Batch(logits, flag, arrived, [part.shape for part in parts])

    def _uploaded(self, tiles: Sequence[Pixels], size: int) -> Tensor:
        """The tiles on the device as they are, and copies of the last up to `size`."""
        stacked = np.stack([*tiles, *[tiles[-1]] * (size - len(tiles))])
        plain = stacked.view(np.int16) if stacked.dtype == np.uint16 else stacked
        with torch.cuda.stream(self._up):
            pinned = torch.from_numpy(plain).pin_memory()
            return pinned.to(self.device, non_blocking=True)

    def _collect(self, found: Future[Logits], batches: list[_Batch]) -> None:
        try:
            made: Logits = []
            for batch in batches:
                batch.arrived.synchronize()
                if not bool(batch.finite):
                    raise BadInput(
                        "The network's numbers left the range of this precision: submit the job "
                        'again with "precision": "bf16" or "fp32".'
                    )
                made.extend(uncut(batch.logits.numpy(), batch.shapes))
        except BaseException as error:
            found.set_exception(error)
        else:
            found.set_result(made)
        finally:
            self._flying.release()


def fitted(
    most: int, attempt: Callable[[int], Made], recover: Callable[[], None]
) -> tuple[int, Made]:
    """What `attempt(size)` makes, with `size` halved from `most` until it fits the memory."""
    size = most
    while True:
        try:
            return size, attempt(size)
        except torch.OutOfMemoryError:
            if size == 1:
                raise
        recover()  # only now: what failed is held by the error, which is gone here
        size //= 2


def cut(logits: Tensor, keep: Sequence[Rect | None]) -> list[Tensor]:
    """Of each of the first tiles of a batch (tiles, planes, rows, cols) the part that is wanted."""
    return [
        one if part is None else one[:, part.y : part.bottom, part.x : part.right]
        for one, part in zip(logits, keep, strict=False)  # a filled batch has more tiles
    ]


def uncut(flat: NDArray[np.float32], shapes: Sequence[Sequence[int]]) -> Logits:
    """Arrays of `shapes`, of their own memory, from their values one after the other."""
    sizes = [math.prod(shape) for shape in shapes]
    parts = np.split(flat, np.cumsum(sizes)[:-1])
    return [part.reshape(shape).copy() for part, shape in zip(parts, shapes, strict=True)]


def _normalised(batch: Tensor, scale: Normalisation) -> Tensor:
    """Pixels (tiles, rows, cols, channels) as what the network expects, channels-first."""
    if batch.dtype == torch.int16:  # uint16, by its bits
        batch = batch.to(torch.int32).bitwise_and_(0xFFFF)
    low = torch.tensor(scale.low, device=batch.device)
    gain = torch.tensor(scale.gain, device=batch.device)
    values = batch.float().sub_(low).mul_(gain).clamp_(LOWEST, HIGHEST)
    return values.permute(0, 3, 1, 2)


def _pinned_like(tensor: Tensor) -> Tensor:
    return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)


def _milliseconds(network: Callable[[Tensor], Tensor], image: Tensor) -> float:
    """Device time of one batch, after two to warm up; the compiled form is made by the first."""
    for _ in range(2):
        network(image)
    began = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    ended = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    began.record()
    for _ in range(3):
        network(image)
    ended.record()
    ended.synchronize()
    return float(began.elapsed_time(ended)) / 3
