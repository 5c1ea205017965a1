"""The InstanSeg network: published weights in a faster, exact form, kept warm for the process.

The TorchScript file carries an unfolded U-Net and the small classifier that post-processing uses.
Here BatchNorm is folded into the convolutions and tensors are channels-last. One thread of the
process runs it, so that OpenMP keeps one pool of threads.
"""

from __future__ import annotations

import copy
import functools
import os
import platform
import re
import zipfile
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from jobs.imaging.contract import BadInput
from jobs.imaging.normalisation import Normalisation
from jobs.imaging.unet import UNet

LOGITS = 5
LOWEST, HIGHEST = -2.0, 3.0
"""Where InstanSeg clips its normalised input."""


@dataclass(frozen=True)
class Settings:
    """The constants of post-processing that the model file carries."""

    mask_threshold: float
    peak_distance: int
    seed_threshold: float
    overlap_threshold: float
    window: int
    pixel_size: float


@dataclass(frozen=True)
class Classifier:
    """Weights of the 4-5-5-1 perceptron that says whether a pixel belongs to a seed."""

    weights: tuple[NDArray[np.float32], ...]
    biases: tuple[NDArray[np.float32], ...]


class Network:
    """A loaded model on one device. `logits` may be called from any thread."""

    def __init__(self, path: Path) -> None:
        self.path = path
        script = _script(path)
        state = {name: value.float() for name, value in script.state_dict().items()}
        self.settings = _settings(script, path)
        self.classifier = _classifier(state, path)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.precision = _best_precision(self.device)
        if self.device.type == "cuda":
            torch.backends.cudnn.allow_tf32 = False  # fp32 is the reference: all of its digits
        exact = _eager(state, path)
        self.fused = self.device.type == "cpu" and exact.fuse()
        self._by_precision: dict[str, nn.Module] = {"fp32": exact.to(self.device)}
        self._one = ThreadPoolExecutor(1, thread_name_prefix="network", initializer=_own_threads)

    def submit(
        self, tiles: list[NDArray[np.uint8]], scale: Normalisation, precision: str
    ) -> Future[list[NDArray[np.float32]]]:
        """Logits (5, rows, cols) of RGB tiles, all of one shape and with sides of multiples of 8."""
        return self._one.submit(self._halving, tiles, scale, precision)

    def logits(
        self, tile: NDArray[np.uint8], scale: Normalisation, precision: str
    ) -> NDArray[np.float32]:
        """Logits (5, rows, cols) of one RGB tile."""
        return self.submit([tile], scale, precision).result()[0]

    def _halving(
        self, tiles: list[NDArray[np.uint8]], scale: Normalisation, precision: str
    ) -> list[NDArray[np.float32]]:
        try:
            return self._forward(tiles, scale, precision)
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
            if len(tiles) == 1:
                raise
        half = len(tiles) // 2
        return [
            *self._halving(tiles[:half], scale, precision),
            *self._halving(tiles[half:], scale, precision),
        ]

    def _forward(
        self, tiles: list[NDArray[np.uint8]], scale: Normalisation, precision: str
    ) -> list[NDArray[np.float32]]:
        with torch.inference_mode():
            batch = torch.from_numpy(np.stack(tiles)).to(self.device).float()
            low = torch.tensor(scale.low, device=self.device)
            gain = torch.tensor(scale.gain, device=self.device)
            batch = ((batch - low) * gain).clamp_(LOWEST, HIGHEST).permute(0, 3, 1, 2)
            net = self.eager(precision)
            out = net(batch.to(DTYPES[precision])).float().contiguous().cpu().numpy()
        return list(out)

    def eager(self, precision: str) -> nn.Module:
        """The network itself: normalised, channels-first batches in, logits out."""
        if precision not in self._by_precision:
            copied = copy.deepcopy(self._by_precision["fp32"])
            self._by_precision[precision] = copied.to(self.device, DTYPES[precision])
        return self._by_precision[precision]

    @property
    def graph(self) -> str:
        """The form of the network that runs, for the manifest."""
        return "BatchNorm folded, channels-last" + (", ReLU fused" if self.fused else "")

    def default_tile(self, precision: str) -> int:
        """Side of a window: what measured best against the halo's cost (bf16 suffers from caches
        too small for large windows, fp32 is bound by arithmetic)."""
        if self.device.type == "cuda":
            return 2048
        return 768 if precision == "bf16" else 1024

    def precision_for(self, wanted: object) -> str:
        """The precision a job runs in: what it asks for, or the best that keeps the result here."""
        if wanted in (None, "auto"):
            return self.precision
        if wanted not in DTYPES:
            raise BadInput(f'"precision" is {wanted!r}: choose "auto", "fp32" or "bf16".')
        return str(wanted)


DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@functools.lru_cache(maxsize=2)
def load(path: Path) -> Network:
    """The network of a model file, loaded once a process. Raises BadInput for another file."""
    return Network(path)


def warm(model: Path) -> None:
    """Load the model and run everything once, so that the next job starts at full speed."""
    from jobs.imaging import postprocess

    network = load(model)
    grey = np.full((256, 256, 3), 200, np.uint8)
    scale = Normalisation((0.0, 0.0, 0.0), (255.0, 255.0, 255.0))
    logits = network.logits(grey, scale, network.precision)
    postprocess.warm(logits, network)


def describe_device() -> dict[str, str | int]:
    """What the network runs on, for the manifest and the operator's page."""
    described: dict[str, str | int] = {
        "machine": platform.machine(),
        "torch": torch.__version__,
        "threads": cores(),
        "precision": _best_precision(torch.device("cpu")),
        "device": "cpu",
        "cpu_flags": " ".join(cpu_flags()),
    }
    if torch.cuda.is_available():
        described |= {"device": torch.cuda.get_device_name(0), "precision": "bf16"}
    return described


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cpu_flags() -> list[str]:
    """The instruction sets that decide how fast the network is on this CPU."""
    wanted = {"avx2", "avx512f", "avx512_bf16", "amx_bf16", "amx_tile", "asimd", "bf16"}
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return []
    line = re.search(r"^(?:flags|Features)\s*:(.*)$", text, re.MULTILINE)
    return sorted(wanted & set(line.group(1).split())) if line else []


def _own_threads() -> None:
    torch.set_num_threads(cores())


def _best_precision(device: torch.device) -> str:
    """bf16 where the device computes it natively; it costs no accuracy (INSTANSEG.md §0)."""
    native = device.type == "cuda" or "amx_bf16" in cpu_flags()
    return "bf16" if native else "fp32"


def _script(path: Path) -> torch.jit.ScriptModule:
    try:
        script: torch.jit.ScriptModule = torch.jit.load(  # type: ignore[no-untyped-call]
            str(path), map_location="cpu"
        ).eval()
    except (RuntimeError, ValueError, OSError, zipfile.BadZipFile) as error:
        raise BadInput(
            f"{path} cannot be loaded as a TorchScript model: give an InstanSeg file "
            "(instanseg.pt), or unset INSTANSEG_MODEL to use the published weights."
        ) from error
    return script


def _not_instanseg(path: Path, why: str) -> BadInput:
    return BadInput(
        f"{path} is not an InstanSeg brightfield nuclei model ({why}): give such a file, or unset "
        "INSTANSEG_MODEL to use the published weights."
    )


def _settings(script: torch.jit.ScriptModule, path: Path) -> Settings:
    try:
        if script.cells_and_nuclei or script.dim_seeds != 1 or script.dim_coords != 2:
            raise _not_instanseg(path, "it has more outputs than nuclei")
        return Settings(
            float(script.default_mask_threshold),
            int(script.default_peak_distance),
            float(script.default_seed_threshold),
            float(script.default_overlap_threshold),
            int(script.default_window_size),
            float(script.pixel_size),
        )
    except AttributeError as error:
        raise _not_instanseg(path, f"it lacks {error}") from error


def _classifier(state: dict[str, Tensor], path: Path) -> Classifier:
    names = [f"pixel_classifier.fc{index}" for index in (1, 2, 3)]
    try:
        weights = tuple(np.ascontiguousarray(state[f"{name}.weight"].numpy()) for name in names)
        biases = tuple(np.ascontiguousarray(state[f"{name}.bias"].numpy()) for name in names)
    except KeyError as error:
        raise _not_instanseg(path, f"it lacks {error}") from error
    if [weight.shape for weight in weights] != [(5, 4), (5, 5), (1, 5)]:
        raise _not_instanseg(path, "its pixel classifier has another shape")
    return Classifier(weights, biases)


def _eager(state: dict[str, Tensor], path: Path) -> UNet:
    inner = {name[4:]: value for name, value in state.items() if name.startswith("fcn.")}
    try:
        net = UNet(inner)
    except (KeyError, ValueError, AttributeError) as error:
        raise _not_instanseg(path, f"it lacks {error}") from error
    if (net.inputs, net.planes) != (3, LOGITS):
        raise _not_instanseg(path, "it does not take RGB or give five planes")
    net.eval().requires_grad_(False).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return net
