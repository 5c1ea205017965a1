"""The model plane: which level, which factor, and pixels that do not depend on the crop."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from jobs.imaging.plane import Plane, plane_geometry
from jobs.imaging.slide import open_slide
from tests.imaging.slides import Pixels, write_levels

RANDOM = np.random.default_rng(5)


@pytest.fixture(scope="module")
def pixels() -> Pixels:
    return RANDOM.integers(0, 256, (1000, 900, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def slide(pixels: Pixels, tmp_path_factory: pytest.TempPathFactory) -> Path:
    levels = [
        pixels,
        np.ascontiguousarray(pixels[::2, ::2]),
        np.ascontiguousarray(pixels[::4, ::4]),
    ]
    return write_levels(tmp_path_factory.mktemp("plane") / "three.tiff", levels, mpp=0.25)


@pytest.mark.parametrize(
    ("mpp", "level", "factor"),
    [
        (0.5, 0, 2.0),  # as fine as asked for
        (0.2505, 0, 2.0),  # within 1 % of a whole factor: snapped
        (0.25, 1, 1.0),
        (0.2, 1, 1.25),
        (0.125, 2, 1.0),
        (0.7, 0, 0.5 / 0.7),  # coarser than the model: enlarged
    ],
)
def test_the_coarsest_level_not_coarser_than_the_model_is_read(
    slide: Path, mpp: float, level: int, factor: float
) -> None:
    size = {0.5: 0.25, 0.2505: 0.2505 / 1.002}.get(mpp, mpp)
    with open_slide(slide) as opened:
        geometry = plane_geometry(opened, 0.5, (size, size))
    if mpp in (0.5, 0.2505):
        level, factor = 1, 1.0
    assert geometry.level.index == level
    assert geometry.factor_x == pytest.approx(factor)
    assert geometry.upsampled is (mpp > 0.5)


def test_a_whole_factor_is_the_mean_of_its_square(tmp_path: Path, pixels: Pixels) -> None:
    path = write_levels(tmp_path / "one.tiff", [pixels], mpp=0.25)
    with open_slide(path) as opened:
        plane = Plane(opened, plane_geometry(opened, 0.5, (0.25, 0.25)))
        assert (plane.width, plane.height) == (450, 500)
        read = plane.read(0, 0, 450, 500)
    mean = pixels.reshape(500, 2, 450, 2, 3).astype(float).mean(axis=(1, 3))
    assert np.abs(read - mean).max() <= 0.5


@pytest.mark.parametrize("mpp", [0.5, 0.25, 0.2345, 0.11, 0.61, 0.13])
def test_no_pixel_depends_on_the_crop_it_is_read_in(slide: Path, mpp: float) -> None:
    with open_slide(slide) as opened:
        plane = Plane(opened, plane_geometry(opened, 0.5, (mpp, mpp)))
        whole = plane.read(0, 0, plane.width, plane.height)
        for _ in range(12):
            x, y = int(RANDOM.integers(plane.width - 40)), int(RANDOM.integers(plane.height - 40))
            width, height = RANDOM.integers(1, 40, 2).tolist()
            crop = plane.read(x, y, width, height)
            assert np.array_equal(crop, whole[y : y + height, x : x + width])


def test_an_uneven_factor_keeps_places_and_means(tmp_path: Path) -> None:
    """A ramp stays a ramp: neither scaled nor shifted."""
    ramp = np.linspace(0, 255, 800).astype(np.uint8)
    picture = np.repeat(np.repeat(ramp[None, :, None], 300, axis=0), 3, axis=2)
    path = write_levels(tmp_path / "ramp.tiff", [picture], mpp=0.3)
    for mpp in (0.3, 0.77):
        with open_slide(path) as opened:
            plane = Plane(opened, plane_geometry(opened, 0.5, (mpp, mpp)))
            row = plane.read(0, 0, plane.width, 1)[0, :, 0].astype(float)
        factor = 0.5 / mpp
        expected = ((np.arange(plane.width) + 0.5) * factor - 0.5) * 255 / 799
        assert np.abs(row - expected)[2:-2].max() < 1.2


@pytest.mark.parametrize("size", [(1, 1), (7, 9), (20, 300)])
def test_a_slide_smaller_than_a_pixel_of_the_plane_becomes_one(
    tmp_path: Path, pixels: Pixels, size: tuple[int, int]
) -> None:
    part = np.ascontiguousarray(pixels[: size[1], : size[0]])
    path = write_levels(tmp_path / "tiny.tiff", [part], mpp=0.5)
    with open_slide(path) as opened:
        plane = Plane(opened, plane_geometry(opened, 16.0, (0.5, 0.5)))
        read = plane.read(0, 0, plane.width, plane.height)
    assert read.shape == (max(1, size[1] // 32), 1, 3)
    assert np.abs(read[0, 0] - part[:32].mean(axis=(0, 1))).max() <= 0.5
