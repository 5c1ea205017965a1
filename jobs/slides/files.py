"""The files that make up a slide: for most formats one, for some a folder or a series beside it."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from django.conf import settings

KEY_FILE_BYTES = 1 << 20

Beat = Callable[[], None]


def parts_of(main: Path, *, beat: Beat) -> list[Path]:
    """Every file that OpenSlide reads for the slide `main`, in order of their paths."""
    suffix = main.suffix.lower()
    if suffix == ".mrxs":
        return sorted({main, *_regular(main.with_suffix(""))})
    if suffix in (".vms", ".vmu"):
        return sorted({main, *_named_in(main)})
    if (series := series_of(main)) is not None:
        return sorted(_of_series(main.parent, series, beat))
    return [main]


def stamp_of(parts: list[Path]) -> str:
    """What changes when a file is replaced or written: names, sizes, times and inodes, hashed.

    Of the bucket: paths, sizes and ETags, which tell the same on every machine.
    """
    digest = hashlib.sha256()
    for part in parts:
        digest.update(f"{_version_of(part)}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()


def staged_root() -> Path:
    """Where files of the bucket are kept, in folders whose names tell their version."""
    return Path(settings.LABSCHED_CACHE) / "slides-staged"


def _version_of(part: Path) -> str:
    facts = part.stat()
    if part.is_relative_to(staged_root()):
        return f"{part.relative_to(staged_root())}\0{facts.st_size}"
    return f"{part}\0{facts.st_size}\0{facts.st_mtime_ns}\0{facts.st_ino}"


def _regular(folder: Path) -> Iterator[Path]:
    if folder.is_dir():
        yield from (entry for entry in folder.iterdir() if entry.is_file())


def _named_in(key_file: Path) -> Iterator[Path]:
    """The files beside a Hamamatsu key file that its lines `name=file` name."""
    with key_file.open("rb") as stream:
        names = names_in(stream.read(KEY_FILE_BYTES))
    yield from (key_file.parent / name for name in names if (key_file.parent / name).is_file())


def names_in(key_file: bytes) -> Iterator[str]:
    """The names of files that a Hamamatsu key file gives."""
    for line in key_file.decode(errors="replace").splitlines():
        name = line.partition("=")[2].strip()
        if name and "/" not in name and "\0" not in name:
            yield name


def _of_series(folder: Path, series: str, beat: Beat) -> Iterator[Path]:
    for entry in _regular(folder):
        beat()
        if series_of(entry) == series:
            yield entry


# --- DICOM: the one value that ties the levels of a slide together ------------------------

MAGIC_AT, MAGIC = 128, b"DICM"
TRANSFER_SYNTAX = (0x0002, 0x0010)
SERIES = (0x0020, 0x000E)
ITEM, ITEM_END, SEQUENCE_END = (0xFFFE, 0xE000), (0xFFFE, 0xE00D), (0xFFFE, 0xE0DD)
IMPLICIT = "1.2.840.10008.1.2"
LONG = (b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV")
UNDEFINED = 0xFFFFFFFF
MOST_DEPTH = 16

Tag = tuple[int, int]


def series_of(file: Path) -> str | None:
    """The SeriesInstanceUID of a DICOM file; None where it is none, or is damaged."""
    try:
        with file.open("rb") as stream:
            return series_in(stream)
    except OSError:
        return None


def series_in(stream: BinaryIO) -> str | None:
    """The same of its bytes, of which the first 64 KiB are enough."""
    try:
        stream.seek(MAGIC_AT)
        return _series(stream) if stream.read(len(MAGIC)) == MAGIC else None
    except (struct.error, ValueError):
        return None


def _series(stream: BinaryIO) -> str | None:
    """Elements come in order of their tags, so the search ends behind the wanted one."""
    explicit = _transfer_syntax(stream) != IMPLICIT
    while True:
        tag, length = _header(stream, explicit)
        if tag > SERIES:
            return None
        if tag == SERIES:
            return _value(stream, length) or None
        _skip(stream, length, explicit)


def _transfer_syntax(stream: BinaryIO) -> str:
    """How the elements behind group 2 are written; that group itself is always explicit."""
    syntax = ""
    while stream.read(2) == b"\2\0":
        stream.seek(-2, 1)
        tag, length = _header(stream, True)
        if tag == TRANSFER_SYNTAX:
            syntax = _value(stream, length)
        else:
            _skip(stream, length, True)
    stream.seek(-2, 1)
    return syntax


def _header(stream: BinaryIO, explicit: bool) -> tuple[Tag, int]:
    """The tag and length of the next element; the stream stands at its value."""
    group, element = struct.unpack("<HH", stream.read(4))
    if not explicit or group == ITEM[0]:
        return (group, element), struct.unpack("<L", stream.read(4))[0]
    if (kind := stream.read(2)) in LONG:
        return (group, element), struct.unpack("<2xL", stream.read(6))[0]
    if not kind.isalpha():
        raise ValueError("this is no element of a DICOM file")
    return (group, element), struct.unpack("<H", stream.read(2))[0]


def _value(stream: BinaryIO, length: int) -> str:
    """The value of an identifier, which has at most 64 characters."""
    if length > 64:
        raise ValueError("an identifier is too long")
    return stream.read(length).rstrip(b"\0 ").decode("ascii")


def _skip(stream: BinaryIO, length: int, explicit: bool, depth: int = 0) -> None:
    """Go behind a value; one of undefined length is a sequence, whose end is found by reading it."""
    if length != UNDEFINED:
        stream.seek(length, 1)
        return
    if depth == MOST_DEPTH:
        raise ValueError("sequences are nested too deep")
    tag: Tag | None = None
    while tag not in (SEQUENCE_END, ITEM_END):
        tag, inner = _header(stream, explicit)
        if tag not in (SEQUENCE_END, ITEM_END):
            _skip(stream, inner, explicit, depth + 1)
