"""Whether a model file gives here what its own TorchScript gives: asked once when it is registered.

Loading a file (network.load) already compares the folded network with the file's own on a small image;
here whole objects are compared, on the model's test tensors where they lie beside it.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage

from jobs.imaging import network, postprocess
from jobs.imaging.contract import BadInput
from jobs.imaging.network import Network
from jobs.imaging.normalisation import HIGH, HIGHEST, LOW, LOWEST
from jobs.imaging.script import read_script
from jobs.imaging.tiling import Rect
from jobs.imaging.weights import describe

TEST_INPUT, TEST_OUTPUT = "test-input.npy", "test-output_instance_segmentation.npy"
LEAST_F1 = 0.99
SAME_IOU = 0.9
SYNTHETIC_PX = 256

Image = NDArray[np.float32]
Labels = NDArray[np.int64]


@dataclass(frozen=True)
class ParityReport:
    """What a model file is, and how our objects compare with those of its own code.

    channels     that it takes; None is any number
    against      what was compared with
    expected     objects there, by output
    found        objects here, by output
    f1           by output: of objects that match at IoU 0.9
    differing    pixels that are an object's here and background there, or the other way, by output
    """

    name: str
    version: str
    sha256: str
    outputs: tuple[str, ...]
    channels: int | None
    pixel_size: float
    halo: int
    graph: str
    against: str
    expected: tuple[int, ...]
    found: tuple[int, ...]
    f1: tuple[float, ...]
    differing: tuple[int, ...]


def check(path: Path) -> ParityReport:
    """Compare a model file's objects with those of its own code; takes seconds.

    raises   BadInput when it is not an InstanSeg model, or its objects do not come out the same
    """
    net = network.load(path)
    image, expected, against = _expected(net)
    found = objects(net, image)
    f1 = tuple(_f1(one, other) for one, other in zip(expected, found, strict=True))
    described = describe(path, "registered")
    if min(f1) < LEAST_F1:
        raise BadInput(
            f"{path.name} is an InstanSeg model, but labsched does not find the same objects as its "
            f"own code (F1 {min(f1):.3f} on {against}): give one that was exported with InstanSeg's "
            "default options, or use the published weights."
        )
    return ParityReport(
        described.name,
        described.version,
        described.sha256,
        net.outputs,
        net.channels,
        net.settings.pixel_size,
        net.halo,
        net.graph,
        against,
        tuple(_count(one) for one in expected),
        tuple(_count(one) for one in found),
        f1,
        tuple(
            int(((one > 0) != (other > 0)).sum())
            for one, other in zip(expected, found, strict=True)
        ),
    )


def objects(net: Network, image: Image) -> list[Labels]:
    """Label maps of a normalised image (channels, rows, cols), by output, in fp32, with the step of
    coordinates that InstanSeg's own code takes for an image of this size."""
    with torch.inference_mode():
        batch = torch.from_numpy(image[None].copy()).to(net.device)
        logits = net.run(batch, "fp32")[0].cpu().numpy()
    rows, cols = logits.shape[1:]
    plane = Rect(0, 0, cols, rows)
    labelled = postprocess.label_objects(
        logits, plane, plane, net.head, context=net.head.context, step=cols / 4 / (cols - 1)
    )
    maps = [labelled.labels] if labelled.nuclei is None else [labelled.nuclei, labelled.labels]
    return [one.astype(np.int64) for one in maps]


def normalised(raw: Image) -> Image:
    """An image (channels, rows, cols) by its own percentiles, as the models' descriptions ask."""
    low, high = np.percentile(raw, [LOW, HIGH], axis=(1, 2), keepdims=True)
    scaled = (raw - low) / (high - low + 1e-6)
    return np.asarray(scaled.clip(LOWEST, HIGHEST), np.float32)


def _expected(net: Network) -> tuple[Image, list[Labels], str]:
    """An image, the objects that the file's own code gives of it, and where they are from."""
    folder = net.path.parent
    if (folder / TEST_INPUT).is_file() and (folder / TEST_OUTPUT).is_file():
        try:
            raw, maps = np.load(folder / TEST_INPUT)[0], np.load(folder / TEST_OUTPUT)[0]
        except (ValueError, OSError, EOFError) as error:
            raise BadInput(
                f"The test tensors beside {net.path.name} cannot be read: copy them again, or remove "
                "them."
            ) from error
        return normalised(raw.astype(np.float32)), list(maps.astype(np.int64)), "its test tensors"
    image = normalised(blobs(net.channels or 2))
    with torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch, about the sparse tensors in the file's code
        maps = read_script(net.path)(torch.from_numpy(image[None].copy()))[0].numpy()
    return image, list(maps.astype(np.int64)), "a synthetic image"


def blobs(channels: int) -> Image:
    """A synthetic image (channels, rows, cols), always the same: dark discs on pale noise for RGB,
    else bright ones on dark, of two sizes."""
    random = np.random.default_rng(4)
    side = SYNTHETIC_PX
    y, x = np.mgrid[:side, :side]
    discs = np.zeros((2, side, side))
    for row, col in random.integers(12, side - 12, (60, 2)):
        away = np.hypot(y - row, x - col)
        discs[0] = np.maximum(discs[0], away < 7)
        discs[1] = np.maximum(discs[1], away < 11)
    sizes = ndimage.gaussian_filter(discs, (0, 1.5, 1.5))
    noise = random.normal(0, 0.03, (channels, side, side))
    if channels == 3:
        stain = np.array([0.55, 0.65, 0.3])[:, None, None]
        return np.asarray(230 * (0.95 - stain * sizes[0] + noise), np.float32)
    bright = sizes[np.arange(channels) % 2]
    return np.asarray(1000 * (0.1 + bright + noise), np.float32)


def _count(labels: Labels) -> int:
    return len(np.unique(labels[labels > 0]))


def _f1(one: Labels, other: Labels) -> float:
    """2 · matches / all objects, where two match that share more than 0.9 of their union."""
    counts = [_count(one), _count(other)]
    if not sum(counts):
        return 1.0
    pairs, shared = np.unique(np.stack([one.ravel(), other.ravel()]), axis=1, return_counts=True)
    both = (pairs > 0).all(axis=0)
    sizes = [np.bincount(labels.ravel()) for labels in (one, other)]
    union = sizes[0][pairs[0]] + sizes[1][pairs[1]] - shared
    return float(2 * (shared[both] / union[both] > SAME_IOU).sum() / sum(counts))
