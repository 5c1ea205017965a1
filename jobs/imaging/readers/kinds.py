"""Which reader a file gets, and a sentence for each kind of file that gets none."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import openslide

from jobs.imaging.contract import BadInput
from jobs.imaging.readers.openslides import GENERIC, OpenSlideReader
from jobs.imaging.readers.reader import Reader

if TYPE_CHECKING:
    from jobs.imaging.readers.tiffs import TiffReader

TIFF_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
DICOM_MAGIC_AT = 128
SUPPORTED = (
    "SVS, NDPI, MRXS, SCN, BIF, VMS, CZI, DICOM whole-slide images, OME-TIFF and pyramidal TIFF"
)
OTHERS = (
    (b"\xff\xd8\xff", "a JPEG picture"),
    (b"\x89PNG", "a PNG picture"),
    (b"PK\3\4", "a ZIP archive"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"7z\xbc\xaf", "a 7-Zip archive"),
    (b"%PDF", "a PDF document"),
    (b"\x89HDF", "an HDF5 file"),
    (b"<!DOCTYPE", "a web page, perhaps the error page of a download"),
    (b"<html", "a web page, perhaps the error page of a download"),
)


def reader_of(path: Path) -> Reader:
    """The reader that sees the most of `path`. Raises BadInput."""
    head = _head(path)
    vendor = openslide.OpenSlide.detect_format(path)
    if vendor not in (None, GENERIC):
        return OpenSlideReader(path)
    if not head.startswith(TIFF_MAGIC):
        raise BadInput(_no_slide(path.name, head))
    from jobs.imaging.readers.tiffs import TiffReader  # its library loads only where it is needed

    tiff = TiffReader(path)
    return _better(tiff, path) if vendor == GENERIC else tiff


def _better(tiff: TiffReader, path: Path) -> Reader:
    """OpenSlide for plain RGB pyramids; it does not see channels, 16 bits, SubIFDs, or OME-XML."""
    if not tiff.brightfield or tiff.vendor != "tiff":
        return tiff
    try:
        generic = OpenSlideReader(path)
    except BadInput:
        return tiff  # it knows fewer compressions
    plain = len(tiff.sizes) <= len(generic.sizes)
    (tiff if plain else generic).close()
    return generic if plain else tiff


def _head(path: Path) -> bytes:
    try:
        with path.open("rb") as stream:
            head = stream.read(DICOM_MAGIC_AT + 4)
    except OSError as error:
        raise BadInput(
            f"{path.name} cannot be read ({error.strerror}): check its permissions and its storage."
        ) from error
    if not head:
        raise BadInput(
            f"{path.name} is empty (0 bytes): its copy or upload failed. Copy the file again."
        )
    return head


def _no_slide(name: str, head: bytes) -> str:
    if head[DICOM_MAGIC_AT:] == b"DICM":
        return (
            f"{name} is a DICOM file, but not a whole-slide image that can be read: other kinds "
            "(CT, photographs, annotations) and encrypted files are not. Choose a file of the "
            "slide's VOLUME images, or export the slide again without encryption."
        )
    what = next((text for magic, text in OTHERS if head.startswith(magic)), "")
    return (
        f"{name} is not a slide that can be read: "
        f"{f'it is {what}' if what else 'its content is of no known format, or encrypted'}. "
        f"Supported: {SUPPORTED}; export it again as one of these."
    )
