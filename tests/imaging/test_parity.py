"""The network and the post-processing against the published TorchScript and its own test tensors."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from jobs.imaging import postprocess
from jobs.imaging.contract import BadInput
from jobs.imaging.network import Network, load
from jobs.imaging.tiling import Rect
from jobs.imaging.weights import PUBLISHED_SHA256, Weights


def _normalised(raw: np.ndarray) -> np.ndarray:
    """As the model's own description asks: percentiles 0.1 and 99.9 per channel, eps 1e-6."""
    low, high = np.percentile(raw, [0.1, 99.9], axis=(2, 3), keepdims=True)
    return ((raw - low) / (high - low + 1e-6)).clip(-2, 3).astype(np.float32)


def _labels(net: Network, image: np.ndarray) -> np.ndarray:
    with torch.inference_mode():
        logits = net.eager("fp32")(torch.from_numpy(image))[0].numpy()
    rows, cols = logits.shape[1:]
    plane = Rect(0, 0, cols, rows)
    step = cols / 4 / (cols - 1)  # what the published code uses for an image of this size
    return postprocess.label_nuclei(
        logits, plane, plane, net.settings, net.classifier, step=step
    ).labels


def test_the_weights_are_the_published_ones(weights: Weights) -> None:
    assert weights.sha256 == PUBLISHED_SHA256
    assert (weights.name, weights.version) == ("brightfield_nuclei", "0.1.1")


def test_the_models_own_test_tensor_gives_its_336_nuclei_pixel_for_pixel(net: Network) -> None:
    raw = np.load(net.path.parent / "test-input.npy")
    shipped = np.load(net.path.parent / "test-output_instance_segmentation.npy")[0, 0]
    labels = _labels(net, _normalised(raw))
    assert len(np.unique(labels)) - 1 == 336
    assert np.array_equal(labels, shipped.astype(np.int32))


def test_real_tissue_gives_the_labels_of_the_published_torchscript(
    net: Network, dense: np.ndarray
) -> None:
    image = _normalised(dense[:512, :512].transpose(2, 0, 1)[None].astype(np.float32))
    script = torch.jit.load(str(net.path), map_location="cpu")
    with torch.inference_mode():
        published = script(torch.from_numpy(image.copy()))[0, 0].numpy().astype(np.int32)
    labels = _labels(net, image)
    assert len(np.unique(labels)) > 50
    assert np.array_equal(labels, published)


def test_a_file_that_is_no_model_is_refused_with_a_sentence(tmp_path) -> None:
    path = tmp_path / "instanseg.pt"
    path.write_bytes(b"not a model")
    with pytest.raises(BadInput, match="cannot be loaded as a TorchScript model"):
        load(path)


def test_another_torchscript_is_refused_with_a_sentence(tmp_path) -> None:
    path = tmp_path / "other.pt"
    torch.jit.save(torch.jit.script(torch.nn.Conv2d(3, 5, 3)), str(path))
    with pytest.raises(BadInput, match="is not an InstanSeg model"):
        load(path)
