"""Both published models, and what is made of a user's: parity, ownership of pairs, refusals."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from jobs.imaging import network, parity, postprocess
from jobs.imaging.contours import outlines, outlines_inside
from jobs.imaging.contract import BadInput
from jobs.imaging.head import Head
from jobs.imaging.network import Network
from jobs.imaging.normalisation import Normalisation
from jobs.imaging.pipeline import segment_cells
from jobs.imaging.script import _seen, read_network, read_script
from jobs.imaging.tiling import Rect
from jobs.imaging.weights import FLUORESCENCE, find_weights
from tests.imaging.slides import cell_request, silent

RANDOM = np.random.default_rng(8)

Pair = tuple[frozenset[tuple[int, int]], frozenset[tuple[int, int]]]
"""Pixels of a cell, and of its nucleus."""


@pytest.fixture(scope="session")
def both(cache: Path) -> Network:
    """The published model of nuclei and cells."""
    return network.load(find_weights(cache, name=FLUORESCENCE).path)


def test_the_fluorescence_models_test_tensor_gives_its_objects_pixel_for_pixel(
    both: Network,
) -> None:
    report = parity.check(both.path)
    assert (report.against, report.expected) == ("its test tensors", (25, 30))
    assert report.found == report.expected
    assert (report.f1, report.differing) == ((1.0, 1.0), (0, 0))
    assert (report.outputs, report.channels) == (("nuclei", "cells"), None)


def test_a_file_without_test_tensors_is_compared_on_a_synthetic_image(
    net: Network, tmp_path: Path
) -> None:
    alone = tmp_path / "mine.pt"
    alone.symlink_to(net.path)
    report = parity.check(alone)
    assert report.against == "a synthetic image"
    assert report.expected == report.found
    assert report.expected[0] > 30
    assert report.f1 == (1.0,)


def test_a_brightfield_slide_is_segmented_with_a_warning(
    small_slide: Path, both: Network, tmp_path: Path
) -> None:
    request = cell_request(small_slide, both.path, tmp_path / "out")
    assert "brightfield slide" in str(segment_cells(request, report=silent).summary["warning"])


@pytest.mark.parametrize("channels", [1, 2, 5])
def test_any_number_of_channels_gives_the_logits_of_the_file(both: Network, channels: int) -> None:
    image = torch.rand(2, channels, 64, 96)
    script = read_script(both.path)
    with torch.inference_mode():
        expected = script.fcn(image)
        assert torch.allclose(both.run(image, "fp32"), expected, rtol=0, atol=1e-3)
        turned = both.run(image.flip(1), "fp32")
    assert torch.allclose(turned, expected, rtol=0, atol=1e-3)  # channels have no order


def test_what_is_not_kept_is_not_computed_and_the_rest_is_the_same_to_the_last_bit(
    net: Network, both: Network
) -> None:
    for model, channels in ((net, 3), (both, 2)):
        side = 2 * model.halo + 72
        tile = RANDOM.integers(0, 255, (side, side + 40, channels), np.uint8)
        scale = Normalisation((3.0,) * channels, (250.0,) * channels)
        keep = Rect(model.halo + 3, model.halo, 65, 70)
        whole = model.logits(tile, scale, "fp32")
        kept = model.logits(tile, scale, "fp32", keep)
        assert np.array_equal(kept, whole[:, keep.y : keep.bottom, keep.x : keep.right])


def test_every_tile_keeps_a_part_of_its_own(net: Network) -> None:
    side = net.halo + 72
    tiles = [RANDOM.integers(0, 255, (side, side, 3), np.uint8) for _ in range(2)]
    scale = Normalisation((0.0,) * 3, (255.0,) * 3)
    parts = [Rect(0, 0, 72, 60), Rect(net.halo, net.halo, 72, 72)]  # of two corners of a plane
    made = net.submit(tiles, scale, "fp32", parts, batch=8).result()
    for tile, part, kept in zip(tiles, parts, made, strict=True):
        whole = net.logits(tile, scale, "fp32")
        assert np.array_equal(kept, whole[:, part.y : part.bottom, part.x : part.right])


@pytest.mark.slow
def test_the_network_sees_no_farther_than_its_halo(net: Network, both: Network) -> None:
    for model, channels in ((net, 3), (both, 2)):
        exact = read_network(read_script(model.path), model.head, model.path)
        assert _seen(exact, channels, model.path) <= exact.halo


def test_sixteen_bits_are_read_as_they_are(both: Network) -> None:
    tile = RANDOM.integers(0, 65_535, (64, 64, 2), np.uint16)
    scale = Normalisation((10.0, 0.0), (60_000.0, 65_535.0))
    expected = both.run(network.normalised(tile, scale), "fp32")[0].numpy()
    assert np.isfinite(expected).all()
    # the network's own thread adds up in another order where it has another number of threads
    assert np.allclose(both.logits(tile, scale, "fp32"), expected, atol=1e-5)


def test_an_image_with_other_channels_is_refused(net: Network) -> None:
    scale = Normalisation((0.0, 0.0), (255.0, 255.0))
    with pytest.raises(BadInput, match="has 2 channels, and the model takes 3"):
        net.logits(np.zeros((64, 64, 2), np.uint8), scale, "fp32")


def test_a_precision_that_the_device_lacks_is_refused(net: Network) -> None:
    if net.device.type == "cuda":
        pytest.skip("a GPU has all three")
    with pytest.raises(BadInput, match="needs a GPU"):
        net.precision_for("fp16")


# --- nuclei and cells ---------------------------------------------------------------------


@pytest.fixture(scope="session")
def mosaic(both: Network) -> NDArray[np.float32]:
    """Logits of the model's test image, mirrored to 512 × 512 pixels."""
    raw = np.load(both.path.parent / parity.TEST_INPUT)[0]
    image = parity.normalised(raw)
    row = np.concatenate([image, image[..., ::-1]], 2)
    tiled = np.concatenate([row, row[:, ::-1]], 1)
    with torch.inference_mode():
        return both.run(torch.from_numpy(tiled[None].copy()), "fp32")[0].numpy()


