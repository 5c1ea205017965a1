"""Slides with destroyed tiles: what can be read is read, and the rest is told."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tifffile

from jobs.imaging.plane import Plane, plane_geometry
from jobs.imaging.slide import ReadFailed, open_slide
from tests.imaging.tiffs import picture, write_ome


def damaged(slide: Path, path: Path, tiles: list[int]) -> Path:
    """A copy of `slide`, a TIFF, in which the bytes of some tiles are destroyed."""
    content = bytearray(slide.read_bytes())
    with tifffile.TiffFile(slide) as tiff:
        page = tiff.pages[0]
        for index in tiles:
            at, count = page.dataoffsets[index], page.databytecounts[index]
            content[at : at + count] = bytes(count)
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("kind", ["svs", "ome"])
def test_a_destroyed_tile_hurts_only_its_own_place(cmu: Path, tmp_path: Path, kind: str) -> None:
    source = cmu
    if kind == "ome":
        with open_slide(cmu) as slide:
            pixels = slide.read(0, 0, 0, (1200, 1200))
        source = write_ome(
            tmp_path / "whole.ome.tif", [pixels], "YXS", photometric="rgb", compression="jpeg"
        )
    path = damaged(source, tmp_path / f"damaged.{kind}.tif", [0])
    with open_slide(path) as slide, open_slide(source) as whole:
        with pytest.raises(ReadFailed, match=r"could not be read near x=0, y=0 .* copy it again"):
            slide.read(0, 0, 0, (64, 64))
        plane = Plane(slide, plane_geometry(slide, 0.499, (0.499, 0.499)))
        with pytest.raises(ReadFailed):
            plane.read(0, 0, 300, 300)
        assert np.array_equal(
            slide.read(0, 500, 600, (300, 300)), whole.read(0, 500, 600, (300, 300))
        )


def test_damaged_channels_are_still_shown(tmp_path: Path) -> None:
    pixels = picture("uint16", 2, 700, 700)
    whole = write_ome(tmp_path / "two.ome.tif", [pixels], "CYX", compression="lzw")
    with open_slide(damaged(whole, tmp_path / "damaged.ome.tif", [0])) as slide:
        assert slide.read_rgb(0, 300, 300, (50, 50)).any()
        with pytest.raises(ReadFailed):
            slide.read_rgb(0, 0, 0, (50, 50))


def test_threads_do_not_suffer_from_a_place_that_breaks_the_handle(
    cmu: Path, tmp_path: Path
) -> None:
    path = damaged(cmu, tmp_path / "damaged.svs", [0])
    stop = threading.Event()
    with open_slide(path) as slide, open_slide(cmu) as whole:
        expected = whole.read(0, 900, 900, (300, 300))

        def break_it() -> int:
            broken = 0
            while not stop.is_set():
                with pytest.raises(ReadFailed):
                    slide.read(0, 0, 0, (64, 64))
                broken += 1
            return broken

        with ThreadPoolExecutor(3) as pool:
            breaking = pool.submit(break_it)
            try:
                for read in pool.map(lambda _: slide.read(0, 900, 900, (300, 300)), range(12)):
                    assert np.array_equal(read, expected)
            finally:
                stop.set()
            assert breaking.result() > 0
