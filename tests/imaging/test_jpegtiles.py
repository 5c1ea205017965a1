"""Tiles that are read without OpenSlide's painting: the same bytes, the same refusals."""

from __future__ import annotations

import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray
from PIL import Image

from jobs.imaging import probing
from jobs.imaging.readers import openslides
from jobs.imaging.readers.openslides import OpenSlideReader
from jobs.imaging.readers.reader import NotRead
from jobs.imaging.slide import open_slide
from tests.imaging.tiffs import RANDOM, TILED, picture

Place = tuple[int, int]
Look = Callable[[Path, Place, Place], Any]


@pytest.fixture
def no_shortcut(monkeypatch: pytest.MonkeyPatch) -> Look:
    """What OpenSlide alone makes of a place: RGB, or the sentence it refuses it with."""

    def read(path: Path, place: Place, size: Place) -> Any:
        with monkeypatch.context() as patch:
            patch.setattr(openslides, "TIFFS", ())
            return _read(path, place, size)

    return read


def _read(path: Path, place: Place, size: Place) -> Any:
    reader = OpenSlideReader(path)
    try:
        return reader.read(0, *place, size)
    except NotRead as error:
        return str(error)
    finally:
        reader.close()


def _jpegs(path: Path, pixels: NDArray[Any], **options: Any) -> Path:
    """A plain TIFF of JPEG tiles, which OpenSlide reads."""
    tifffile.imwrite(path, pixels, compression="jpeg", metadata=None, **TILED, **options)
    return path


PLACES = (((0, 0), (512, 512)), ((300, 251), (400, 300)), ((-90, -70), (400, 400)))


@pytest.mark.parametrize(
    "options",
    [
        {"photometric": "rgb"},
        {"photometric": "ycbcr", "subsampling": (1, 1)},
        {"photometric": "ycbcr", "subsampling": (2, 1)},
        {"photometric": "ycbcr", "subsampling": (2, 2)},
    ],
)
def test_jpeg_tiles_give_the_bytes_that_openslide_gives(
    tmp_path: Path, no_shortcut: Look, options: dict[str, Any]
) -> None:
    path = _jpegs(tmp_path / "plain.tif", picture("uint8", 500, 600, 3), **options)
    for place, size in PLACES:
        with open_slide(path) as slide:
            assert slide.vendor == "generic-tiff"
        assert np.array_equal(_read(path, place, size), no_shortcut(path, place, size))
    assert OpenSlideReader(path)._tiles is not None


def test_a_whole_svs_is_read_as_openslide_reads_it(cmu: Path, no_shortcut: Look) -> None:
    assert OpenSlideReader(cmu)._tiles is not None
    ours = _read(cmu, (-10, -10), (2300, 3000))
    assert np.array_equal(ours, no_shortcut(cmu, (-10, -10), (2300, 3000)))


def test_tiles_that_were_never_written_are_white(tmp_path: Path, no_shortcut: Look) -> None:
    whole = _jpegs(tmp_path / "whole.tif", picture("uint8", 500, 600, 3), photometric="ycbcr")
    with tifffile.TiffFile(whole) as tiff:
        counts = tiff.pages.first.tags["TileByteCounts"]
        kept = [0 if index in (0, 7) else count for index, count in enumerate(counts.value)]
        at, code = counts.valueoffset, {3: "<H", 4: "<I"}[int(counts.dtype)]
    content = bytearray(whole.read_bytes())
    for index, count in enumerate(kept):
        struct.pack_into(code, content, at + index * struct.calcsize(code), count)
    holes = tmp_path / "holes.tif"
    holes.write_bytes(content)
    ours = _read(holes, (0, 0), (600, 500))
    assert (ours[:128, :128] == 255).all()
    assert (ours[128:256, 256:384] == 255).all()
    assert np.array_equal(ours, no_shortcut(holes, (0, 0), (600, 500)))


@pytest.mark.parametrize("kind", ["cut", "zeros", "noise", "start", "size"])
def test_openslide_judges_every_damaged_tile(
    cmu: Path, tmp_path: Path, no_shortcut: Look, kind: str
) -> None:
    """libjpeg paints something for most damage; what was not scanned must not pass for tissue."""
    content = bytearray(cmu.read_bytes())
    with tifffile.TiffFile(cmu) as tiff:
        offsets, counts = tiff.pages.first.dataoffsets, tiff.pages.first.databytecounts
    at, count = offsets[11], counts[11]
    half = at + count // 2
    if kind == "cut":
        content[half : at + count] = b"\xff\xd9" + bytes(at + count - half - 2)
    elif kind == "zeros":
        content[half : at + count] = bytes(at + count - half)
    elif kind == "noise":
        content[half : half + 64] = np.random.default_rng(4).bytes(64)
    elif kind == "start":
        content[at] = 0
    else:  # the frame says that it is larger than its tile
        frame = content.index(b"\xff\xc0", at)
        content[frame + 5 : frame + 9] = struct.pack(">HH", 60_000, 60_000)
    path = tmp_path / "damaged.svs"
    path.write_bytes(content)
    place = (240, 240)  # tile 11 of ten in a row
    theirs = no_shortcut(path, place, (300, 300))
    assert isinstance(theirs, str)
    assert _read(path, place, (300, 300)) == theirs
    assert np.array_equal(_read(path, (480, 480), (300, 300)), _read(cmu, (480, 480), (300, 300)))


def test_a_first_look_loads_no_library_for_tiles(cmu: Path) -> None:
    look = (
        "import sys, pathlib; from jobs.imaging import probing; "
        "probing._look(pathlib.Path(sys.argv[1]), None); "
        "print(sorted({'tifffile', 'simplejpeg', 'numba', 'scipy'} & sys.modules.keys()))"
    )
    child = subprocess.run(
        [sys.executable, "-c", look, str(cmu)],
        cwd=probing.PROJECT, capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    assert child.stdout.strip() == "[]"


@pytest.mark.parametrize("alpha", [None, 255, 0])
def test_pixels_that_let_light_through_lie_on_white(alpha: int | None) -> None:
    rgba = RANDOM.integers(0, 256, (200, 300, 4), dtype=np.uint8)
    if alpha is not None:
        rgba[..., 3] = alpha
    colour, weight = rgba[..., :3].astype(int), rgba[..., 3:].astype(int)
    shown = openslides._on_white(Image.fromarray(rgba))
    assert np.array_equal(shown, (colour * weight + 255 * (255 - weight) + 127) // 255)
    assert shown.dtype == np.uint8
    assert shown.flags.writeable
