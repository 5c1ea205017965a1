"""The full resolution of slides that are TIFFs of JPEG tiles, without painting.

OpenSlide paints decoded tiles over each other in floating point, which takes four times as long as
decoding them and changes nothing where they lie side by side. Here they are copied instead.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg
import tifffile

from jobs.imaging.readers.reader import Pixels, Size
from jobs.imaging.readers.tiffpages import File, LevelPages, Page, Segments, TileCache

START = b"\xff\xd8"
ADOBE = b"\xff\xee\0\x0eAdobe\0\x64" + bytes(4)
"""The marker, but for its last byte, that says how colours are coded: in a TIFF a tag says it."""

COLOURS = {tifffile.PHOTOMETRIC.RGB: (b"\0", "RGB"), tifffile.PHOTOMETRIC.YCBCR: (b"\1", "YCbCr")}


class JpegTiles:
    """Level 0 of a slide. Any thread may read."""

    def __init__(self, path: Path, page: Page) -> None:
        self._pages = _JpegPages(page)
        self._segments = Segments(File(path).read, TileCache([self._pages]), 0)

    def read(self, x: int, y: int, size: Size) -> Pixels:
        """RGB (rows, cols, 3); white beyond the level and where it has no tile. Raises NotRead for
        every flaw of a tile, among them those that its pixels survive."""
        return self._pages.read((x, y, *size), self._segments)


def jpeg_tiles(path: Path, size: Size) -> JpegTiles | None:
    """Level 0, of `size` pixels, where it is made of JPEG tiles."""
    try:
        with tifffile.TiffFile(path, _multifile=False) as tiff:
            page = tiff.pages[0]
            return JpegTiles(path, page) if _of_jpegs(page, size) else None
    except Exception:  # a damaged directory makes tifffile fail in any way; others may read it yet
        return None


def _of_jpegs(page: Page, size: Size) -> bool:
    return bool(
        page.is_tiled
        and (page.imagewidth, page.imagelength) == size
        and page.compression == tifffile.COMPRESSION.JPEG
        and page.photometric in COLOURS
        and (page.samplesperpixel, page.planarconfig, page.imagedepth) == (3, 1, 1)
        and page.dtype == np.uint8
    )


class _JpegPages(LevelPages):
    def __init__(self, page: Page) -> None:
        super().__init__([page], rgb=True)
        code, self._colours = COLOURS[page.photometric]
        self._head = START + ADOBE + code + (page.jpegtables or b"")[2:-2]

    def unpacked(self, data: bytes, page: int, index: int) -> Pixels:
        """The pixels of one tile. Raises ValueError where anything about it is odd."""
        if not data.startswith(START):
            raise ValueError("a tile is no JPEG")
        whole = self._head + data[len(START) :]
        header: Any = simplejpeg.decode_jpeg_header(whole)
        if header[:3] != (self.tile_h, self.tile_w, self._colours):
            raise ValueError(f"a tile is {header[:3]}, not what the directory says")
        return np.asarray(simplejpeg.decode_jpeg(whole, "RGB", strict=True))
