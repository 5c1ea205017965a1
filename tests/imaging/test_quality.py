"""How good the cells are: ground truth, normalisation, seams and precision, formats; the real model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile

from jobs.imaging import postprocess
from jobs.imaging.network import Network
from jobs.imaging.normalisation import Histogram, Normalisation
from jobs.imaging.tiling import Rect
from jobs.imaging.tissue import SMALLEST_UM2, find_tissue
from tests.imaging import tnbc
from tests.imaging.slides import GLASS, Pixels, run_cells, write_levels
from tests.imaging.test_seams import _f1, _in_blocks, _one_pass, _scale
from tests.imaging.tnbc import Labels, Score, Tile

ON_GLASS = 448
"""Side of the glass, in model pixels, on which a tile of 256 is laid: a third of it is tissue."""


@pytest.fixture(scope="session")
def ground_truth(assets: Path) -> list[Tile]:
    found = tnbc.tiles(assets)
    assert len(found) == 50
    return found


def test_nuclei_of_eleven_patients_are_those_of_the_ground_truth(
    net: Network, ground_truth: list[Tile], tmp_path: Path
) -> None:
    """One tile of each patient, side by side on one slide of 40×."""
    patients = {tile.name.split("_")[0]: tile for tile in reversed(ground_truth)}
    rgb, labels = tnbc.mosaic([*patients.values(), ground_truth[1]], 4)
    slide = write_levels(tmp_path / "mosaic.tiff", [rgb], mpp=tnbc.MPP)
    cells = run_cells(slide, net.path, tmp_path / "out").cells
    assert tnbc.score(labels, tnbc.drawn(cells, labels.shape)).f1 >= 0.8


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_f1_on_the_ground_truth(net: Network, ground_truth: list[Tile], tmp_path: Path) -> None:
    """Each tile as a slide of its own, as InstanSeg's reference value was made (F1 0.855)."""
    pooled = Score(0, 0, 0)
    for tile in ground_truth:
        slide = write_levels(tmp_path / f"{tile.name}.tiff", [tile.rgb], mpp=tnbc.MPP)
        run = run_cells(slide, net.path, tmp_path / tile.name, precision="fp32")
        pooled += tnbc.score(tile.labels, tnbc.drawn(run.cells, tile.labels.shape))
    assert pooled.hits + pooled.missed == 4056
    assert pooled.f1 >= 0.85, pooled


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_rule_of_normalisation_is_the_better_one(
    net: Network, ground_truth: list[Tile]
) -> None:
    """All pixels against those of the tissue, on tiles and on tiles that lie on glass (DESIGN I3)."""
    scores = {
        (glass, rule): normalised_score(net, ground_truth, glass=glass, tissue_only=rule)
        for glass in (False, True)
        for rule in (False, True)
    }
    everything = {rule: scores[False, rule] + scores[True, rule] for rule in (False, True)}
    assert everything[False].f1 >= everything[True].f1, scores


def normalised_score(
    net: Network, ground_truth: list[Tile], *, glass: bool, tissue_only: bool
) -> Score:
    """Pooled over the tiles, each as a slide of its own, alone or on glass."""
    pooled = Score(0, 0, 0)
    for tile in ground_truth:
        image, truth = tnbc.halved(tile.rgb), tile.labels
        if glass:
            image, truth = _laid_on_glass(image), _laid_on_nothing(truth)
        histogram = Histogram()
        histogram.add(image, _tissue(image) if tissue_only else None)
        found = _labelled(net, image, histogram.normalisation())
        pooled += tnbc.score(truth, found.repeat(2, axis=0).repeat(2, axis=1))
    return pooled


def _laid_on_glass(image: Pixels) -> Pixels:
    noise = np.random.default_rng(8).normal(GLASS, 2, (ON_GLASS, ON_GLASS, 3))
    picture = noise.clip(0, 255).astype(np.uint8)
    first = (ON_GLASS - image.shape[0]) // 2
    picture[first : first + image.shape[0], first : first + image.shape[1]] = image
    return picture


def _laid_on_nothing(labels: Labels) -> Labels:
    margin = (2 * ON_GLASS - labels.shape[0]) // 2
    return np.pad(labels, margin)


def _tissue(image: Pixels) -> np.ndarray:
    """Tissue as the pipeline finds it at 8 µm, in pixels of the image at 0.5 µm."""
    rows, cols = image.shape[0] // 16, image.shape[1] // 16
    means = image.reshape(rows, 16, cols, 16, 3).mean(axis=(1, 3)).astype(np.uint8)
    mask = find_tissue(means, (16.0, 16.0), mpp=8.0, smallest_um2=SMALLEST_UM2).mask
    return mask.repeat(16, axis=0).repeat(16, axis=1)


