"""The InstanSeg network: published weights in a faster, exact form, kept warm for the process.

BatchNorm is folded into the convolutions, tensors are channels-last, and what nobody asks for is not
computed. One thread of the process runs it, so that OpenMP keeps one pool of threads.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from jobs.imaging import device as devices
from jobs.imaging.contract import BadInput
from jobs.imaging.cuda import Feed, Shape
from jobs.imaging.device import DTYPES, cores, describe_device
from jobs.imaging.head import Classifier, Settings
from jobs.imaging.memory import hand_back, keep_memory
from jobs.imaging.normalisation import HIGHEST, LOWEST, Normalisation
from jobs.imaging.script import Scripted, read_head, read_network, read_script
from jobs.imaging.tiling import Rect

__all__ = ["Classifier", "Network", "Settings", "cores", "describe_device", "load", "warm"]

WARM_PX = 256
HAND_BACK_EVERY = 32
"""Windows on a CPU after which free memory goes back to the system: new pages cost a percent then."""

Pixels = NDArray[np.uint8] | NDArray[np.uint16]
Logits = list[NDArray[np.float32]]


class Network:
    """A loaded model on one device: on `device`, or on the GPU that this process sees, else the CPU.
    `logits` and `submit` may be called from any thread.

    head       how its logits become objects: settings, classifier, outputs
    channels   that an image must have; None takes any number
    halo       plane pixels round what is wanted that its logits depend on, a multiple of 8
    """

    def __init__(self, path: Path, device: torch.device | None = None) -> None:
        self.path = path
        script = read_script(path)
        self.head = read_head(script, path)
        exact = read_network(script, self.head, path)
        self.channels, self.halo = exact.channels, -(-exact.halo // 8) * 8
        self.scripted = isinstance(exact, Scripted)
        self.device = device or devices.used_device()
        self.precision = "fp32" if self.scripted else devices.best_precision(self.device)
        if self.device.type == "cuda":
            torch.backends.cudnn.allow_tf32 = False  # fp32 is the reference: all of its digits
        else:
            keep_memory()
        self.fused = self.device.type == "cpu" and not isinstance(exact, Scripted) and exact.fuse()
        self._by_precision: dict[str, nn.Module] = {"fp32": exact.to(self.device)}
        self._feed = Feed(self.device, self.eager) if self.device.type == "cuda" else None
        self._windows = 0
        self._one = ThreadPoolExecutor(1, thread_name_prefix="network", initializer=_own_threads)

    @property
    def settings(self) -> Settings:
        """The constants of post-processing."""
        return self.head.settings

    @property
    def classifier(self) -> Classifier:
        """Says whether a pixel belongs to a seed."""
        return self.head.classifier

    @property
    def outputs(self) -> tuple[str, ...]:
        """What it finds: nuclei, cells, or nuclei and cells."""
        return self.head.outputs

    @property
    def planes(self) -> int:
        """Planes of logits."""
        return self.head.planes

    def submit(
        self,
        tiles: Sequence[Pixels],
        scale: Normalisation,
        precision: str,
        keep: Sequence[Rect] | None = None,
        *,
        batch: int | None = None,
    ) -> Future[Logits]:
        """Logits (planes, rows, cols) of tiles (rows, cols, channels), all of one shape and type and
        with sides of multiples of 8.

        keep    of every tile the part, in its pixels, whose logits are wanted; the whole without it.
                Where it ends before the tile does it must leave `halo` pixels
        batch   tiles that a GPU computes at once, copies where there are fewer, so that equal tiles
                give equal logits whoever shares their batch; None computes these tiles alone
        """
        self._check(tiles[0])
        parts: Sequence[Rect | None] = [None] * len(tiles) if keep is None else keep
        if self._feed is not None:
            return self._feed.submit(tiles, scale, precision, parts, batch)
        return self._one.submit(self._on_cpu, tiles, scale, precision, parts)

    def logits(
        self, tile: Pixels, scale: Normalisation, precision: str, keep: Rect | None = None
    ) -> NDArray[np.float32]:
        """Logits (planes, rows, cols) of one tile, computed alone."""
        parts = None if keep is None else [keep]
        return self.submit([tile], scale, precision, parts).result()[0]

    def eager(self, precision: str) -> nn.Module:
        """The network itself: normalised, channels-first batches in, logits out."""
        if precision not in self._by_precision:
            copied = copy.deepcopy(self._by_precision["fp32"])
            self._by_precision[precision] = copied.to(self.device, DTYPES[precision])
        return self._by_precision[precision]

    @property
    def graph(self) -> str:
        """How the network is built from its file."""
        if self.scripted:
            return "TorchScript as in the file"
        return ", ".join(["BatchNorm folded", "channels-last"] + ["ReLU fused"] * self.fused)

    def form(self, shape: Shape, precision: str, batch: int) -> str:
        """How the network runs now for batches of tiles of `shape`, for the manifest."""
        if self._feed is None:
            return self.graph if self.scripted else f"{self.graph}, cropped"
        return f"{self.graph}, {self._feed.form(shape, precision, batch)}"

    def batch_size(self, shape: Shape, precision: str) -> int:
        """Tiles of `shape` that the device is given at once; the same for every job on it, and
        fewer from when they did not fit."""
        return 1 if self._feed is None else self._feed.batch_size(shape, precision)

    def prepare(self) -> None:
        """On a GPU, try a compiled form for the usual windows."""
        if self._feed is None or self.scripted or self.channels is None:
            return
        tile = self.default_tile(self.precision)
        shape = (tile, tile, self.channels)
        self._feed.compile(shape, self.precision, self.batch_size(shape, self.precision))

    def default_tile(self, precision: str) -> int:
        """Side of a window. On a CPU larger ones take less time and more memory: 1,024 pixels in bf16
        a seventh less than 768 and half as much memory again, which is then above 2 GB, as are 768 in
        fp32."""
        if self.device.type == "cuda":
            return 2048
        return 704 if precision == "fp32" else 768

    def precision_for(self, wanted: object) -> str:
        """The precision a job runs in: what it asks for, or the best that keeps the result here."""
        if wanted in (None, "auto"):
            return self.precision
        if wanted not in DTYPES:
            choices = '"auto", "fp32", "bf16" or, on a GPU, "fp16"'
            raise BadInput(f'"precision" is {wanted!r}: choose {choices}.')
        if wanted not in devices.precisions(self.device):
            raise BadInput(
                f'"precision" is "{wanted}", which needs a GPU: choose "auto", "fp32" or "bf16".'
            )
        if wanted != "fp32" and self.scripted:
            raise BadInput(
                f'"precision" is {wanted!r}, but this model runs as its file has it, in fp32: choose '
                '"auto" or "fp32".'
            )
        return str(wanted)

    def _check(self, tile: Pixels) -> None:
        found = tile.shape[2]
        if self.channels is not None and found != self.channels:
            raise BadInput(
                f"The image has {found} channels, and the model takes {self.channels}: choose a model "
                "for such images, for example fluorescence_nuclei_and_cells."
            )

    def _on_cpu(
        self,
        tiles: Sequence[Pixels],
        scale: Normalisation,
        precision: str,
        keep: Sequence[Rect | None],
    ) -> Logits:
        with torch.inference_mode():
            made = [
                self.run(normalised(tile, scale), precision, part)[0].numpy()
                for tile, part in zip(tiles, keep, strict=True)
            ]
        self._windows += len(tiles)
        if self._windows >= HAND_BACK_EVERY:
            self._windows = 0
            hand_back()
        return made

    def run(self, image: Tensor, precision: str, keep: Rect | None = None) -> Tensor:
        """Logits of a normalised, channels-first batch, in fp32."""
        net = self.eager(precision)
        image = image.to(DTYPES[precision])
        if isinstance(net, Scripted):
            out = net(image)
            if keep is not None:
                out = out[..., keep.y : keep.bottom, keep.x : keep.right]
        else:
            out = net(image, keep)
        return out.float().contiguous()  # type: ignore[no-any-return]


def normalised(tile: Pixels, scale: Normalisation) -> Tensor:
    """A tile (rows, cols, channels) as what the network expects: (1, channels, rows, cols)."""
    values = torch.from_numpy(np.ascontiguousarray(tile, np.float32))
    low, gain = torch.tensor(scale.low), torch.tensor(scale.gain)
    return values.sub_(low).mul_(gain).clamp_(LOWEST, HIGHEST).permute(2, 0, 1)[None]


def load(path: Path) -> Network:
    """The network of a model file, loaded once a process. Raises BadInput for another file."""
    status = path.stat() if path.is_file() else None
    return _loaded(path, status.st_mtime_ns if status else 0, status.st_size if status else 0)


@functools.lru_cache(maxsize=2)
def _loaded(path: Path, _mtime_ns: int, _size: int) -> Network:
    return Network(path)


def warm(model: Path) -> None:
    """Load the model and run everything once, so that the next job starts at full speed."""
    from jobs.imaging import postprocess

    network = load(model)
    channels = network.channels or 2
    grey = np.full((WARM_PX, WARM_PX, channels), 200, np.uint8)
    scale = Normalisation((0.0,) * channels, (255.0,) * channels)
    network.prepare()
    postprocess.warm(network.logits(grey, scale, network.precision), network)


def _own_threads() -> None:
    torch.set_num_threads(cores())
