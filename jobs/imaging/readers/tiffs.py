"""TIFF slides that OpenSlide does not see in full: OME-TIFF, SubIFD pyramids, channels, 16 bits.

tifffile tells where the tiles lie and how they are packed; they are read here, each when it is asked
for, so that no level is ever in memory.
"""

from __future__ import annotations

import copy
import io
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from PIL import ImageCms

from jobs.imaging.contract import BadInput
from jobs.imaging.readers.ome import OmeImage, ome_image
from jobs.imaging.readers.reader import RGB, Channel, Pixels, Size
from jobs.imaging.readers.tiffpages import (
    File,
    LevelPages,
    Segments,
    TileCache,
    unreadable_in_parts,
)

Page = Any
Series = Any

LARGEST = 2**31 - 1
DTYPES = ("uint8", "uint16", "float32")
JPEGS = (6, 7, 34892, 33007)
UNITS = {2: "inch", 3: "centimeter"}


class TiffReader:
    """A TIFF through tifffile. Its file is read by position, so threads do not disturb each other."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            # files that OME-XML names beside this one are not opened: they may be anybody's
            with tifffile.TiffFile(path, _multifile=False) as tiff:
                self._look(tiff)
        except BadInput:
            raise
        except Exception as error:  # a damaged directory makes tifffile fail in any way
            raise BadInput(
                f"{path.name} cannot be opened ({error}). The file may be truncated or damaged: "
                "compare its size with the original and copy it again."
            ) from error
        self._file = File(path)

    def _look(self, tiff: tifffile.TiffFile) -> None:
        series = max(tiff.series, key=_area, default=None)
        if series is None:
            raise ValueError("it holds no picture")
        page = series.keyframe
        self.brightfield = _is_rgb(page) and page.dtype == np.uint8
        problem = _problem(series, page)
        if problem:
            raise BadInput(f"{self.path.name} {problem}")
        groups = [_pages(level) for level in series.levels]
        if len(groups) == 1 and len(groups[0]) == 1:
            groups += [[one] for one in _reduced(tiff, page)]
        self._levels = [LevelPages(group, self.brightfield) for group in groups]
        problem = _damage(tiff, self._levels) or unreadable_in_parts(self._levels)
        if problem:
            raise BadInput(f"{self.path.name} {problem}")
        self.sizes: tuple[Size, ...] = tuple((one.width, one.height) for one in self._levels)
        self.dtype = self._levels[0].dtype
        self._cache = TileCache(self._levels)
        ome = _ome(tiff, self.sizes[0])
        self.vendor = "ome-tiff" if tiff.is_ome else "tiff"
        self.properties: Mapping[str, str] = _tags(page) | ome.properties
        self.channels = RGB if self.brightfield else _channels(ome, self._levels[0].channels)
        self.profile = _profile(page)

    def read(self, level: int, x_lv: int, y_lv: int, size: Size) -> Pixels:
        """(rows, cols, channels); see `Reader`."""
        return self._levels[level].read(
            (x_lv, y_lv, *size), Segments(self._file.read, self._cache, level)
        )

    def reopened(self) -> TiffReader:
        """The same directory over a newly opened file."""
        other = copy.copy(self)
        try:
            other._file = File(self.path)
        except OSError as error:
            raise BadInput(
                f"{self.path.name} cannot be opened again ({error.strerror}): check its storage."
            ) from error
        return other

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _area(series: Series) -> int:
    page = series.keyframe
    return int(page.imagewidth) * int(page.imagelength) * (0 if page.is_reduced else 1)


def _pages(level: Series) -> list[Page]:
    """The pages of a level, one a channel where channels lie apart."""
    return [page for page in level.pages if page is not None]


def _reduced(tiff: tifffile.TiffFile, first: Page) -> list[Page]:
    """Smaller copies of `first` among the file's own pages, the largest first."""
    pages: list[Page] = list(tiff.pages)
    found = [page for page in pages if page.is_reduced and _alike(page, first)]
    return sorted(found, key=lambda page: -int(page.imagewidth))


def _alike(page: Page, first: Page) -> bool:
    across, down = first.imagewidth / page.imagewidth, first.imagelength / page.imagelength
    same = ("dtype", "samplesperpixel", "photometric")
    return (
        across > 1
        and abs(across / down - 1) < 0.02
        and all(getattr(page, name) == getattr(first, name) for name in same)
    )


