"""The objects of the bucket that make up a slide: as `files.parts_of` has it for files."""

from __future__ import annotations

import functools
import io
from collections.abc import Iterator
from pathlib import PurePosixPath

from jobs.slides import bucket, files
from jobs.slides.bucket import Stored
from jobs.slides.files import Beat

HEAD_BYTES = 64 << 10
"""Of a DICOM file: the elements that name its series come long before the pixels."""
DICOM = (".dcm", "")


def parts_of(main: Stored, *, beat: Beat) -> list[Stored]:
    """Every object that OpenSlide reads for the slide `main`. Raises Gone or SlideAway."""
    return bucket.fresh(
        ("parts", main), lambda: sorted(_parts(main, beat), key=lambda part: part.path)
    )


def _parts(main: Stored, beat: Beat) -> set[Stored]:
    path = PurePosixPath(main.path)
    suffix = path.suffix.lower()
    if suffix == ".mrxs":
        return {main, *bucket.in_folder(path.with_suffix("").as_posix()).values()}
    if suffix in (".vms", ".vmu"):
        names = set(files.names_in(bucket.head_of(main, files.KEY_FILE_BYTES)))
        beside = bucket.in_folder(path.parent.as_posix())
        return {main, *(each for each in beside.values() if PurePosixPath(each.path).name in names)}
    if suffix in DICOM and (series := _series_of(main)) is not None:
        return {main, *_of_series(path.parent.as_posix(), series, beat)}
    return {main}


def _of_series(folder: str, series: str, beat: Beat) -> Iterator[Stored]:
    for each in bucket.in_folder(folder).values():
        beat()
        if PurePosixPath(each.path).suffix.lower() in DICOM and _series_of(each) == series:
            yield each


@functools.lru_cache(maxsize=bucket.KEPT)
def _series_of(stored: Stored) -> str | None:
    return files.series_in(io.BytesIO(bucket.head_of(stored, HEAD_BYTES)))
