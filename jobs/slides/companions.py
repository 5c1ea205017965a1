"""The objects of the bucket that make up a slide: as `files.parts_of` has it for files."""

from __future__ import annotations

import io
import threading
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import PurePosixPath

from jobs.slides import bucket, files
from jobs.slides.answers import KEPT, fresh
from jobs.slides.bucket import Stored

HEAD_BYTES = 64 << 10
"""Of a DICOM file: the elements that name its series come long before the pixels."""
DICOM = (".dcm", "")


class ManyHeads(Exception):
    """More objects would have to be looked into than was allowed."""


def parts_of(main: Stored, *, most_heads: int | None = None) -> list[Stored]:
    """Every object that OpenSlide reads for the slide `main`. Raises Gone, SlideAway or ManyHeads.

    most_heads  objects that may be looked into for that, of those nobody looked into before
    """
    return fresh(
        ("parts", main, most_heads),
        lambda: sorted(_parts(main, most_heads), key=lambda part: part.path),
    )


def _parts(main: Stored, most_heads: int | None) -> set[Stored]:
    path = PurePosixPath(main.path)
    suffix = path.suffix.lower()
    if suffix == ".mrxs":
        return {main, *bucket.in_folder(path.with_suffix("").as_posix()).values()}
    if suffix in (".vms", ".vmu"):
        names = set(files.names_in(bucket.head_of(main, files.KEY_FILE_BYTES)))
        beside = bucket.in_folder(path.parent.as_posix())
        return {main, *(each for each in beside.values() if PurePosixPath(each.path).name in names)}
    if suffix in DICOM and (series := _series_of(main)) is not None:
        return {main, *_of_series(path.parent.as_posix(), series, most_heads)}
    return {main}


def _of_series(folder: str, series: str, most_heads: int | None) -> Iterator[Stored]:
    inside = bucket.in_folder(folder).values()
    found = [each for each in inside if PurePosixPath(each.path).suffix.lower() in DICOM]
    if most_heads is not None and sum(each not in _series for each in found) > most_heads:
        raise ManyHeads(folder)
    yield from (each for each in found if _series_of(each) == series)


_series: OrderedDict[Stored, str | None] = OrderedDict()
_lock = threading.Lock()


def _series_of(stored: Stored) -> str | None:
    with _lock:
        if stored in _series:
            return _series[stored]
    series = files.series_in(io.BytesIO(bucket.head_of(stored, HEAD_BYTES)))
    with _lock:
        _series[stored] = series
        while len(_series) > KEPT:
            _series.popitem(last=False)
    return series
