"""Finished blocks from outside the attempt that makes them: read, counted, released, removed.

A block is released when its job succeeded without gaps, was deleted, or ended long ago. From then
on nobody is led to it; its file goes first, then its row, so a crash in between leaves work for the
next clean-up and nothing else.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import hashlib
import logging
from collections.abc import Iterable
from pathlib import Path

from django.conf import settings
from django.core.files.storage import FileSystemStorage, default_storage
from django.db.models import F
from django.utils import timezone

from jobs.models import Block
from jobs.states import FIRST_TERMINAL

FOLDER = "blocks"
"""Below the folder of an attempt."""
FOLDER_LEVELS = 5
"""Folders above a file that go when they are empty: plan, blocks, attempt, job, workflow."""
BATCH = 500
log = logging.getLogger(__name__)


class BlockLost(OSError):
    """The storage has not the bytes that were put there."""


def content_of(path: str, sha256: str) -> bytes:
    """The bytes of a block. Raises BlockLost, and OSError while the storage does not answer: that
    loses nothing."""
    name = Path(path).name
    try:
        with default_storage.open(path, "rb") as stream:
            content: bytes = stream.read()
    except FileNotFoundError as error:
        raise BlockLost(f"the storage lost {name}, which is made again") from error
    if hashlib.sha256(content).hexdigest() != sha256:
        raise BlockLost(f"the storage spoilt {name}, which is made again")
    return content


def finished_since_loss(job_pk: int) -> bool:
    """Whether the job got on since its lease ran out last."""
    rows = Block.objects.across_tenants("blocks of one locked job")
    return rows.filter(job=job_pk, row__gte=0, attempt__gt=F("job__lost_attempt")).exists()


def paths_of(job_pk: int, attempt: int) -> set[str]:
    """The files of one attempt that the job still needs."""
    rows = Block.objects.across_tenants("files of one attempt")
    return set(rows.filter(job=job_pk, attempt=attempt).values_list("path", flat=True))


def named(paths: Iterable[str]) -> set[str]:
    """Those of `paths` that a row knows: they go by their row alone."""
    rows = Block.objects.across_tenants("files of one attempt")
    wanted = list(paths)
    found: set[str] = set()
    for start in range(0, len(wanted), BATCH):
        some = rows.filter(path__in=wanted[start : start + BATCH])
        found.update(some.values_list("path", flat=True))
    return found


# --- clean-up -----------------------------------------------------------------------------


def release(job_pk: int) -> int:
    """Release the blocks of a job, with the transaction that makes them useless. How many."""
    return Block.objects.across_tenants("blocks of one job").filter(job=job_pk).update(job=None)


def forget_old() -> int:
    """Release the blocks of jobs that ended BLOCK_RETENTION_DAYS ago. How many."""
    before = timezone.now() - dt.timedelta(days=settings.BLOCK_RETENTION_DAYS)
    rows = Block.objects.across_tenants("retention")
    ended = rows.filter(job__state__gte=int(FIRST_TERMINAL), job__finished_at__lt=before)
    return ended.update(job=None)


def collect(most: int = 1000) -> int:
    """Remove at most `most` released blocks. Returns how many went."""
    rows = Block.objects.across_tenants("clean-up")
    released = list(rows.filter(job__isnull=True).order_by("finished_at")[:most])
    gone = [block.pk for block in released if _remove(block)]
    for start in range(0, len(gone), BATCH):
        rows.filter(pk__in=gone[start : start + BATCH]).delete()
    return len(gone)


def _remove(block: Block) -> bool:
    """Delete the file; a storage that refuses is asked again later, after others."""
    try:
        default_storage.delete(block.path)
    except Exception as error:
        log.warning("%s can not be removed from the storage yet: %s", block.path, error)
        rows = Block.objects.across_tenants("clean-up")
        rows.filter(pk=block.pk).update(finished_at=timezone.now())
        return False
    if isinstance(default_storage, FileSystemStorage):
        with contextlib.suppress(OSError):  # not empty, or gone
            for folder in list(Path(default_storage.path(block.path)).parents)[:FOLDER_LEVELS]:
                folder.rmdir()
    return True
