"""What an InstanSeg TorchScript file holds: its constants, its classifier, its network.

Takes apart any file that InstanSeg exports; what labsched cannot follow exactly is refused in a
sentence. The published code itself stays at hand as the reference.
"""

from __future__ import annotations

import re
import zipfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from jobs.imaging.contract import BadInput
from jobs.imaging.head import CELLS, NUCLEI, Classifier, Head, Settings
from jobs.imaging.unet import UNet

CLOSE = 1e-3
"""By how much logits of the folded network may differ from the file's own (they reach ±20)."""

WIDEST_HALO = 192
PROBED = 8


class Scripted(nn.Module):
    """A network that is not built as ours, run as the file has it."""

    def __init__(self, fcn: nn.Module, channels: int | None, planes: int, halo: int) -> None:
        super().__init__()
        self.fcn = fcn
        self.channels, self.planes, self.halo = channels, planes, halo

    def forward(self, x: Tensor) -> Tensor:
        """Logits of a batch whose sides are multiples of 8."""
        return self.fcn(x)  # type: ignore[no-any-return]


def read_script(path: Path) -> torch.jit.ScriptModule:
    """The TorchScript of a file. Raises BadInput where it is none."""
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


def read_head(script: torch.jit.ScriptModule, path: Path) -> Head:
    """How the logits of a file's network become objects. Raises BadInput where it says that it is
    no InstanSeg model, or one that labsched does not follow."""
    settings = _settings(script, path)
    names = [f"pixel_classifier.fc{index}" for index in (1, 2, 3)]
    state = script.state_dict()
    try:
        weights = tuple(_array(state[f"{name}.weight"]) for name in names)
        biases = tuple(_array(state[f"{name}.bias"]) for name in names)
    except KeyError as error:
        raise _not_instanseg(path, f"it lacks {error}") from error
    if weights[0].shape[1] != 2 + settings.sigmas or weights[2].shape[0] != 1:
        raise _unknown(path, "its pixel classifier sees other features than offsets and widths")
    outputs = (NUCLEI, CELLS) if script.cells_and_nuclei else (_only_output(path),)
    return Head(settings, Classifier(weights, biases), outputs)


def read_network(script: torch.jit.ScriptModule, head: Head, path: Path) -> UNet | Scripted:
    """The network of a file: folded where it is built as the published ones, else as it is."""
    try:
        network: UNet | Scripted | None = _folded(script)
    except (KeyError, ValueError, RuntimeError):
        network = None
    network = network or _as_it_is(script, path)
    if network.planes != head.planes:
        raise _not_instanseg(path, f"it gives {network.planes} planes, not {head.planes}")
    return network.eval().requires_grad_(False)


def _settings(script: torch.jit.ScriptModule, path: Path) -> Settings:
    try:
        _refuse_variants(script, path)
        foreground = float(script.default_fg_threshold) if script.dim_seeds == 2 else None
        settings = Settings(
            float(script.default_mask_threshold),
            int(script.default_peak_distance),
            float(script.default_seed_threshold),
            float(script.default_overlap_threshold),
            int(script.default_window_size),
            float(script.pixel_size),
            int(script.n_sigma),
            foreground,
            _over_union(script),
        )
    except AttributeError as error:
        raise _not_instanseg(path, f"it lacks {error}") from error
    if not 8 <= settings.window <= 64 or settings.window % 8:
        raise _unknown(path, f"its window is {settings.window} pixels, not 8, 16, … 64")
    if settings.sigmas < 1 or not 0.05 <= settings.pixel_size <= 10:
        raise _unknown(path, f"its pixel size is {settings.pixel_size:g} µm")
    return settings


def _refuse_variants(script: torch.jit.ScriptModule, path: Path) -> None:
    """Raise BadInput for what post-processing here does not follow."""
    if script.dim_coords != 2:
        raise _unknown(path, f"it places pixels in {script.dim_coords} dimensions, not 2")
    if script.dim_seeds not in (1, 2):
        raise _unknown(path, f"it gives {script.dim_seeds} planes of seeds, not 1 or 2")
    if not script.default_cleanup_fragments:
        raise _unknown(path, "it keeps the fragments of its objects")
    if script.cells_and_nuclei and not script.default_resolve_cell_and_nucleus:
        raise _unknown(path, "it does not match nuclei with cells")


def _over_union(script: torch.jit.ScriptModule) -> bool:
    """Files say in their code alone by which share of two seeds they join them."""
    return "intersection_over_minimum_area" not in script.code


def _only_output(path: Path) -> str:
    """What a file of one output marks, from the description that InstanSeg exports beside it."""
    described = path.with_name("rdf.yaml")
    if not described.is_file():
        return NUCLEI
    listed = re.search(
        r"^outputs:.*?channel_names:\s*-\s*(\w+)",
        described.read_text("utf-8", "replace"),
        re.MULTILINE | re.DOTALL,
    )
    return CELLS if listed and "cell" in listed.group(1).lower() else NUCLEI


def _folded(script: torch.jit.ScriptModule) -> UNet | None:
    """Our network of the file's tensors, if it gives what the file's own does."""
    state = {
        name.removeprefix("fcn."): value.float()
        for name, value in script.state_dict().items()
        if name.startswith("fcn.")
    }
    network = UNet(state).eval()
    with torch.inference_mode():
        noise = torch.rand(
            (1, network.channels or 2, 64, 64), generator=torch.Generator().manual_seed(1)
        )
        if not torch.allclose(network(noise), script.fcn(noise), rtol=0, atol=CLOSE):
            return None
    return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def _as_it_is(script: torch.jit.ScriptModule, path: Path) -> Scripted:
    try:
        fcn = script.fcn
    except AttributeError as error:
        raise _not_instanseg(path, f"it lacks {error}") from error
    for channels in (None, 3, 1):
        try:
            with torch.inference_mode():
                planes = int(fcn(torch.zeros(1, channels or 5, 64, 64)).shape[1])
        except RuntimeError:
            continue
        return Scripted(fcn, channels, planes, _seen(fcn, channels or 2, path))
    raise _unknown(path, "its network takes neither RGB, nor one channel, nor any number of them")


def _seen(fcn: nn.Module, channels: int, path: Path) -> int:
    """How far the network looks: how far one square that is not a number spreads."""
    side = 2 * WIDEST_HALO + PROBED
    image = torch.rand((1, channels, side, side), generator=torch.Generator().manual_seed(1))
    image[..., WIDEST_HALO : WIDEST_HALO + PROBED, WIDEST_HALO : WIDEST_HALO + PROBED] = torch.nan
    with torch.inference_mode():
        reached = fcn(image).isnan().flatten(0, 1).any(0).nonzero()
    first, last = int(reached.min()), int(reached.max())
    if first == 0 or last == side - 1:
        raise _unknown(path, "its network looks at the whole image at once, and so cannot do tiles")
    return max(WIDEST_HALO - first, last + 1 - WIDEST_HALO - PROBED)


def _array(tensor: Tensor) -> np.ndarray:
    return np.ascontiguousarray(tensor.float().numpy())


def _not_instanseg(path: Path, why: str) -> BadInput:
    return BadInput(
        f"{path} is not an InstanSeg model ({why}): give an InstanSeg TorchScript file, or unset "
        "INSTANSEG_MODEL to use the published weights."
    )


def _unknown(path: Path, why: str) -> BadInput:
    return BadInput(
        f"{path} is an InstanSeg model of a kind that labsched does not run ({why}): give one "
        "that was exported with InstanSeg's default options, or use the published weights."
    )
