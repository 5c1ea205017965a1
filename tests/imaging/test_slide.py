"""Opening slides: pixel size and its source, the gates, and files that are no slides."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from jobs.imaging.contract import BadInput
from jobs.imaging.network import Network
from jobs.imaging.probing import probe_slide
from jobs.imaging.slide import cell_pixel_size, open_slide
from tests.imaging.slides import Pixels, run_cells, write_levels


@pytest.fixture
def grey(tmp_path: Path):
    def make(mpp: float | None) -> Path:
        pixels = np.full((300, 300, 3), 200, np.uint8)
        return write_levels(tmp_path / f"grey_{mpp}.tiff", [pixels], mpp=mpp)

    return make


def test_pixel_size_comes_from_the_metadata(cmu: Path) -> None:
    with open_slide(cmu) as slide:
        assert slide.mpp == (0.499, 0.499)
        assert slide.mpp_source == "metadata"
        assert (slide.width, slide.height, slide.objective) == (2220, 2967, 20)


def test_pixel_size_comes_from_the_tiff_tags(grey) -> None:
    with open_slide(grey(0.25)) as slide:
        assert slide.mpp == pytest.approx((0.25, 0.25), rel=1e-6)
        assert slide.mpp_source == "TIFF tags"


def test_the_request_overrides_what_the_file_says(cmu: Path) -> None:
    with open_slide(cmu, mpp=0.3) as slide:
        assert (slide.mpp, slide.mpp_source) == ((0.3, 0.3), "request")


def test_an_unknown_pixel_size_is_refused_and_says_what_to_give(grey) -> None:
    with open_slide(grey(None)) as slide:
        assert (slide.mpp, slide.mpp_source) == (None, "unknown")
        with pytest.raises(BadInput, match=r'give the pixel size .* as "mpp"'):
            cell_pixel_size(slide)


@pytest.mark.parametrize("mpp", [0.05, 1.2, 1000.0])
def test_a_pixel_size_that_shows_no_nuclei_is_refused(grey, mpp: float) -> None:
    with (
        open_slide(grey(mpp)) as slide,
        pytest.raises(BadInput, match=r"nuclei can be segmented from 0.1 to 1.0 µm"),
    ):
        cell_pixel_size(slide)


@pytest.mark.parametrize("mpp", [0.1, 0.5, 1.0])
def test_the_bounds_of_the_range_are_inside_it(grey, mpp: float) -> None:
    with open_slide(grey(mpp), mpp=mpp) as slide:
        assert cell_pixel_size(slide) == (mpp, mpp)


def test_assets_with_absurd_or_coarse_pixels_are_refused(assets: Path) -> None:
    for name in ("gc_valid_tiff.tif", "camelyon_multiframe_jpeg.dcm"):
        with open_slide(assets / "slides" / name) as slide, pytest.raises(BadInput, match="µm"):
            cell_pixel_size(slide)


def test_a_slide_without_mpp_is_accepted_with_one_in_the_request(assets: Path) -> None:
    path = assets / "slides" / "tcga-cr-7395-01a-01-ts1.svs"
    with open_slide(path) as slide, pytest.raises(BadInput, match="mpp"):
        cell_pixel_size(slide)
    assert probe_slide(path, 30, mpp=0.5).mpp == (0.5, 0.5)


def test_the_job_refuses_before_it_loads_a_model(grey, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="mpp"):
        run_cells(grey(None), tmp_path / "no such model.pt", tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_a_missing_slide_is_refused_with_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"There is no slide gone\.svs"):
        open_slide(tmp_path / "gone.svs")


def test_a_bad_mpp_in_the_request_is_refused(cmu: Path, tmp_path: Path) -> None:
    for wrong in (0, -1, "half", float("nan"), True):
        with pytest.raises(BadInput, match='"mpp"'):
            run_cells(cmu, tmp_path / "none.pt", tmp_path / "out", mpp=wrong)


def test_coordinates_are_those_of_level_0(
    net: Network, dense: Pixels, small_run, tmp_path: Path
) -> None:
    """The small slide's pixels as level 1 of a slide twice as fine: cells twice as far out."""
    fine = dense[:448, :448].repeat(2, axis=0).repeat(2, axis=1)
    levels = [np.ascontiguousarray(fine), np.ascontiguousarray(dense[:448, :448])]
    slide = write_levels(tmp_path / "two.tiff", levels, mpp=0.25)
    run = run_cells(slide, net.path, tmp_path / "out")
    plane = run.manifest["plane"]
    assert (plane["level"], plane["factor"], plane["scale_l0"]) == (1, [1.0, 1.0], [2.0, 2.0])
    ours = np.array([cell["centroid"] for cell in run.cells])
    theirs = np.array([cell["centroid"] for cell in small_run.cells]) * 2
    assert ours.shape == theirs.shape
    assert np.abs(ours - theirs).max() <= 2


@pytest.mark.parametrize("name", ["derived_cmu_region_pyramid.tiff", "cmu_dicom"])
def test_other_formats_of_the_same_slide_give_the_same_places(
    assets: Path, cmu: Path, net: Network, tmp_path: Path, name: str
) -> None:
    path = assets / "slides" / name
    if path.is_dir():
        path = max(path.iterdir(), key=lambda file: file.stat().st_size)
    box = (600, 1400)
    crops = []
    for source in (cmu, path):
        with open_slide(source) as slide:
            assert slide.mpp == pytest.approx((0.499, 0.499), rel=1e-3)
            pixels = slide.read(0, *box, (448, 448))
        crop = write_levels(tmp_path / f"{source.stem[-8:]}.tiff", [pixels], mpp=0.499)
        cells = run_cells(crop, net.path, tmp_path / source.stem[-8:]).cells
        crops.append(np.array([cell["centroid"] for cell in cells]))
    assert len(crops[0]) > 20
    distance = np.linalg.norm(crops[0][:, None] - crops[1][None], axis=2).min(axis=1)
    assert np.mean(distance < 2) > 0.9
