"""Tissue masks: known blocks on glass, nothing on bare glass, files that say their scale."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import shapely
from PIL import Image

from jobs.imaging import tissue
from jobs.imaging.contract import TissueRequest
from jobs.imaging.network import Network
from jobs.imaging.pipeline import find_tissue, segment_cells
from tests.imaging import tnbc
from tests.imaging.slides import (
    GLASS,
    Pixels,
    Run,
    cell_request,
    on_glass,
    run_cells,
    silent,
    write_levels,
)

BLOCKS = ((200, 300, 500, 400), (1200, 900, 310, 617))  # x, y, width, height; level-0 pixels


def _glass(width: int, height: int) -> Pixels:
    noise = np.random.default_rng(3).integers(-3, 4, (height, width, 3))
    return (noise + GLASS).astype(np.uint8)


def _blocks(colour: tuple[int, int, int]) -> Pixels:
    picture = _glass(2000, 1800)
    for x, y, width, height in BLOCKS:
        picture[y : y + height, x : x + width] = colour
    return picture


def _find(slide: Path, folder: Path, **params: object) -> tuple[dict, np.ndarray]:
    outcome = find_tissue(TissueRequest(slide, folder, "J", "K", params), report=silent)
    assert outcome.main == "J_tissue_mask.png"
    names = {artifact.name for artifact in outcome.artifacts}
    assert names == {"J_tissue_mask.png", "tissue.geojson", "tissue.json", "tissue_qc.jpg"}
    assert all(artifact.path.is_file() for artifact in outcome.artifacts)
    mask = np.asarray(Image.open(folder / "J_tissue_mask.png"))
    assert mask.dtype == np.uint8
    assert set(np.unique(mask)) <= {0, 255}
    return json.loads((folder / "tissue.json").read_text()), mask


@pytest.mark.parametrize("colour", [(60, 60, 60), (150, 60, 140), (228, 190, 214), (0, 0, 0)])
@pytest.mark.parametrize("mpp", [0.5, 0.25])
def test_blocks_on_glass_are_found_where_they_are(tmp_path: Path, colour, mpp: float) -> None:
    picture = _blocks(colour)
    levels = [picture, np.ascontiguousarray(picture[::2, ::2])]
    slide = write_levels(tmp_path / "blocks.tiff", levels, mpp=mpp)
    facts, mask = _find(slide, tmp_path / "out")
    truth = np.zeros(picture.shape[:2], bool)
    for x, y, width, height in BLOCKS:
        truth[y : y + height, x : x + width] = True
    across, down = facts["scale_l0"]
    rows = np.minimum((np.arange(1800) / down).astype(int), mask.shape[0] - 1)
    cols = np.minimum((np.arange(2000) / across).astype(int), mask.shape[1] - 1)
    found = mask[rows][:, cols] > 0
    assert (found & truth).sum() / (found | truth).sum() > 0.9
    area = truth.sum() * mpp**2 / 1e6
    assert facts["area_mm2"] == pytest.approx(area, rel=0.1)
    assert facts["pieces"] == 2


@pytest.mark.parametrize("glass", [244, 255, 205])
def test_bare_glass_has_no_tissue_and_no_cells(net: Network, tmp_path: Path, glass: int) -> None:
    """Noise of the kind that per-tile normalisation blows up into nuclei."""
    shade = np.linspace(-4, 4, 1000)[None, :, None]
    noise = np.random.default_rng(1).normal(0, 2, (900, 1000, 3))
    picture = (noise + shade + glass).clip(0, 255).astype(np.uint8)
    slide = write_levels(tmp_path / "glass.tiff", [picture], mpp=0.5)
    facts, mask = _find(slide, tmp_path / "tissue")
    assert (mask.max(), facts["area_mm2"], facts["pieces"]) == (0, 0, 0)
    run = run_cells(slide, net.path, tmp_path / "cells")
    assert (run.outcome.summary["cells"], run.outcome.summary["tiles"]) == (0, 0)
    assert (run.cells, run.document["cells"], run.document["total_cells"]) == ([], [], 0)


def test_outlines_are_valid_and_cover_the_mask(cmu: Path, tmp_path: Path) -> None:
    facts, mask = _find(cmu, tmp_path)
    features = json.loads((tmp_path / "tissue.geojson").read_text())["features"]
    pieces = [shapely.geometry.shape(feature["geometry"]) for feature in features]
    assert all(piece.is_valid for piece in pieces)
    across, down = facts["scale_l0"]
    covered = sum(piece.area for piece in pieces) / (across * down)
    assert covered == pytest.approx((mask > 0).sum(), rel=1e-6)
    assert facts["fraction"] == pytest.approx(0.387, abs=0.02)
    assert all(feature["properties"]["objectType"] == "annotation" for feature in features)


def test_a_ring_keeps_its_hole_and_what_lies_in_it(tmp_path: Path) -> None:
    picture = _glass(1600, 1600)
    picture[200:1400, 200:1400] = (150, 60, 140)
    picture[500:1100, 500:1100] = GLASS
    picture[700:900, 700:900] = (150, 60, 140)
    slide = write_levels(tmp_path / "ring.tiff", [picture], mpp=0.5)
    facts, _ = _find(slide, tmp_path / "out")
    features = json.loads((tmp_path / "out" / "tissue.geojson").read_text())["features"]
    areas = sorted(shapely.geometry.shape(one["geometry"]).area for one in features)
    assert areas == pytest.approx([200**2, 1200**2 - 600**2], rel=0.15)
    assert facts["pieces"] == 2


def test_without_a_pixel_size_the_mask_is_made_and_no_area_is_claimed(tmp_path: Path) -> None:
    slide = write_levels(tmp_path / "blocks.tiff", [_blocks((150, 60, 140))], mpp=None)
    facts, mask = _find(slide, tmp_path / "out")
    assert mask.max() == 255
    assert (facts["area_mm2"], facts["mpp"], facts["mpp_source"]) == (None, None, "unknown")


def test_the_mask_of_an_upstream_job_decides_where_cells_are_looked_for(
    net: Network, dense: Pixels, tmp_path: Path
) -> None:
    picture = on_glass(dense[:400, :400], (64, 64), (1024, 512))
    picture[64:464, 560:960] = dense[:400, :400]
    slide = write_levels(tmp_path / "two.tiff", [picture], mpp=0.5)
    half = np.zeros((64, 128), np.uint8)
    half[:, :56] = 255
    Image.fromarray(half).save(tmp_path / "mask.png")
    both = run_cells(slide, net.path, tmp_path / "both").cells
    request = replace(
        cell_request(slide, net.path, tmp_path / "left"), tissue_mask=tmp_path / "mask.png"
    )
    left = Run(segment_cells(request, report=silent), tmp_path / "left").cells
    assert max(cell["centroid"][0] for cell in both) > 800
    assert max(cell["centroid"][0] for cell in left) < 640
    places = {tuple(cell["centroid"]) for cell in both if cell["centroid"][0] < 480}
    assert places <= {tuple(cell["centroid"]) for cell in left}


@pytest.mark.parametrize("name", ["03_4", "04_3", "10_2"])
def test_a_small_crop_of_pale_tissue_is_tissue_as_a_whole(assets: Path, name: str) -> None:
    """128 µm without any glass to compare with."""
    (tile,) = [tile for tile in tnbc.tiles(assets) if tile.name == name]
    picture = tile.rgb.reshape(16, 32, 16, 32, 3).mean(axis=(1, 3)).astype(np.uint8)
    found = tissue.find_tissue(picture, (32, 32), mpp=8.0, smallest_um2=tissue.SMALLEST_UM2)
    assert found.mask.all()


def test_a_small_crop_of_glass_with_a_speck_is_glass() -> None:
    picture = _glass(16, 16)
    picture[6:9, 6:9] = 120
    found = tissue.find_tissue(picture, (32, 32), mpp=8.0, smallest_um2=tissue.SMALLEST_UM2)
    assert not found.mask.any()
