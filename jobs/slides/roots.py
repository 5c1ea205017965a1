"""Slide roots: from what a client wrote to a file inside a root, or a refusal that tells nothing.

A path outside, a missing file, a special file and a symlink that leaves get the same answer, so
that nobody can probe what exists.
"""

from __future__ import annotations

import os
import stat
import uuid
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath

from django.conf import settings

from jobs.models import Slide
from jobs.slides import bucket, staging
from jobs.slides.files import Beat
from jobs.slides.staging import Held
from tenants.models import Tenant

SHARED = "shared"
BUCKET = "s3"
BATCH = 500
NAMESPACE = uuid.UUID("5b0d4a52-6f0a-5b3e-9d0f-0c6d1a7c2f11")

Place = tuple[str, str]
"""Name of a root and a path relative to it."""
FileKey = tuple[str, int, int]
"""What changes when a file does: its place, modification time in ns, bytes."""


class BadPath(ValueError):
    """A slide path that is refused; the text is a sentence for people."""

    def __init__(self, path: str) -> None:
        shown = path if len(path) <= 200 else f"{path[:200]}…"
        super().__init__(
            f"{shown!r} is no slide that you may read. Give a path relative to the slide folder, "
            "as listed by GET /api/slides."
        )


def roots_of(tenant: Tenant) -> Mapping[str, Path]:
    """The folders whose slides `tenant` may read, by name."""
    own = settings.LABSCHED_DATA / "tenant-slides" / str(tenant.pk)
    roots = {SHARED: settings.SLIDE_ROOT}
    if tenant.pk is not None and own.is_dir():
        roots["own"] = own
    return roots


def locate(tenant: Tenant, image_path: str) -> Place:
    """Where a readable slide is: in a folder, else in the bucket. Raises BadPath or SlideAway."""
    if not image_path or "\0" in image_path or len(image_path) > 1000:
        raise BadPath(image_path)
    if ".." in Path(image_path).parts:
        raise BadPath(image_path)
    for name, root in roots_of(tenant).items():
        if (found := _inside(root, image_path)) is not None:
            return name, found.as_posix()
    return BUCKET, _in_bucket(PurePosixPath(image_path).as_posix()).path


def _in_bucket(path: str) -> bucket.Stored:
    if not bucket.is_configured():
        raise BadPath(path)
    try:
        return bucket.find(path)
    except bucket.Gone:
        raise BadPath(path) from None


def _inside(root: Path, image_path: str) -> Path | None:
    """The path relative to `root` of a regular file (or a slide's folder) inside it, or None."""
    try:
        base = root.resolve(strict=True)
        target = (base / image_path).resolve(strict=True)  # an absolute path replaces the base
        kind = target.stat().st_mode
    except (OSError, RuntimeError, ValueError):
        return None
    if not target.is_relative_to(base) or not stat.S_ISREG(kind):
        return None
    return target.relative_to(base)


def slide_id(tenant: Tenant, root: str, path: str) -> uuid.UUID:
    """The id of a slide of `tenant`: the same before and after its row is made."""
    return uuid.uuid5(NAMESPACE, f"{tenant.key}\n{root}\n{path}")


def by_id(tenant: Tenant, wanted: uuid.UUID) -> Slide | None:
    """The slide with this id: its row, or one made now when a file in a root has this id."""
    row: Slide | None = Slide.objects.for_tenant(tenant).filter(uuid=wanted).first()
    if row is not None:
        return row
    for root, path in files_of(tenant):
        if slide_id(tenant, root, path) == wanted:
            return rows_of(tenant, [(root, path)])[root, path]
    return None


def files_of(tenant: Tenant) -> Iterator[Place]:
    """Every file that the tenant may read. Raises SlideAway behind those of the folders."""
    for name, root in roots_of(tenant).items():
        for folder, folders, files in os.walk(root):
            folders.sort()
            for file in sorted(files):
                path = (Path(folder) / file).relative_to(root).as_posix()
                if not file.startswith(".") and _inside(root, path) is not None:
                    yield name, path
    if bucket.is_configured():
        for path in bucket.listed():
            if not PurePosixPath(path).name.startswith("."):
                yield BUCKET, path


def rows_of(tenant: Tenant, places: Iterable[Place]) -> dict[Place, Slide]:
    """The slide rows of these places, made where they are new. `tenant` is saved."""
    wanted = sorted(set(places))
    found: dict[Place, Slide] = {}
    for start in range(0, len(wanted), BATCH):
        batch = wanted[start : start + BATCH]
        known = _known(tenant, batch)
        new = [
            Slide(tenant=tenant, root=root, path=path, uuid=slide_id(tenant, root, path))
            for root, path in batch
            if (root, path) not in known
        ]
        if new:  # in one order everywhere: of two that make the same ones, one waits and then reads
            Slide.objects.bulk_create(new, ignore_conflicts=True)
            known = _known(tenant, batch)
        found |= known
    return found


def _known(tenant: Tenant, places: list[Place]) -> dict[Place, Slide]:
    paths = {path for _, path in places}
    rows = Slide.objects.for_tenant(tenant).filter(path__in=paths)
    known = {(row.root, row.path): row for row in rows}
    return {place: known[place] for place in places if place in known}


_in_work: dict[str, Held] = {}
"""The slide of the bucket that this process works on: it stays until `release`, or the next one."""


def real_path(slide: Slide, *, beat: Beat = lambda: None) -> Path:
    """The file behind `slide`, checked again now; one of the bucket is fetched, however long it takes.

    beat     called at least twice a second meanwhile; what it raises ends it
    raises   BadPath; SlideAway where trying again may help
    """
    if slide.root != BUCKET:
        return _local(slide)
    release()
    if not bucket.is_configured():
        raise BadPath(slide.path)
    try:
        _in_work[BUCKET] = held = staging.fetched(slide.path, beat=beat)
    except bucket.Gone:
        raise BadPath(slide.path) from None
    return held.path


def release() -> None:
    """Let go of the slide that `real_path` gave last: its job is over."""
    _in_work.clear()


def opened(slide: Slide, *, fetch: bool = False) -> Held:
    """The file behind `slide` if it is on this machine; else NotStaged, at once.

    fetch    begin to fetch it, so that it will be
    raises   BadPath; SlideAway
    """
    if slide.root != BUCKET:
        return Held(_local(slide))
    try:
        held = (staging.opened if fetch else staging.at_hand)(_in_bucket(slide.path).path)
    except bucket.Gone:
        raise BadPath(slide.path) from None
    if held is None:
        raise staging.NotStaged(
            f"{Path(slide.path).name} is in the slide bucket and was not fetched yet: open it in the "
            "viewer, or run a job on it."
        )
    return held


def key_of(slide: Slide) -> FileKey:
    """What changes when the file behind `slide` does. Raises BadPath or SlideAway."""
    if slide.root == BUCKET:
        found = _in_bucket(slide.path)
        return f"{BUCKET}:{found.path}", found.modified_ns, found.size
    file = _local(slide)
    stat = file.stat()
    return str(file), stat.st_mtime_ns, stat.st_size


def _local(slide: Slide) -> Path:
    root = roots_of(slide.tenant).get(slide.root)
    found = _inside(root, slide.path) if root is not None else None
    if root is None or found is None:
        raise BadPath(slide.path)
    return root.resolve() / found
