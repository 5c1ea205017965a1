"""The files of one attempt: where it may write, how they get into the storage, how they go again.

Only Artifact and Block rows make a file readable, so files without rows may be removed at any time.
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

from jobs import blobs, blocks, types
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
    """A desk for this attempt. What it did not publish is discarded when its end is written: until
    then helpers finish blocks."""
    in_place = local_folder(attempt_folder(job, job.attempt))
    _clear_earlier(job)
    with contextlib.ExitStack() as stack:
        yield Desk(job, in_place, in_place or Path(stack.enter_context(scratch())))


def scratch() -> tempfile.TemporaryDirectory[str]:
    """A folder of this process on this machine, gone at the end."""
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
    """Remove what earlier attempts left, whose worker was killed: only what rows name is wanted."""
    for attempt in range(1, job.attempt):
        _discard(job, attempt)


class Desk:
    """Where one attempt writes. Where the storage is a disk, `out` is already the final place."""

    def __init__(self, job: Job, in_place: Path | None, scratch: Path) -> None:
        self.job = job
        self.attempt = job.attempt
        self.folder = attempt_folder(job, job.attempt)
        self.in_place = in_place
        self.out = self.in_place or scratch / "out"
        self.inputs = scratch / "in"
        # of what is stored far away
        self.copies = scratch / "blocks" if local_folder(self.folder) is None else None

    def store(self, outcome: Outcome, *, beat: Callable[[], None]) -> list[StoredArtifact]:
        """Put the files of `outcome` into the storage, and drop what else the folder holds."""
        stored = [
            self._put(file, main=file.name == outcome.main, beat=beat) for file in outcome.artifacts
        ]
        if self.in_place is not None and self.out.is_dir():
            self._drop_all_but({blocks.FOLDER, *(file.path.name for file in outcome.artifacts)})
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
        _discard(job, attempt)


def discard_unnamed_blocks(job: Job) -> None:
    """Remove what workers that were killed between a block's file and its row left of an attempt
    that succeeded."""
    folder = f"{attempt_folder(job, job.attempt)}/{blocks.FOLDER}"
    if types.get(job.job_type).help is None:
        return  # it has no blocks, and asking a bucket takes its time
    files = _files_in(folder)
    for name in files - blocks.named(files):
        default_storage.delete(name)


def _discard(job: Job, attempt: int) -> None:
    """Remove the folder of an attempt, but for finished blocks and the files that other jobs share:
    those have rows."""
    folder = attempt_folder(job, attempt)
    local = local_folder(folder)
    if local is not None and not local.exists():
        return
    names = _files_in(folder)
    finished = blocks.paths_of(job.pk, attempt)  # after the files: these have their rows by now
    kept = finished | blobs.named(names - finished)
    if local is not None and not kept:
        _remove(local)
        _prune(local.parent, levels=2)
        return
    for name in names - kept:
        default_storage.delete(name)
    if local is not None:
        for path, _, _ in os.walk(local, topdown=False):
            _prune(Path(path), levels=1)


def _files_in(folder: str) -> set[str]:
    """Every file below a folder of the storage."""
    try:
        folders, names = default_storage.listdir(folder)
    except (OSError, NotImplementedError) as error:
        log.debug("nothing to clear in %s: %s", folder, error)
        return set()
    found = {f"{folder}/{name}" for name in names}
    return found.union(*(_files_in(f"{folder}/{name}") for name in folders))


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
