"""Where pixels lie: other formats, other levels and bounds give the same places of level 0."""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray
from openslide.deepzoom import DeepZoomGenerator
from PIL import Image

from jobs.imaging.plane import Plane, plane_geometry
from jobs.imaging.slide import Slide, open_slide
from tests.imaging.slides import Pixels, write_levels
from tests.imaging.tiffs import picture


def level_0(slide: Slide, mpp: float, plane_box: tuple[int, int, int, int]) -> Pixels:
    plane = Plane(slide, plane_geometry(slide, mpp, (0.499, 0.499)))
    return np.asarray(plane.read(*plane_box))


def shift(ours: Pixels, theirs: Pixels) -> tuple[float, float]:
    """By how many pixels (x, y) one picture lies beside the other: the peak of their correlation."""
    grey = [one.astype(float).mean(axis=2) for one in (ours, theirs)]
    first, second = (np.fft.fft2(one - one.mean()) for one in grey)
    cross = np.fft.fftshift(np.fft.ifft2(first * second.conj()).real)
    row, col = (int(at) for at in np.unravel_index(int(cross.argmax()), cross.shape))
    rows, cols = (side // 2 for side in cross.shape)
    return (
        col - cols + _top(cross[row, col - 1 : col + 2]),
        row - rows + _top(cross[row - 1 : row + 2, col]),
    )


def _top(three: NDArray[np.float64]) -> float:
    """Where the parabola through three values has its top, from the middle one."""
    return float((three[0] - three[2]) / (2 * (three[0] - 2 * three[1] + three[2])))


def dicom(assets: Path) -> Path:
    return max((assets / "slides" / "cmu_dicom").iterdir(), key=lambda file: file.stat().st_size)


@pytest.mark.parametrize("mpp", [0.499, 0.998, 1.497, 1.996])
@pytest.mark.parametrize("name", ["derived_cmu_region_pyramid.tiff", "cmu_dicom"])
def test_planes_of_other_formats_lie_where_the_svs_lies(
    assets: Path, cmu: Path, name: str, mpp: float
) -> None:
    """The SVS has one level; the TIFF's planes come from its own levels, whose sides are rounded."""
    other = dicom(assets) if name == "cmu_dicom" else assets / "slides" / name
    with open_slide(cmu) as svs, open_slide(other) as slide:
        far = (int(1800 * 0.499 / mpp), int(2500 * 0.499 / mpp), 100, 100)
        for box in ((50, 60, 150, 150), far):
            ours, theirs = level_0(slide, mpp, box), level_0(svs, mpp, box)
            scale = mpp / 0.499
            assert max(abs(by) * scale for by in shift(ours, theirs)) < 1
            if name == "cmu_dicom":
                assert np.array_equal(ours, theirs)


def test_levels_whose_colours_are_wrong_are_not_used(assets: Path, cmu: Path) -> None:
    """The smaller levels of this DICOM slide say RGB and hold YCbCr, and lack the ends of tiles."""
    with open_slide(dicom(assets)) as slide, open_slide(cmu) as svs:
        assert len(slide.levels) == 1
        ours, theirs = slide.handle, svs.handle
        zooms = [
            DeepZoomGenerator(one, tile_size=254, overlap=1, limit_bounds=True)
            for one in (ours, theirs)
        ]
        tiles = [np.asarray(zoom.get_tile(10, (0, 1))).astype(int) for zoom in zooms]
    assert np.abs(tiles[0] - tiles[1]).mean() < 2


def test_bounds_move_no_pixel(tmp_path: Path, dense: Pixels) -> None:
    """Tiles that were never written give a generic TIFF bounds; coordinates stay level 0's."""
    tiles: list[bytes] = []
    for row in range(6):
        for col in range(6):
            y, x = (row - 2) * 256, (col - 1) * 256
            inside = 0 <= y < 1024 and 0 <= x < 1024
            tile = dense[y : y + 256, x : x + 256].tobytes()
            tiles.append(zlib.compress(tile) if inside else b"")
    path = tmp_path / "holes.tiff"
    tifffile.imwrite(
        path,
        iter(tiles),
        shape=(1536, 1536, 3),
        dtype=np.uint8,
        tile=(256, 256),
        photometric="rgb",
        compression="adobe_deflate",
        metadata=None,
    )
    with open_slide(path) as slide:
        assert slide.bounds == (256, 512, 1024, 1024)
        assert np.array_equal(slide.read(0, 256, 512, (1024, 1024)), dense)
        plane = Plane(slide, plane_geometry(slide, 0.998, (0.499, 0.499)))
        read = plane.read(0, 0, plane.width, plane.height)
        assert (read[:256] == 255).all()
        mean = dense.reshape(512, 2, 512, 2, 3).astype(float).mean(axis=(1, 3))
        assert np.abs(read[256:, 128:640] - mean).max() <= 0.5


def test_a_levels_place_is_exact_where_the_sides_do_not_divide(tmp_path: Path) -> None:
    pixels = picture("uint8", 1001, 1003, 3)
    small = np.asarray(Image.fromarray(pixels).resize((501, 500)))
    path = write_levels(tmp_path / "odd.tiff", [pixels, small], mpp=0.25)
    with open_slide(path) as slide:
        plane = Plane(slide, plane_geometry(slide, 0.5, (0.25, 0.25)))
        assert plane.geometry.level.index == 1
        assert (
            np.abs(plane.read(300, 300, 150, 150).astype(int) - small[300:450, 300:450]).max() <= 40
        )