def _labelled(net: Network, image: Pixels, scale: Normalisation) -> Labels:
    """The label map of an image in one pass."""
    plane = Rect(0, 0, image.shape[1], image.shape[0])
    logits = np.ascontiguousarray(net.logits(image, scale, net.precision_for("auto")))
    labelled = postprocess.label_nuclei(logits, plane, plane, net.settings, net.classifier)
    return np.asarray(labelled.labels, np.int32)


@pytest.fixture(scope="session")
def mosaic(assets: Path) -> Pixels:
    """Six by five tiles at 0.5 µm: 1280 rows, 1536 columns."""
    return tnbc.halved(tnbc.mosaic(tnbc.tiles(assets)[:30], 6)[0])


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("tile", [256, 512, 768, 1024, 2048])
def test_any_tile_size_gives_the_objects_of_one_pass(
    net: Network, mosaic: Pixels, tmp_path: Path, tile: int
) -> None:
    slide = write_levels(tmp_path / "mosaic.tiff", [mosaic], mpp=0.5)
    scale = _scale(mosaic)
    whole = _one_pass(net, mosaic, scale)
    assert len(whole) > 1500
    assert _in_blocks(net, slide, scale, tile=tile, block=512) == whole


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("shift", [(8, 24), (40, 16), (128, 200)])
def test_a_grid_shifted_by_eights_gives_the_same_objects(
    net: Network, mosaic: Pixels, tmp_path: Path, shift: tuple[int, int]
) -> None:
    """What is cut off moves the grid over the picture; away from the borders nothing changes."""
    x, y = shift
    scale = _scale(mosaic)
    rest = np.ascontiguousarray(mosaic[y:, x:])
    slide = write_levels(tmp_path / "rest.tiff", [rest], mpp=0.5)
    moved = _in_blocks(net, slide, scale, tile=512, block=512)
    assert moved == _one_pass(net, rest, scale)
    before = {(left - x, top - y) for left, top in _one_pass(net, mosaic, scale)}
    assert _inside(before, rest) == _inside(set(moved), rest)
    assert len(_inside(before, rest)) > 400


def _inside(seeds: set[tuple[int, int]], image: Pixels) -> set[tuple[int, int]]:
    """Seeds whose nuclei do not depend on what lies beyond the image."""
    far, rows, cols = 256, *image.shape[:2]
    return {(x, y) for x, y in seeds if far <= x < cols - far and far <= y < rows - far}


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_half_precision_keeps_the_objects_of_the_mosaic(
    net: Network, mosaic: Pixels, tmp_path: Path
) -> None:
    slide = write_levels(tmp_path / "mosaic.tiff", [mosaic], mpp=0.5)
    exact = run_cells(slide, net.path, tmp_path / "fp32", precision="fp32").cells
    fast = run_cells(slide, net.path, tmp_path / "bf16", precision="bf16").cells
    assert _f1(exact, fast, 0.9) >= 0.995


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_every_format_of_a_slide_gives_its_cells_within_a_pixel(
    net: Network, cmu: Path, assets: Path, tmp_path: Path
) -> None:
    """A DICOM slide and a pyramid against the SVS they were made from: level-0 places."""
    dicom = max((assets / "slides" / "cmu_dicom").iterdir(), key=lambda file: file.stat().st_size)
    pyramid = assets / "slides" / "derived_cmu_region_pyramid.tiff"
    ours = _places(run_cells(cmu, net.path, tmp_path / "svs").cells)
    for name, path in (("dicom", dicom), ("pyramid", pyramid)):
        theirs = _places(run_cells(path, net.path, tmp_path / name).cells)
        near = np.linalg.norm(ours[:, None] - theirs[None], axis=2)
        assert (near.min(axis=1) <= 1).mean() >= MATCHED[name], name
        assert np.median(near.min(axis=1)) < 0.2, name


MATCHED = {"dicom": 1.0, "pyramid": 0.9}
"""DICOM holds the SVS's own pixels; the pyramid was compressed once more."""


def _places(cells: list[dict]) -> np.ndarray:
    return np.array([cell["centroid"] for cell in cells])


@pytest.mark.slow
def test_a_40x_slide_with_two_levels_gives_places_of_level_0(
    net: Network, dense: Pixels, tmp_path: Path
) -> None:
    """The same pixels as level 0 and as level 1 of a slide with pixels half as large."""
    fine = np.ascontiguousarray(dense.repeat(2, axis=0).repeat(2, axis=1))
    one = write_levels(tmp_path / "one.tiff", [dense], mpp=0.5)
    two = write_levels(tmp_path / "two.tiff", [fine, dense], mpp=0.25)
    with tifffile.TiffFile(two) as file:
        assert len(file.pages) == 2
    ours = _places(run_cells(one, net.path, tmp_path / "1").cells)
    theirs = _places(run_cells(two, net.path, tmp_path / "2").cells)
    near = np.linalg.norm(ours[:, None] * 2 - theirs[None], axis=2).min(axis=1)
    assert len(ours) > 250
    assert (near <= 1).all()