def _is_rgb(page: Page) -> bool:
    jpeg = page.photometric == tifffile.PHOTOMETRIC.YCBCR and page.compression in JPEGS
    return bool(
        (page.photometric == tifffile.PHOTOMETRIC.RGB or jpeg) and page.samplesperpixel in (3, 4)
    )


def _problem(series: Series, page: Page) -> str:
    """Why an image is no slide for us, or nothing."""
    if not 0 < page.imagewidth <= LARGEST or not 0 < page.imagelength <= LARGEST:
        return (
            f"says that it is {page.imagewidth} × {page.imagelength} pixels, which no image is: it "
            "is damaged. Copy it again."
        )
    if page.bitspersample not in (8, 16, 32) or str(page.dtype) not in DTYPES:
        kind = "black and white" if page.bitspersample == 1 else str(page.dtype)
        return (
            f"has {page.bitspersample}-bit pixels ({kind}), which are not read: export it with "
            "8 or 16 bits, or 32-bit floating point, per channel."
        )
    if not _is_rgb(page) and page.photometric != tifffile.PHOTOMETRIC.MINISBLACK:
        name = getattr(page.photometric, "name", page.photometric)
        return f"stores its colours as {name}, which is not read: export it as RGB."
    return _extent(series)


def _extent(series: Series) -> str:
    """Only channels may lie beside the two axes of an image."""
    sizes = dict(zip(series.axes, series.shape, strict=True))
    others = {axis: n for axis, n in sizes.items() if axis not in "YX" and n > 1}
    if not {"X", "Y"} <= sizes.keys() or len(others) > 1 or not others.keys() <= {"C", "S"}:
        named = {"Z": "focus planes", "T": "time points", "C": "channels", "S": "colours"}
        held = ", ".join(f"{n} {named.get(axis, 'pages')}" for axis, n in others.items())
        return (
            f"holds {held}: one image of one focus plane and time point can be read, whose channels "
            "are named by OME-XML. Export it as such an OME-TIFF."
        )
    return ""


def _damage(tiff: tifffile.TiffFile, levels: list[LevelPages]) -> str:
    """What shows that the end of the file is missing, or nothing."""
    size = tiff.filehandle.size
    if any(one.beyond(size) for one in levels) or _next_page(tiff):
        return (
            "is truncated or damaged: it refers to places behind its end. Compare its size with "
            "the original and copy it again."
        )
    return ""


def _next_page(tiff: tifffile.TiffFile) -> int:
    """Where the page after the last one that was found should be: 0 in a whole file."""
    form, file = tiff.tiff, tiff.filehandle
    last = tiff.pages[-1].offset
    file.seek(last)
    (count,) = struct.unpack(form.tagnoformat, file.read(form.tagnosize))
    file.seek(last + form.tagnosize + count * form.tagsize)
    (offset,) = struct.unpack(form.offsetformat, file.read(form.offsetsize))
    return int(offset)


def _channels(ome: OmeImage, count: int) -> tuple[Channel, ...]:
    if len(ome.channels) == count:
        return ome.channels
    return tuple(Channel(f"Channel {index}") for index in range(1, count + 1))


def _ome(tiff: tifffile.TiffFile, size: Size) -> OmeImage:
    if not tiff.is_ome or not tiff.ome_metadata:
        return OmeImage()
    return ome_image(tifffile.xml2dict(tiff.ome_metadata), size)


def _tags(page: Page) -> dict[str, str]:
    """The resolution tags, under OpenSlide's names."""
    found: dict[str, str] = {}
    for name in ("XResolution", "YResolution"):
        value = page.tags.valueof(name)
        if isinstance(value, tuple) and len(value) == 2 and value[1]:
            found[f"tiff.{name}"] = repr(value[0] / value[1])
    unit = UNITS.get(int(page.tags.valueof("ResolutionUnit", default=2)))
    return found | ({"tiff.ResolutionUnit": unit} if unit else {})


def _profile(page: Page) -> Any | None:
    data = page.tags.valueof("InterColorProfile")
    if not data:
        return None
    try:
        return ImageCms.ImageCmsProfile(io.BytesIO(bytes(data)))
    except (OSError, ImageCms.PyCMSError):
        return None  # a damaged profile says nothing about the pixels, which are still good
