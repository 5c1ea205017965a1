"""Slides of channels: their planes, what models see of them, and how they are shown."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import openslide
import pytest
from numpy.typing import NDArray
from openslide.deepzoom import DeepZoomGenerator

from jobs.imaging.contract import BadInput
from jobs.imaging.plane import Plane, plane_geometry
from jobs.imaging.slide import cell_channels, open_slide
from tests.imaging.tiffs import picture, write_mif, write_ome


@pytest.fixture(scope="module")
def mif(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, NDArray[Any]]:
    return write_mif(tmp_path_factory.mktemp("mif"))


@pytest.mark.parametrize("mpp", [0.5, 0.25, 0.31, 0.6])
def test_the_plane_of_channels_is_the_mean_of_its_pixels(mif, mpp: float) -> None:
    path, pixels = mif
    with open_slide(path) as slide:
        plane = Plane(slide, plane_geometry(slide, 0.5, (mpp, mpp)))
        whole = plane.read(0, 0, plane.width, plane.height)
        assert (whole.dtype, whole.shape[2]) == (np.uint16, 4)
        for x, y in ((0, 0), (101, 57)):
            assert np.array_equal(plane.read(x, y, 60, 50), whole[y : y + 50, x : x + 60])
        assert abs(whole.mean() / pixels.mean() - 1) < 0.02


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_large_factors_neither_overflow_nor_drift(tmp_path: Path, dtype: str) -> None:
    high = 1.0 if dtype == "float32" else np.iinfo(dtype).max
    write_ome(tmp_path / "h.ome.tif", [np.full((1024, 1024), high, dtype)], "YX", tile=(512, 512))
    with open_slide(tmp_path / "h.ome.tif") as slide:
        plane = Plane(slide, plane_geometry(slide, 256.0, (0.5, 0.5)))
        assert plane.geometry.factor_x == 512
        assert (plane.read(0, 0, 2, 2) == high).all()


def test_a_plane_is_read_in_parts_where_a_level_is_large(
    cmu: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_slide(cmu) as slide:
        plane = Plane(slide, plane_geometry(slide, 8.0, (0.499, 0.499)))
        whole = plane.read(0, 0, plane.width, plane.height)
        monkeypatch.setattr("jobs.imaging.plane.MOST_PIXELS", 1 << 20)
        assert np.array_equal(plane.read(0, 0, plane.width, plane.height), whole)


def test_channels_are_shown_in_their_colours_the_same_everywhere(mif) -> None:
    path, _ = mif
    with open_slide(path) as slide:
        whole = slide.read_rgb(0, 0, 0, (700, 600))
        assert (whole.dtype, whole.shape) == (np.uint8, (600, 700, 3))
        assert whole[:20].mean() < 60 < 200 < whole[-20:].mean()  # the ramp goes from top to foot
        assert np.array_equal(slide.read_rgb(0, 64, 32, (50, 40)), whole[32:72, 64:114])
        plane = Plane(slide, plane_geometry(slide, 2.0, (0.5, 0.5)))
        assert plane.read_rgb(0, 0, 100, 100).shape == (100, 100, 3)


def test_models_get_the_channels_they_are_made_for(mif, cmu: Path, tmp_path: Path) -> None:
    three = write_ome(tmp_path / "3.ome.tif", [picture("uint8", 3, 300, 300)], "CYX")
    fits = {cmu: (3, None), mif[0]: (4, None), three: (None,)}
    for path, fitting in fits.items():
        with open_slide(path) as slide:
            for wanted in (None, 2, 3, 4):
                if wanted in fitting:
                    cell_channels(slide, wanted)
                    continue
                with pytest.raises(BadInput, match=rf"{path.name} is a .* choose a model for"):
                    cell_channels(slide, wanted)


def test_deep_zoom_serves_fluorescence(mif) -> None:
    path, _ = mif
    with open_slide(path) as slide:
        slide.handle.set_cache(openslide.OpenSlideCache(1 << 20))
        zoom = DeepZoomGenerator(slide.handle, tile_size=254, overlap=1, limit_bounds=True)
        assert zoom.level_dimensions[-1] == (700, 600)
        assert np.asarray(zoom.get_tile(zoom.level_count - 1, (1, 1))).shape == (256, 256, 3)
        assert slide.handle.get_best_level_for_downsample(3.0) == 1
        assert np.asarray(zoom.get_tile(0, (0, 0))).shape == (1, 1, 3)
