"""The network on a GPU: what is cut, halved and filled; and, where there is one, its logits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from jobs.imaging import network
from jobs.imaging.cuda import cut, fitted, uncut
from jobs.imaging.network import Network
from jobs.imaging.normalisation import Normalisation
from jobs.imaging.script import read_script
from jobs.imaging.tiling import Rect
from jobs.imaging.weights import FLUORESCENCE, find_weights

RANDOM = np.random.default_rng(9)
PARTS = [Rect(0, 0, 352, 300), Rect(152, 152, 200, 200), Rect(200, 100, 312, 412)] * 2
"""Of tiles of 512 pixels: in the middle of a plane, and pushed inward at two of its corners."""


def test_only_the_wanted_part_of_each_tile_comes_down() -> None:
    logits = torch.rand(4, 5, 512, 512).to(torch.bfloat16, memory_format=torch.channels_last)
    parts = cut(logits, [*PARTS[:2], None])  # the fourth tile fills the batch
    flat = torch.cat([part.flatten() for part in parts]).float().numpy()
    found = uncut(flat, [part.shape for part in parts])
    assert [one.shape for one in found] == [(5, 300, 352), (5, 200, 200), (5, 512, 512)]
    for one, whole, part in zip(found, logits.float(), [*PARTS[:2], None], strict=False):
        rows, cols = part.slices(Rect(0, 0, 512, 512)) if part else (slice(None), slice(None))
        assert np.array_equal(one, whole[:, rows, cols].numpy())
        assert one.base is None or one.base.size == one.size  # nothing else stays in memory


def test_what_does_not_fit_is_halved_after_its_memory_is_free() -> None:
    steps: list[object] = []

    def attempt(size: int) -> str:
        steps.append(size)
        if size > 2:
            raise torch.OutOfMemoryError("too large")
        return "made"

    assert fitted(8, attempt, lambda: steps.append("freed")) == (2, "made")
    assert steps == [8, "freed", 4, "freed", 2]


def test_one_tile_that_does_not_fit_is_an_error() -> None:
    def attempt(size: int) -> str:
        raise torch.OutOfMemoryError(f"{size} is too large")

    with pytest.raises(torch.OutOfMemoryError, match="1 is too large"):
        fitted(2, attempt, lambda: None)


@pytest.fixture(scope="module")
def both(cache: Path) -> Network:
    """The published model of nuclei and cells, on a GPU."""
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    return network.load(find_weights(cache, name=FLUORESCENCE).path)


@pytest.mark.gpu
def test_a_gpu_gives_the_logits_of_the_file_in_every_batch(both: Network) -> None:
    tiles = [RANDOM.integers(0, 4000, (512, 512, 2), np.uint16) for _ in PARTS]
    scale = Normalisation((0.0, 0.0), (4000.0, 4000.0))
    together = both.submit(tiles, scale, "fp32", PARTS, batch=4).result()  # 4, and 2 filled up
    script = read_script(both.path).fcn
    for tile, part, kept in zip(tiles, PARTS, together, strict=True):
        with torch.inference_mode():
            expected = script(network.normalised(tile, scale))[0].numpy()
        rows, cols = part.slices(Rect(0, 0, 512, 512))
        assert np.abs(kept - expected[:, rows, cols]).max() < 5e-3
        assert np.abs(both.logits(tile, scale, "fp32") - expected).max() < 5e-3
        filled = both.submit([tile], scale, "fp32", [part], batch=4).result()[0]
        assert np.array_equal(filled, kept)  # whoever shares the batch
    for precision in ("bf16", "fp16"):
        assert np.isfinite(both.logits(tiles[0], scale, precision)).all()


@pytest.mark.gpu
def test_a_gpu_says_what_really_runs(both: Network) -> None:
    large, larger = (2048, 2048, 2), (4096, 4096, 2)
    assert both.batch_size(large, "bf16") >= both.batch_size(larger, "bf16") >= 1
    assert both.form(large, "bf16", 3).endswith("eager")  # no form is compiled for 3


@pytest.mark.gpu
def test_a_batch_that_does_not_fit_is_halved_and_said_to_be(both: Network) -> None:
    tile = RANDOM.integers(0, 4000, (1536, 1536, 2), np.uint16)
    scale, part = Normalisation((0.0, 0.0), (4000.0, 4000.0)), Rect(600, 600, 64, 64)
    full = both.batch_size(tile.shape, "fp32")
    if full == 1:
        pytest.skip("the memory holds one tile")
    torch.cuda.reset_peak_memory_stats()
    expected = both.submit([tile] * full, scale, "fp32", [part] * full, batch=full).result()
    taken = torch.cuda.max_memory_allocated()
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(both.device).total_memory
    torch.cuda.set_per_process_memory_fraction(0.75 * taken / total)
    try:
        made = both.submit([tile] * full, scale, "fp32", [part] * full, batch=full).result()
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert both.batch_size(tile.shape, "fp32") < full
    assert len(made) == full
    assert all(np.abs(one - expected[0]).max() < 5e-3 for one in made)
