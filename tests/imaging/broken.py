"""Files that people hand in and that are no slides, or only just: made on the spot."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from PIL import Image

from tests.imaging.slides import Pixels

HALF_MICRON = {"resolution": (2e4, 2e4), "resolutionunit": "CENTIMETER"}
QUARTER_MICRON = {"resolution": (4e4, 4e4), "resolutionunit": "CENTIMETER"}
SIDE = 300


def jpeg(path: Path) -> None:
    Image.new("RGB", (SIDE, SIDE), "pink").save(path, "JPEG")


def archive(path: Path) -> None:
    path.write_bytes(b"PK\3\4" + bytes(5000))


def web_page(path: Path) -> None:
    path.write_text("<!DOCTYPE html><title>Sign in</title>")


def encrypted(path: Path) -> None:
    path.write_bytes(np.random.default_rng(1).bytes(100_000))


def empty(path: Path) -> None:
    path.touch()


def dicom(path: Path) -> None:
    """A DICOM file of another kind, or one whose elements are encrypted: neither can be read."""
    path.write_bytes(bytes(128) + b"DICM" + np.random.default_rng(2).bytes(5000))


def tiff(path: Path, pixels: Pixels | None = None, **options: Any) -> None:
    """A tiled TIFF at 0.5 µm per pixel, of grey RGB where no pixels are given."""
    if pixels is None:
        pixels = np.full((SIDE, SIDE, 3), 200, np.uint8)
    options = {"tile": (128, 128), "metadata": None} | HALF_MICRON | options
    tifffile.imwrite(path, pixels, **options)


def black_and_white(path: Path) -> None:
    tiff(path, np.zeros((SIDE, SIDE), bool), tile=None)


def palette(path: Path) -> None:
    colours = np.zeros((3, 256), np.uint16)
    tiff(path, np.zeros((SIDE, SIDE), np.uint8), photometric="palette", colormap=colours)


def cmyk(path: Path) -> None:
    tiff(path, np.zeros((SIDE, SIDE, 4), np.uint8), photometric="separated")


def double(path: Path) -> None:
    tiff(path, np.zeros((SIDE, SIDE), np.float64))


def focus_planes(path: Path) -> None:
    stack = np.zeros((3, SIDE, SIDE), np.uint8)
    tiff(path, stack, photometric="minisblack", metadata={"axes": "ZYX"}, ome=True)


def no_end(path: Path) -> None:
    """An OME-TIFF whose last third never arrived."""
    pixels = np.random.default_rng(3).integers(0, 256, (SIDE, SIDE, 3), np.uint8)
    whole = io.BytesIO()
    tifffile.imwrite(whole, pixels, tile=(128, 128), photometric="rgb", ome=True)
    path.write_bytes(whole.getvalue()[: len(whole.getvalue()) * 2 // 3])


def no_parts(path: Path) -> None:
    """100,000 × 100,000 pixels, compressed in strips: any part needs whole rows unpacked."""
    with tifffile.TiffWriter(path, bigtiff=True) as writer:
        strips = iter([b"x"] * 1000)
        writer.write(
            strips,
            shape=(100_000, 100_000, 3),
            dtype=np.uint8,
            rowsperstrip=100,
            compression="adobe_deflate",
            photometric="rgb",
            metadata=None,
            **HALF_MICRON,
        )


def sides(path: Path, width: int, height: int) -> None:
    """A TIFF that says it has these sides, in whatever it holds."""
    tiff(path)
    with tifffile.TiffFile(path, mode="r+") as opened:
        tags = opened.pages[0].tags
        for name, value in (("ImageWidth", width), ("ImageLength", height)):
            tags[name].overwrite(value, dtype="I")


def one_level(path: Path, side: int) -> Path:
    """A tiled JPEG pyramid of one level: every tile is the same bytes, so that the file is small."""
    tile = np.full((512, 512, 3), 240, np.uint8)
    once = io.BytesIO()
    options: dict[str, Any] = {
        "tile": (512, 512), "compression": "jpeg", "photometric": "rgb", "metadata": None,
    }  # fmt: skip
    tifffile.imwrite(once, tile, **options)
    once.seek(0)
    with tifffile.TiffFile(once) as opened:
        page = opened.pages[0]
        at, count = page.dataoffsets[0], page.databytecounts[0]
    tiles = (-(-side // 512)) ** 2
    data = iter([once.getvalue()[at : at + count]] + [b""] * (tiles - 1))
    tifffile.imwrite(path, data, shape=(side, side, 3), dtype=np.uint8, **options, **QUARTER_MICRON)
    with tifffile.TiffFile(path, mode="r+") as opened:
        page = opened.pages[0]
        at, count = page.dataoffsets[0], page.databytecounts[0]
        page.tags["TileOffsets"].overwrite([at] * tiles)
        page.tags["TileByteCounts"].overwrite([count] * tiles)
    return path
