"""The bytes that artifacts share: counted when results are published, removed when nobody is left.

Paths of the storage are never used twice, so a blob that is doomed can not come back to life: its
file may be deleted after the commit, and again after a crash.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Container, Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from django.core.files.storage import FileSystemStorage, default_storage
from django.db import transaction
from django.db.models import Exists, OuterRef, Sum
from django.db.models.signals import post_delete
from django.utils import timezone

from jobs import events
from jobs.models import Artifact, Blob
from tenants.models import Tenant

if TYPE_CHECKING:
    from jobs.services import StoredArtifact

FOLDER_LEVELS = 3
"""Folders above a file that go when they are empty: attempt, job, workflow."""
log = logging.getLogger(__name__)


def connect() -> None:
    """Note every deleted artifact, whatever deletes it."""
    post_delete.connect(_loosen, sender=Artifact, dispatch_uid="jobs.blobs")


def _loosen(instance: Artifact, **_: object) -> None:
    _live(instance.tenant_id).filter(sha256=instance.sha256).update(loose_at=timezone.now())


def _live(tenant_id: int) -> Any:
    rows = Blob.objects.across_tenants("blobs of one tenant")
    return rows.filter(tenant=tenant_id, doomed_at__isnull=True)


def is_stored(path: str, size: int) -> bool:
    """Whether the storage has a file of this size at `path`."""
    try:
        return bool(default_storage.size(path) == size)
    except FileNotFoundError:
        return False


def stored_bytes(tenant: Tenant) -> int:
    """What the results of `tenant` take in the storage."""
    return Blob.objects.for_tenant(tenant).aggregate(sum=Sum("size"))["sum"] or 0


# --- publishing ---------------------------------------------------------------------------


def lost(tenant_id: int, files: list[StoredArtifact]) -> set[str]:
    """Where bytes equal to those of `files` should be, and the storage has none.

    To be asked before the tenant's row is taken: a storage may be far, or hang.
    """
    rows = _live(tenant_id).filter(sha256__in=_hashes(files))
    return {row.path for row in rows if not is_stored(row.path, row.size)}


def share(
    tenant_id: int, files: Iterable[StoredArtifact], lost: Container[str]
) -> list[StoredArtifact]:
    """Count `files`, and lead those whose bytes the tenant has already to those bytes.

    The caller holds the tenant's row. What was doomed since `lost` was asked is no longer among
    the tenant's bytes, and what came since was stored just now.
    """
    wanted = list(files)
    known = {row.sha256: row for row in _live(tenant_id).filter(sha256__in=_hashes(wanted))}
    new: dict[str, Blob] = {}
    spare: list[Blob] = []
    for file in wanted:
        row = known.get(file.sha256) or new.get(file.sha256)
        if row is None:
            new[file.sha256] = _row(tenant_id, file, file.path)
        elif row.path != file.path:
            spare.append(_row(tenant_id, file, _merged(row, file, lost)))
    for row in spare:
        row.doomed_at = timezone.now()
    Blob.objects.bulk_create([*new.values(), *spare])
    rows = {**known, **new}
    return [replace(file, path=rows[file.sha256].path) for file in wanted]


def _hashes(files: list[StoredArtifact]) -> set[str]:
    return {file.sha256 for file in files}


def _row(tenant_id: int, file: StoredArtifact, path: str) -> Blob:
    return Blob(tenant_id=tenant_id, sha256=file.sha256, path=path, size=file.size)


def _merged(row: Blob, file: StoredArtifact, lost: Container[str]) -> str:
    """The path of the two with equal bytes that is not needed. Lost bytes are replaced for all."""
    if row.path not in lost:
        return file.path
    before, row.path = row.path, file.path
    row.save(update_fields=["path"])
    artifacts = Artifact.objects.across_tenants("blobs of one tenant")
    artifacts.filter(tenant=row.tenant_id, sha256=row.sha256, path=before).update(path=row.path)
    return before


def are_live(tenant_id: int, files: Iterable[StoredArtifact]) -> bool:
    """Whether the bytes of `files` are here to stay. The caller holds the tenant's row."""
    wanted = {(file.sha256, file.path) for file in files}
    rows = _live(tenant_id).filter(sha256__in={sha256 for sha256, _ in wanted})
    return wanted <= set(rows.values_list("sha256", "path"))


def named(paths: Iterable[str]) -> set[str]:
    """Those of `paths` that a row knows: they go by their row alone."""
    rows = Blob.objects.across_tenants("files of one attempt").filter(path__in=list(paths))
    return set(rows.values_list("path", flat=True))


# --- clean-up -----------------------------------------------------------------------------


def collect(most: int = 100) -> int:
    """Remove at most `most` files that no artifact needs. Returns how many went."""
    _doom(most)
    doomed = Blob.objects.across_tenants("clean-up").filter(doomed_at__isnull=False)
    return sum(_remove(row) for row in doomed.order_by("doomed_at")[:most])


def _doom(most: int) -> None:
    """Doom what is loose and has no artifact; what has one is loose no more."""
    rows = Blob.objects.across_tenants("clean-up").filter(
        loose_at__isnull=False, doomed_at__isnull=True
    )
    by_tenant: dict[int, list[int]] = {}
    for tenant_id, pk in rows.order_by("loose_at").values_list("tenant_id", "pk")[:most]:
        by_tenant.setdefault(tenant_id, []).append(pk)
    for tenant_id, ids in sorted(by_tenant.items()):
        _doom_of(tenant_id, ids)


def _doom_of(tenant_id: int, ids: list[int]) -> None:
    artifacts = Artifact.objects.across_tenants("clean-up")
    used = Exists(artifacts.filter(tenant=OuterRef("tenant"), sha256=OuterRef("sha256")))
    with transaction.atomic():
        events.lock(tenant_id)  # nobody reuses meanwhile
        mine = _live(tenant_id).filter(pk__in=ids)
        # a deletion under way holds the row: only after it can be seen who is left
        list(mine.select_for_update().values_list("pk"))
        unused = list(mine.exclude(used).values_list("pk", flat=True))
        mine.filter(pk__in=unused).update(doomed_at=timezone.now())
        mine.update(loose_at=None)


def _remove(row: Blob) -> bool:
    """Delete the file, then the row; a storage that refuses is asked again later, after others."""
    try:
        default_storage.delete(row.path)
    except Exception as error:
        log.warning("%s can not be removed from the storage yet: %s", row.path, error)
        row.doomed_at = timezone.now()
        row.save(update_fields=["doomed_at"])
        return False
    _prune(row.path)
    row.delete()
    return True


def _prune(path: str) -> None:
    """Remove the folders that a deleted file leaves empty, where the storage is a disk."""
    if isinstance(default_storage, FileSystemStorage):
        with contextlib.suppress(OSError):  # not empty, or gone
            for folder in list(Path(default_storage.path(path)).parents)[:FOLDER_LEVELS]:
                folder.rmdir()