def _pairs(labelled: postprocess.Labelled, own: NDArray[np.int32]) -> dict[tuple[Any, ...], Pair]:
    assert labelled.nuclei is not None
    origin = np.array([labelled.region.y, labelled.region.x])
    parts = [_parts(labels, origin) for labels in (labelled.labels, labelled.nuclei)]
    found = {}
    for root, bare in zip(own.tolist(), labelled.bare(own).tolist(), strict=True):
        name = (*(labelled.seeds[root] + origin).tolist(), bare)
        assert name not in found
        found[name] = (parts[0][root + 1], parts[1].get(root + 1, frozenset()))
    return found


def _parts(
    labels: NDArray[np.int32], origin: NDArray[np.int64]
) -> dict[int, frozenset[tuple[int, int]]]:
    at = np.argwhere(labels)
    order = np.argsort(labels[tuple(at.T)], kind="stable")
    present, first = np.unique(labels[tuple(at[order].T)], return_index=True)
    groups = np.split(at[order] + origin, first[1:])
    return {
        int(label): frozenset(map(tuple, group.tolist()))
        for label, group in zip(present, groups, strict=True)
    }


@pytest.mark.parametrize("side", [300, 130])
def test_blocks_give_the_pairs_of_one_pass(
    both: Network, mosaic: NDArray[np.float32], side: int
) -> None:
    plane = Rect(0, 0, 512, 512)
    whole = postprocess.label_objects(mosaic, plane, plane, both.head, context=both.head.context)
    expected = _pairs(whole, whole.owned(plane))
    assert len(expected) > 100
    assert sum(1 for _, nucleus in expected.values() if not nucleus) > 10
    assert all(nucleus <= cell for cell, nucleus in expected.values())
    found: dict[tuple[Any, ...], Pair] = {}
    for block in _blocks(plane, side):
        found |= _in_block(mosaic, plane, block, both.head)
    assert found == expected


def _blocks(plane: Rect, side: int) -> Iterator[Rect]:
    for y in range(0, plane.height, side):
        for x in range(0, plane.width, side):
            yield Rect(x, y, side, side).clipped(plane)


def _in_block(
    logits: NDArray[np.float32], plane: Rect, block: Rect, head: Head
) -> dict[tuple[Any, ...], Pair]:
    context = head.context
    while True:
        region = block.grown(context).clipped(plane)
        rows, cols = region.slices(plane)
        part = np.ascontiguousarray(logits[:, rows, cols])
        labelled = postprocess.label_objects(part, region, plane, head, context=context)
        if not labelled.doubtful(block):
            return _pairs(labelled, labelled.owned(block))
        context += postprocess.REACH


@pytest.mark.filterwarnings("ignore:Sparse")
def test_pairs_are_those_of_instansegs_own_code(monkeypatch: pytest.MonkeyPatch) -> None:
    """On label maps made to be awkward: several nuclei to a cell, of equal size, none, astride."""
    for plots in ("seaborn", "umap"):  # that module draws, too; what it draws with is not installed
        monkeypatch.setitem(sys.modules, plots, ModuleType(plots))
    from instanseg.utils.biological_utils import resolve_cell_and_nucleus_boundaries

    for _ in range(40):
        nuclei, cells = _scattered(40, 7), _scattered(25, 20)
        nuclei[:12, :12], cells[:10, :10] = 0, 26  # without any pair InstanSeg drops all objects
        nuclei[2:6, 2:6] = 41
        labels = torch.from_numpy(np.stack([nuclei, cells])[None].astype(np.float32))
        expected = resolve_cell_and_nucleus_boundaries(labels)[0].numpy().astype(np.int64)
        paired = postprocess._paired(Rect(0, 0, 96, 96), _kind(nuclei), _kind(cells), 1000)
        assert paired.nuclei is not None
        found = np.stack([paired.nuclei, paired.labels]).astype(np.int64)
        together = np.unique(np.stack([expected.ravel(), found.ravel()]), axis=1)
        assert together.shape[1] == len(np.unique(expected)) == len(np.unique(found))


