"""The smaller rooms: normalisation, tiling, weights, command line, and what they may import."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from jobs.imaging import memory
from jobs.imaging.__main__ import main
from jobs.imaging.contract import BadInput
from jobs.imaging.normalisation import Histogram, sample_blocks
from jobs.imaging.tiling import ALIGN, CONTEXT, HALO, SQUARE, Grid, Rect, squares_of_mask
from jobs.imaging.weights import FLUORESCENCE, MissingWeights, find_weights
from tests.imaging.conftest import REPOSITORY

RANDOM = np.random.default_rng(2)


def test_percentiles_of_counts_are_those_of_the_pixels() -> None:
    pixels = RANDOM.normal(150, 60, (301, 207, 3)).clip(0, 255).astype(np.uint8)
    histogram = Histogram()
    for row in range(0, 301, 50):
        histogram.add(pixels[row : row + 50])
    found = histogram.normalisation()
    expected = np.percentile(pixels, [0.1, 99.9], axis=(0, 1))
    assert np.allclose([found.low, found.high], expected)


def test_a_flat_picture_is_not_divided_by_nothing() -> None:
    histogram = Histogram()
    histogram.add(np.full((10, 10, 3), 7, np.uint8))
    assert np.isfinite(histogram.normalisation().gain).all()


def test_sixteen_bits_and_any_number_of_channels_are_counted_and_a_mask_leaves_pixels_out() -> None:
    pixels = RANDOM.integers(0, 65_536, (64, 80, 5), np.uint16)
    where = RANDOM.random((64, 80)) < 0.3
    histogram = Histogram(5, np.uint16)
    histogram.add(pixels, where)
    found = histogram.normalisation()
    expected = np.percentile(pixels[where], [0.1, 99.9], axis=0)
    assert np.allclose([found.low, found.high], expected)
    assert len(found.gain) == 5


def test_pixels_without_fixed_values_are_refused() -> None:
    with pytest.raises(BadInput, match="pixels are float32"):
        Histogram(1, np.float32)


def test_large_slides_are_sampled_in_an_order_that_is_always_the_same() -> None:
    assert len(sample_blocks(8192, 8192)) == 256
    blocks = sample_blocks(40_000, 30_000)
    assert len(set(blocks)) == 256
    assert blocks == sample_blocks(40_000, 30_000)
    assert max(block.right for block in blocks) > 36_000


@pytest.mark.parametrize("tile", [256, 512, 768, 1024])
def test_windows_sit_on_the_grid_hold_their_halo_and_cover_what_blocks_need(tile: int) -> None:
    width, height = 3001, 1777
    squares = RANDOM.random((-(-height // SQUARE), -(-width // SQUARE))) < 0.2
    grid = Grid(width, height, tile=tile, squares=squares)
    for strip in grid.rows():
        for block in strip:
            covered = np.zeros((height, width), bool)
            for window in grid.windows(block):
                _check_window(grid, window.area, window.keep, tile)
                rows, cols = window.keep.slices(grid.plane)
                covered[rows, cols] = True
            needed = np.zeros_like(covered)
            for row, col in np.argwhere(squares):
                square = Rect(col * SQUARE, row * SQUARE, SQUARE, SQUARE)
                part = square.grown(CONTEXT).clipped(grid.region(block))
                if square.clipped(block).width and square.clipped(block).height:
                    rows, cols = part.slices(grid.plane)
                    needed[rows, cols] = True
            assert not (needed & ~covered).any()


def _check_window(grid: Grid, area: Rect, keep: Rect, tile: int) -> None:
    assert area.x % ALIGN == area.y % ALIGN == area.width % ALIGN == area.height % ALIGN == 0
    assert area == area.clipped(grid.padded)
    assert max(area.width, area.height) <= tile + 64
    for low, start in ((keep.x, area.x), (keep.y, area.y)):
        assert start <= max(0, low - HALO)
    assert area.right >= min(grid.padded.width, keep.right + HALO)
    assert area.bottom >= min(grid.padded.height, keep.bottom + HALO)


def test_every_run_square_is_in_exactly_one_block() -> None:
    grid = Grid(30_000, 5_000, tile=1024, squares=np.ones((40, 235), bool))
    blocks = [block for strip in grid.rows() for block in strip]
    assert sum(block.width * block.height for block in blocks) == 30_000 * 5_000
    assert len(set(blocks)) == len(blocks)


def test_a_tile_off_the_grid_is_refused() -> None:
    for tile in (250, 500, 128):
        with pytest.raises(ValueError, match="tile is"):
            Grid(1000, 1000, tile=tile, squares=np.ones((8, 8), bool))


def test_a_mask_pixel_marks_every_square_it_touches() -> None:
    mask = np.zeros((8, 8), bool)
    mask[2, 3] = True
    squares = squares_of_mask(mask, (100.0, 64.0), 800, 512)
    assert np.argwhere(squares).tolist() == [[1, 2], [1, 3]]


def test_weights_are_looked_for_where_people_put_them(cache: Path, tmp_path: Path) -> None:
    published = find_weights(cache)
    assert published.source == "cache"
    explicit = find_weights(tmp_path, explicit=published.path)
    assert (explicit.sha256, explicit.source) == (published.sha256, "INSTANSEG_MODEL")
    own = tmp_path / "own" / "brightfield_nuclei" / "0.1.1"
    own.mkdir(parents=True)
    (own / "instanseg.pt").symlink_to(published.path)
    moved = find_weights(cache, instanseg=tmp_path / "own")
    assert moved.source == "InstanSeg's own folder"
    assert moved.sha256 == published.sha256


def test_the_other_published_model_is_found_by_its_name(cache: Path, tmp_path: Path) -> None:
    found = find_weights(cache, name=FLUORESCENCE)
    assert (found.name, found.version) == (FLUORESCENCE, "0.1.1")
    with pytest.raises(MissingWeights, match=f"No weights for {FLUORESCENCE}"):
        find_weights(tmp_path, name=FLUORESCENCE, instanseg=tmp_path)


def test_missing_weights_say_how_to_get_them(tmp_path: Path) -> None:
    with pytest.raises(MissingWeights, match="Run bin/demo or bin/serve once"):
        find_weights(tmp_path, instanseg=tmp_path)
    with pytest.raises(MissingWeights, match="There is no model file"):
        find_weights(tmp_path, explicit=tmp_path / "gone.pt")


def test_the_command_line_runs_both_jobs(
    small_slide: Path, cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(small_slide), "--out", str(tmp_path), "--cache", str(cache)]) == 0
    said = capsys.readouterr().out
    assert " nuclei on " in said
    assert (tmp_path / "tissue.json").is_file()
    assert (tmp_path / "cells.geojson.gz").is_file()


def test_the_command_line_says_what_is_wrong(
    cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gone = str(tmp_path / "gone.svs")
    assert main([gone, "--out", str(tmp_path / "out"), "--cache", str(cache)]) == 1
    assert "There is no slide gone.svs" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("statement", "absent"),
    [
        ("import jobs.imaging.pipeline, jobs.imaging.weights", "torch openslide numpy"),
        ("import jobs.imaging.slide", "torch numba scipy"),
        ("import jobs.imaging.tissue_job", "torch"),
        ("import jobs.imaging.cell_job", "django redis rq"),
    ],
)
def test_a_module_loads_no_more_than_it_needs(statement: str, absent: str) -> None:
    check = f"import sys; {statement}; print(*[m for m in {absent.split()} if m in sys.modules])"
    child = subprocess.run(
        [sys.executable, "-c", check], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    assert child.stdout.strip() == ""


def test_memory_that_is_not_there_is_said_to_be() -> None:
    """The worker tells it from other faults by this error, and starts a new child."""
    with pytest.raises(MemoryError, match="bytes"):
        memory.apart((1 << 60,), np.uint8)


def test_what_a_thread_borrows_again_is_zero() -> None:
    scratch = memory.Scratch()
    scratch.zeros((7, 5), np.float32)[...] = -np.inf
    again = scratch.zeros((5, 5), np.float32)
    assert again.flags.writeable
    assert not again.any()
    assert scratch.zeros((0, 5), np.float32).shape == (0, 5)
