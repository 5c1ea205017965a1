"""The files of one attempt: where it may write, how they get into the storage, how they go again.

Only Artifact rows make a file readable, so files without rows may be removed at any time.
"""

from __future__ import annotations

import contextlib
import glob
import hashlib
import logging
import os
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from django.core.files import File
from django.core.files.storage import FileSystemStorage, default_storage

from jobs import blobs
from jobs.imaging.contract import ArtifactFile, Outcome
from jobs.models import Artifact, Job
from jobs.services import StoredArtifact

BLOCK = 1 << 20
log = logging.getLogger(__name__)


def attempt_folder(job: Job, attempt: int) -> str:
    """The folder of an attempt in the storage: ids of rows only, never names."""
    return f"results/{job.tenant_id}/{job.workflow_id}/{job.uuid}/a{attempt}"


def local_folder(folder: str) -> Path | None:
    """The same on this machine's disk; None where the storage is elsewhere."""
    if isinstance(default_storage, FileSystemStorage):
        return Path(default_storage.path(folder))
    return None


@contextlib.contextmanager
def desk_of(job: Job) -> Iterator[Desk]:
    """A desk for this attempt. What it did not publish is gone afterwards."""
    in_place = local_folder(attempt_folder(job, job.attempt))
    _clear_earlier(job)
    with contextlib.ExitStack() as stack:
        scratch = in_place or Path(stack.enter_context(_scratch()))
        desk = Desk(job, in_place, scratch)
        try:
            yield desk
        finally:
            if not desk.published:
                discard_attempt(job.pk, desk.attempt)


def _scratch() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(
        prefix=f"{_scratch_prefix()}{os.getpid()}-", ignore_cleanup_errors=True
    )


def _scratch_prefix() -> str:
    """With the host's name: process ids of another container that shares /tmp say nothing here."""
    return f"labsched-{socket.gethostname()}-"


def clear_scratch() -> None:
    """Remove the scratch folders of processes of this machine that live no more."""
    prefix = _scratch_prefix()
    for folder in Path(tempfile.gettempdir()).glob(f"{glob.escape(prefix)}*"):
        pid = folder.name.removeprefix(prefix).partition("-")[0]
        if pid.isdecimal() and not _lives(int(pid)):
            _remove(folder)


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def _clear_earlier(job: Job) -> None:
    """Remove what earlier attempts left, whose worker was killed: a job that runs has no results."""
    for attempt in range(1, job.attempt):
        _discard(attempt_folder(job, attempt))


class Desk:
    """Where one attempt writes. Where the storage is a disk, `out` is already the final place."""

    def __init__(self, job: Job, in_place: Path | None, scratch: Path) -> None:
        self.job = job
        self.attempt = job.attempt
        self.folder = attempt_folder(job, job.attempt)
        self.in_place = in_place
        self.out = self.in_place or scratch / "out"
        self.inputs = scratch / "in"
        self.published = False

    def store(self, outcome: Outcome, *, beat: Callable[[], None]) -> list[StoredArtifact]:
        """Put the files of `outcome` into the storage, and drop what else the folder holds."""
        stored = [
            self._put(file, main=file.name == outcome.main, beat=beat) for file in outcome.artifacts
        ]
        if self.in_place is not None and self.out.is_dir():
            self._drop_all_but({file.path.name for file in outcome.artifacts})
        return stored

    def _put(self, file: ArtifactFile, *, main: bool, beat: Callable[[], None]) -> StoredArtifact:
        path = f"{self.folder}/{file.path.name}"
        size, sha256 = measure(file.path, beat)
        if self.in_place is None:
            with file.path.open("rb") as stream:
                path = default_storage.save(path, File(stream))
        elif file.path.parent != self.in_place:
            shutil.copyfile(file.path, self.in_place / file.path.name)
        beat()
        return StoredArtifact(
            name=file.name, kind=file.kind, path=path, size=size, sha256=sha256, main=main
        )

    def _drop_all_but(self, kept: set[str]) -> None:
        for entry in self.out.iterdir():
            if entry.name not in kept:
                _remove(entry)

    def fetch(self, artifact: Artifact) -> Path:
        """A local file with the bytes of an earlier job's artifact."""
        if self.in_place is not None:
            return Path(default_storage.path(artifact.path))
        target = self.inputs / f"{artifact.pk}-{Path(artifact.path).name}"
        target.parent.mkdir(exist_ok=True)
        with default_storage.open(artifact.path, "rb") as source, target.open("wb") as sink:
            shutil.copyfileobj(source, sink, BLOCK)
        return target


def measure(path: Path, beat: Callable[[], None]) -> tuple[int, str]:
    """Size and sha256 of a file, read in blocks with a sign of life for each."""
    digest = hashlib.sha256()
    size = 0
    with path.open("rb") as stream:
        while block := stream.read(BLOCK):
            digest.update(block)
            size += len(block)
            beat()
    return size, digest.hexdigest()


def upstream_artifacts(job: Job) -> list[Artifact]:
    """What the upstream jobs on the same slide left, the latest job last."""
    rows = Artifact.objects.for_tenant(job.tenant).filter(
        job__edges_down__downstream=job, job__slide=job.slide_id
    )
    return list(rows.select_related("job").order_by("job__sequence", "name"))


def discard_attempt(job_pk: int, attempt: int) -> None:
    """Remove the files of an attempt that no row names: those were published after all."""
    job = Job.objects.across_tenants("a worker clears what it left").filter(pk=job_pk).first()
    if job is None:
        return
    mine = Artifact.objects.for_tenant(job.tenant).filter(job=job, attempt=attempt)
    if not mine.exists():
        _discard(attempt_folder(job, attempt))


def _discard(folder: str) -> None:
    """Remove a folder of the storage, but for the files that other jobs share: those have rows."""
    local = local_folder(folder)
    names = _names_in(folder) if local is None or local.exists() else []
    kept = blobs.named(f"{folder}/{name}" for name in names)
    if local is not None and not kept:
        _remove(local)
        _prune(local.parent, levels=2)
        return
    for name in names:
        if f"{folder}/{name}" not in kept:
            default_storage.delete(f"{folder}/{name}")


def _names_in(folder: str) -> list[str]:
    try:
        return list(default_storage.listdir(folder)[1])
    except (OSError, NotImplementedError) as error:
        log.debug("nothing to clear in %s: %s", folder, error)
        return []


def _prune(folder: Path, *, levels: int) -> None:
    """Remove folders that became empty, upwards."""
    with contextlib.suppress(OSError):  # not empty, or another worker was faster
        for each in [folder, *folder.parents][:levels]:
            each.rmdir()


def _remove(entry: Path) -> None:
    if entry.is_dir() and not entry.is_symlink():
        shutil.rmtree(entry, ignore_errors=True)
    else:
        entry.unlink(missing_ok=True)
