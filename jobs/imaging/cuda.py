"""The network on a GPU: uploads, computing and downloads overlap, and the batch fits the memory.

Tiles go up as they were read (1 or 2 bytes a value) and are normalised on the device; every batch of
the grid's tiles has one shape, the last is padded, so that equal tiles give equal logits whoever shares
their batch.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

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


@dataclass
class _Batch:
    """A batch on its way: what comes down, and the event after which it is all there."""

    logits: Tensor
    finite: Tensor
    arrived: torch.cuda.Event
    count: int


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
        self._compiled: dict[tuple[str, torch.Size], Callable[[Tensor], Tensor]] = {}
        self._most: dict[tuple[int, ...], int] = {}

    @property
    def forms(self) -> list[str]:
        """How the network runs here, for the manifest."""
        return ["compiled" if self._compiled else "eager"]

    def submit(
        self,
        tiles: Sequence[Pixels],
        scale: Normalisation,
        precision: str,
        keep: Rect | None,
    ) -> Future[Logits]:
        """Logits of tiles of one shape; several batches are in flight at once."""
        found: Future[Logits] = Future()
        self._launcher.submit(self._launch, found, list(tiles), scale, precision, keep)
        return found

    def batch_size(self, tile: int, channels: int, precision: str) -> int:
        """Tiles of a side that fill `SHARE` of the device's memory, by what one of 512 px needed."""
        key = (channels, precision)
        with self._measuring:
            if key not in self._bytes_per_px:
                self._bytes_per_px[key] = self._measured(channels, precision)
        total = torch.cuda.get_device_properties(self.device).total_memory
        fitting = int(SHARE * total / (self._bytes_per_px[key] * tile * tile))
        return 1 << max(0, min(fitting, MOST_PX // (tile * tile)).bit_length() - 1)

    def compile(self, precision: str, shape: tuple[int, int, int, int]) -> bool:
        """Keep a compiled form for half precisions, if it can be made and is faster for batches
        (tiles, channels, rows, cols) of `shape`. Needs a compiler; without one nothing changes."""
        return self._launcher.submit(self._try_compiled, precision, shape).result()

    def _measured(self, channels: int, precision: str) -> float:
        image = torch.zeros(1, channels, PROBE_PX, PROBE_PX, device=self.device)
        with torch.inference_mode():
            self._network(precision)(image.to(DTYPES[precision]))  # loads the kernels
            torch.cuda.synchronize(self.device)
            torch.cuda.reset_peak_memory_stats(self.device)
            before = torch.cuda.memory_allocated(self.device)
            self._network(precision)(image.to(DTYPES[precision])).float()
            torch.cuda.synchronize(self.device)
        return (torch.cuda.max_memory_allocated(self.device) - before) / PROBE_PX**2

    def _try_compiled(self, precision: str, shape: tuple[int, int, int, int]) -> bool:
        eager = self._network(precision)
        image = torch.rand(shape, device=self.device, dtype=DTYPES[precision])
        image = image.contiguous(memory_format=torch.channels_last)
        try:
            with torch.inference_mode():
                made = torch.compile(eager, dynamic=False)
                ahead = _milliseconds(eager, image) / _milliseconds(made, image)
        except Exception:  # no compiler, no memory, an unknown device: the eager form stays
            torch.cuda.empty_cache()
            return False
        if ahead > 1.05:
            self._compiled[precision, image.shape] = made
        return ahead > 1.05

    def _launch(
        self,
        found: Future[Logits],
        tiles: list[Pixels],
        scale: Normalisation,
        precision: str,
        keep: Rect | None,
    ) -> None:
        self._flying.acquire()
        if not found.set_running_or_notify_cancel():
            self._flying.release()
            return
        try:
            batches = self._batches(tiles, scale, precision, keep)
        except BaseException as error:
            self._flying.release()
            found.set_exception(error)
        else:
            self._collector.submit(self._collect, found, batches)

    def _batches(
        self, tiles: list[Pixels], scale: Normalisation, precision: str, keep: Rect | None
    ) -> list[_Batch]:
        """All tiles on their way, in batches that halve until they fit. Square tiles, those of the
        grid, fill their batch; others, asked for one by one, go as they come."""
        shape = tiles[0].shape
        full = (
            self.batch_size(shape[0], shape[2], precision) if shape[0] == shape[1] else len(tiles)
        )
        most = self._most.get(shape, full)
        while True:
            try:
                groups = [tiles[at : at + most] for at in range(0, len(tiles), most)]
                return [self._started(group, most, scale, precision, keep) for group in groups]
            except torch.OutOfMemoryError:
                torch.cuda.synchronize(self.device)
                torch.cuda.empty_cache()
                if most == 1:
                    raise
                most = self._most[shape] = most // 2

    def _started(
        self,
        tiles: list[Pixels],
        size: int,
        scale: Normalisation,
        precision: str,
        keep: Rect | None,
    ) -> _Batch:
        compute = torch.cuda.current_stream(self.device)
        image = self._uploaded(tiles, size)
        compute.wait_stream(self._up)
        with torch.inference_mode():
            batch = _normalised(image, scale).to(DTYPES[precision])
            image.record_stream(compute)
            net = self._compiled.get((precision, batch.shape)) or self._network(precision)
            out = net(batch).float()
            if keep is not None:  # every batch has one shape: here only the way down gets shorter
                out = out[..., keep.y : keep.bottom, keep.x : keep.right]
            out = out.contiguous()
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
        return _Batch(logits, flag, arrived, len(tiles))

    def _uploaded(self, tiles: list[Pixels], size: int) -> Tensor:
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
                made.extend(batch.logits[: batch.count].numpy().copy())
        except BaseException as error:
            found.set_exception(error)
        else:
            found.set_result(made)
        finally:
            self._flying.release()


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
