"""Slide roots: from what a client wrote to a file inside a root, or a refusal that tells nothing.

A path outside, a missing file, a special file and a symlink that leaves get the same answer, so
that nobody can probe what exists.
"""

from __future__ import annotations

import os
import stat
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path

from django.conf import settings

from jobs.models import Slide
from tenants.models import Tenant

SHARED = "shared"
NAMESPACE = uuid.UUID("5b0d4a52-6f0a-5b3e-9d0f-0c6d1a7c2f11")


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


def locate(tenant: Tenant, image_path: str) -> tuple[str, str]:
    """(root name, path relative to it) of a readable slide. Raises BadPath."""
    if not image_path or "\0" in image_path or len(image_path) > 1000:
        raise BadPath(image_path)
    if ".." in Path(image_path).parts:
        raise BadPath(image_path)
    for name, root in roots_of(tenant).items():
        if (found := _inside(root, image_path)) is not None:
            return name, found.as_posix()
    raise BadPath(image_path)


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


def resolve(tenant: Tenant, image_path: str) -> Slide:
    """The slide row of `image_path`, made when it is new. `tenant` is saved. Raises BadPath."""
    return _row(tenant, *locate(tenant, image_path))


def by_id(tenant: Tenant, wanted: uuid.UUID) -> Slide | None:
    """The slide with this id: its row, or one made now when a file in a root has this id."""
    row: Slide | None = Slide.objects.for_tenant(tenant).filter(uuid=wanted).first()
    if row is not None:
        return row
    for root, path in files_of(tenant):
        if slide_id(tenant, root, path) == wanted:
            return _row(tenant, root, path)
    return None


def files_of(tenant: Tenant) -> Iterator[tuple[str, str]]:
    """(root name, relative path) of every file that the tenant may read."""
    for name, root in roots_of(tenant).items():
        for folder, folders, files in os.walk(root):
            folders.sort()
            for file in sorted(files):
                path = (Path(folder) / file).relative_to(root).as_posix()
                if not file.startswith(".") and _inside(root, path) is not None:
                    yield name, path


def _row(tenant: Tenant, root: str, path: str) -> Slide:
    row, _ = Slide.objects.for_tenant(tenant).get_or_create(
        root=root, path=path, defaults={"tenant": tenant, "uuid": slide_id(tenant, root, path)}
    )
    return row


def real_path(slide: Slide) -> Path:
    """The file behind `slide`, checked again now. Raises BadPath."""
    root = roots_of(slide.tenant).get(slide.root)
    found = _inside(root, slide.path) if root is not None else None
    if root is None or found is None:
        raise BadPath(slide.path)
    return root.resolve() / found