def _scattered(count: int, size: int) -> NDArray[np.int32]:
    labels = np.zeros((96, 96), np.int32)
    for label in range(1, count + 1):
        y, x = RANDOM.integers(0, 96 - size, 2)
        labels[y : y + RANDOM.integers(3, size), x : x + RANDOM.integers(3, size)] = label
    return labels


def _kind(labels: NDArray[np.int32]) -> postprocess._Kind:
    count = int(labels.max())
    seeds = np.zeros((count, 2), np.int32)
    return postprocess._Kind(
        labels, seeds, np.arange(count, dtype=np.int32), np.hstack([seeds, seeds])
    )


def test_a_nucleus_is_outlined_inside_its_cell_and_a_cell_may_have_none() -> None:
    cells, nuclei = np.zeros((20, 40), np.int32), np.zeros((20, 40), np.int32)
    cells[2:12, 2:12], cells[2:12, 20:30] = 1, 2
    nuclei[4:8, 4:8] = 1
    nuclei[16, 16] = 1  # a fragment outside
    wanted = np.array([1, 2], np.int32)
    outer = outlines(cells, wanted)
    inner = outlines_inside(outer, nuclei, wanted)
    assert inner.area_px.tolist() == [16, 0]
    assert np.diff(inner.starts).tolist() == [4, 0]


# --- a user's files -----------------------------------------------------------------------


class _Other(torch.nn.Module):
    """Stands for a user's export: InstanSeg's constants round a network of another build."""

    def __init__(self, fcn: torch.nn.Module, **constants: Any) -> None:
        super().__init__()
        self.fcn = fcn
        self.pixel_classifier = torch.nn.Module()
        for index, (inputs, outputs) in enumerate([(4, 5), (5, 5), (5, 1)], 1):
            setattr(self.pixel_classifier, f"fc{index}", torch.nn.Linear(inputs, outputs))
        self.default_mask_threshold, self.default_peak_distance = 0.53, 5
        self.default_seed_threshold, self.default_overlap_threshold = 0.7, 0.3
        self.default_window_size, self.pixel_size, self.n_sigma = 32, 0.25, 2
        self.dim_coords, self.dim_seeds, self.default_fg_threshold = 2, 1, 0.5
        self.default_cleanup_fragments, self.default_resolve_cell_and_nucleus = True, True
        self.cells_and_nuclei = False
        for name, value in constants.items():
            setattr(self, name, value)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fcn(x)  # type: ignore[no-any-return]


def _saved(folder: Path, fcn: torch.nn.Module, **constants: Any) -> Path:
    path = folder / "other.pt"
    torch.jit.save(torch.jit.script(_Other(fcn, **constants).eval()), str(path))
    return path


def test_a_network_of_another_build_runs_as_the_file_has_it(tmp_path: Path) -> None:
    fcn = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 5, padding=2), torch.nn.ReLU(), torch.nn.Conv2d(8, 5, 3, padding=1)
    )
    other = Network(_saved(tmp_path, fcn))
    assert other.graph == "TorchScript as in the file"
    assert (other.channels, other.halo, other.settings.pixel_size) == (3, 8, 0.25)
    image = torch.rand(1, 3, 32, 32)
    with torch.inference_mode():
        assert torch.equal(other.run(image, "fp32"), fcn(image))
    with pytest.raises(BadInput, match="runs as its file has it, in fp32"):
        other.precision_for("bf16")


@pytest.mark.parametrize(
    ("constants", "sentence"),
    [
        ({"dim_coords": 3}, "places pixels in 3 dimensions, not 2"),
        ({"dim_seeds": 3}, "gives 3 planes of seeds"),
        ({"n_sigma": 3}, "sees other features"),
        ({"default_window_size": 128}, "its window is 128 pixels"),
        ({"default_cleanup_fragments": False}, "keeps the fragments"),
        ({"cells_and_nuclei": True}, "gives 5 planes, not 10"),
    ],
)
def test_a_model_that_cannot_be_followed_is_refused_with_a_sentence(
    constants: dict[str, Any], sentence: str, tmp_path: Path
) -> None:
    fcn = torch.nn.Conv2d(3, 5, 3, padding=1)
    with pytest.raises(BadInput, match=sentence):
        Network(_saved(tmp_path, fcn, **constants))


def test_a_network_that_looks_at_the_whole_image_is_refused(tmp_path: Path) -> None:
    fcn = torch.nn.Sequential(
        torch.nn.Conv2d(3, 5, 3, padding=1), torch.nn.InstanceNorm2d(5, track_running_stats=False)
    )
    with pytest.raises(BadInput, match="cannot do tiles"):
        Network(_saved(tmp_path, fcn))
