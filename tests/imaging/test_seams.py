"""No seams: what tiles and blocks give is what one pass over the whole image gives (DESIGN I4, I5)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import shapely
import torch
from numpy.typing import NDArray

from jobs.imaging import contours, network, postprocess, preparation
from jobs.imaging.blocks import FolderStore
from jobs.imaging.cells import decoded
from jobs.imaging.network import Network
from jobs.imaging.normalisation import Histogram, Normalisation
from jobs.imaging.plan import Plan
from jobs.imaging.plane import Plane, plane_geometry
from jobs.imaging.segmentation import Segmenter
from jobs.imaging.slide import open_slide
from jobs.imaging.tiling import Grid, Rect, run_squares
from tests.imaging.slides import Pixels, on_glass, outlines_of, run_cells, write_levels

Objects = dict[tuple[int, int], frozenset[tuple[float, float]]]


def _one_pass(net: Network, image: Pixels, scale: Normalisation) -> Objects:
    """Root seed → ring, from the whole image at once, in fp32."""
    rows, cols = image.shape[:2]
    missing = ((0, -rows % 16), (0, -cols % 16), (0, 0))
    logits = net.logits(np.pad(image, missing, mode="reflect"), scale, "fp32")[:, :rows, :cols]
    plane = Rect(0, 0, cols, rows)
    labelled = postprocess.label_objects(
        np.ascontiguousarray(logits), plane, plane, net.head, context=net.head.context
    )
    roots = np.unique(labelled.labels)[1:]
    rings = contours.outlines(labelled.labels, roots)
    return {
        (int(x), int(y)): frozenset(map(tuple, rings.corners[first:last].tolist()))
        for (y, x), first, last in zip(
            labelled.seeds[roots - 1], rings.starts[:-1], rings.starts[1:], strict=True
        )
    }


def _in_blocks(
    net: Network, slide: Path, scale: Normalisation, *, tile: int, block: int, whole: bool = False
) -> Objects:
    """The same from windows of `tile` and blocks of `block` pixels, kept and read again."""
    found: Objects = {}
    with open_slide(slide) as opened:
        plane = Plane(opened, plane_geometry(opened, 0.5, (0.5, 0.5)))
        squares = run_squares(plane.width, plane.height)
        grid = Grid(plane.width, plane.height, tile=tile, squares=squares, block=block, whole=whole)
        plan = Plan(plane, grid, scale, net, "fp32", (0.5, 0.5), 0.0)
        store = FolderStore(slide.parent / f"{slide.stem}-{tile}-{block}")
        Segmenter(plan, store, "plan", lambda _done, _total: None).run()
        for key in store.finished("plan"):
            cells = decoded(store.get("plan", key))
            for index, (x, y) in enumerate(cells.seeds.tolist()):
                assert (x, y) not in found
                found[x, y] = frozenset(map(tuple, cells.ring(index).tolist()))
    return found


def _scale(image: NDArray[np.uint8]) -> Normalisation:
    histogram = Histogram()
    histogram.add(image)
    return histogram.normalisation()


@pytest.mark.timeout(1200)
def test_three_tile_layouts_give_the_objects_of_one_pass_pixel_for_pixel(
    net: Network, dense: Pixels, tmp_path: Path
) -> None:
    image = np.ascontiguousarray(dense[:1021, :1019])  # no multiple of anything
    slide = write_levels(tmp_path / "crop.tiff", [image], mpp=0.5)
    scale = _scale(image)
    whole = _one_pass(net, image, scale)
    assert len(whole) > 250
    for tile, block in ((768, 512), (896, 384), (1024, 256)):
        assert _in_blocks(net, slide, scale, tile=tile, block=block) == whole
    assert _in_blocks(net, slide, scale, tile=640, block=512, whole=True) == whole


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_whole_slide_in_tiles_equals_one_pass_pixel_for_pixel(net: Network, cmu: Path) -> None:
    with open_slide(cmu) as slide:
        image = slide.read(0, 0, 0, (slide.width, slide.height))
        plane = Plane(slide, plane_geometry(slide, 0.5, (0.499, 0.499)))
        scale = preparation.brightness(plane, lambda _done, _total: None)
    assert scale == _scale(image)
    whole = _one_pass(net, image, scale)
    assert len(whole) > 1500
    assert _in_blocks(net, cmu, scale, tile=768, block=1024) == whole


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_half_precision_keeps_the_objects(net: Network, cmu: Path, tmp_path: Path) -> None:
    exact = run_cells(cmu, net.path, tmp_path / "fp32", precision="fp32").document["cells"]
    fast = run_cells(cmu, net.path, tmp_path / "bf16", precision="bf16").document["cells"]
    assert _f1(exact, fast, 0.9) >= 0.995


def _f1(one: list[dict], other: list[dict], least: float) -> float:
    first = np.array([shapely.Polygon(cell["polygon"]) for cell in one])
    second = np.array([shapely.Polygon(cell["polygon"]) for cell in other])
    pairs = shapely.STRtree(first).query(second, predicate="intersects")
    a, b = second[pairs[0]], first[pairs[1]]
    iou = shapely.area(shapely.intersection(a, b)) / shapely.area(shapely.union(a, b))
    return float(2 * (iou > least).sum() / (len(first) + len(second)))


def test_a_patch_gives_the_same_cells_inside_a_tile_and_across_seams(
    net: Network, dense: Pixels, tmp_path: Path
) -> None:
    """The patch lies inside one block and window, then over the corner of four blocks."""
    patch = dense[300:620, 300:620]
    found = []
    for name, at in (("inside", (296, 296)), ("across", (1024 - 160, 1024 - 160))):
        picture = on_glass(patch, at, (1408, 1408))
        slide = write_levels(tmp_path / f"{name}.tiff", [picture], mpp=0.5)
        cells = run_cells(slide, net.path, tmp_path / name).cells
        moved = [
            {"polygon": [(x - at[0], y - at[1]) for x, y in cell["polygon"]]} for cell in cells
        ]
        found.append(outlines_of(moved))
    assert len(found[0]) > 25
    assert found[0] == found[1]


@pytest.mark.gpu
@pytest.mark.timeout(3600)
def test_a_gpu_gives_the_objects_of_the_cpu(
    net: Network, cmu: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whole jobs, on windows as production has them: more than a batch, most of them at an edge.
    Sums in another order move a threshold's last bit, so that a few outlines differ by a pixel."""
    if net.device.type != "cuda":
        pytest.skip("no CUDA device")
    slide = _mirrored(cmu, tmp_path / "mirrored.tiff")
    on_gpu = {
        precision: run_cells(slide, net.path, tmp_path / precision, precision=precision)
        for precision in ("fp32", "bf16", "fp16")
    }
    on_cpu = Network(net.path, torch.device("cpu"))
    monkeypatch.setattr(network, "load", lambda _path: on_cpu)
    reference = run_cells(slide, net.path, tmp_path / "cpu", precision="fp32")
    assert reference.manifest["numerics"]["device"] == "cpu"
    told = on_gpu["fp32"].manifest
    assert told["numerics"]["device"] != "cpu"
    assert told["numerics"]["tile"] == net.default_tile("fp32")
    assert 1 < told["numerics"]["batch"] < 12, "the 12 windows are to be several batches"
    exact, found = reference.document["cells"], on_gpu["fp32"].document["cells"]
    assert len(exact) > 5000
    assert len(outlines_of(exact) & outlines_of(found)) >= 0.98 * max(len(exact), len(found))
    assert _f1(exact, found, 0.9) >= 0.999
    for precision in ("bf16", "fp16"):
        assert _f1(exact, on_gpu[precision].document["cells"], 0.9) >= 0.995


def _mirrored(slide: Path, path: Path) -> Path:
    """Four of a slide, mirrored to one picture without a seam."""
    with open_slide(slide) as opened:
        quarter = opened.read(0, 0, 0, (opened.width, opened.height))
    half = np.concatenate([quarter, quarter[:, ::-1]], 1)
    return write_levels(path, [np.concatenate([half, half[::-1]], 0)], mpp=0.5)
