"""Slides of the bucket in a folder of this machine: fetched once, shared by its processes, bounded.

A slide's files are `<cache>/slides-staged/<version>-<bytes>/files/…`; a folder that ends in `.partial`
is being fetched. Whoever reads one holds a shared lock on its `.lock`, who fetches or removes it an
exclusive one. Locks go with their process, so nothing has to be cleaned up after a kill.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import threading
import time
import uuid
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path

from django.conf import settings

from jobs.slides import bucket, companions, downloads
from jobs.slides.bucket import SlideAway, Stored, Unanswered
from jobs.slides.files import Beat, staged_root
from jobs.slides.locking import LOCK, locked

LEFT_FREE = 1 << 30
"""Bytes of the disk that stay free: others write there too."""
RETRY_S = 5
PATIENCE_S = 180.0
"""How long a worker waits for a bucket that does not answer: an outage is no fault of the job."""
HEADS_A_REQUEST = 32
MOST_FETCHES, MOST_FAILURES = 3, 100
"""In the background of one process: any reader can ask for any slide."""
PARTIAL = ".partial"


class NotStaged(SlideAway):
    """The slide is not on this machine; `retry_s` where it is being fetched."""

    def __init__(self, text: str, retry_s: int | None = None) -> None:
        super().__init__(text)
        self.retry_s = retry_s


class Held:
    """A slide file that stays where it is until `release`, or until nobody knows this object."""

    def __init__(self, path: Path, descriptor: int | None = None) -> None:
        self.path = path
        self._descriptor = descriptor

    def release(self) -> None:
        """Let the file go, as far as this holder is concerned."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)

    def __enter__(self) -> Path:
        return self.path

    def __exit__(self, *_: object) -> None:
        self.release()

    def __del__(self) -> None:
        self.release()


def fetched(path: str, *, beat: Beat, patience_s: float | None = None) -> Held:
    """The slide `path` of the bucket as a local file, fetched where it is not here yet.

    beat        called at least twice a second while that takes its time; what it raises ends it
    patience_s  how long a bucket may not answer; by default PATIENCE_S
    raises      bucket.Gone; SlideAway
    """
    patience_s = PATIENCE_S if patience_s is None else patience_s
    while True:
        main, parts = _asked(path, beat, patience_s)
        folder = _folder_of(parts)
        if (held := _hold(folder, main)) is not None:
            return held
        _fill(folder, parts, beat)


def _asked(path: str, beat: Beat, patience_s: float) -> tuple[Stored, list[Stored]]:
    """The slide's own object and all of its parts."""

    def ask() -> tuple[Stored, list[Stored]]:
        main = bucket.find(path)
        return main, companions.parts_of(main)

    give_up = time.monotonic() + patience_s
    while True:
        try:
            return downloads.while_beating(ask, beat)
        except Unanswered:
            if time.monotonic() + RETRY_S > give_up:
                raise
        downloads.pause(RETRY_S, beat)


def at_hand(path: str) -> Held | None:
    """The slide if it is here already, as far as a few questions tell. Raises Gone or SlideAway."""
    main = bucket.find(path)
    try:
        parts = companions.parts_of(main, most_heads=HEADS_A_REQUEST)
    except companions.ManyHeads:
        return None  # who fetches it asks them all, and they are remembered
    return _hold(_folder_of(parts), main)


# --- in the background --------------------------------------------------------------------

_under_way: dict[str, threading.Thread] = {}
_failed: OrderedDict[str, Exception] = OrderedDict()
_lock = threading.Lock()


def opened(path: str) -> Held:
    """The slide if it is here; else NotStaged, and a thread of this process fetches it.

    Raises what ended that thread, once: the question after it begins anew.
    """
    if (held := at_hand(path)) is not None:
        return held
    with _lock:
        if (failure := _failed.pop(path, None)) is not None:
            raise failure
        if path not in _under_way and len(_under_way) >= MOST_FETCHES:
            raise NotStaged(
                f"{Path(path).name} waits until other slides are fetched from the slide bucket: try "
                "again in a moment.",
                RETRY_S,
            )
        if path not in _under_way:
            # a daemon: a server that is stopped waits for no download
            _under_way[path] = threading.Thread(target=_fetch_for_later, args=(path,), daemon=True)
            _under_way[path].start()
    raise NotStaged(
        f"{Path(path).name} is being fetched from the slide bucket: try again in a moment.", RETRY_S
    )


def _fetch_for_later(path: str) -> None:
    try:
        fetched(path, beat=lambda: None, patience_s=0).release()
    except Exception as failure:  # told to whoever asks next
        with _lock:
            _failed[path] = failure
            while len(_failed) > MOST_FAILURES:
                _failed.popitem(last=False)
    finally:
        with _lock:
            del _under_way[path]


# --- the folder ---------------------------------------------------------------------------


def _folder_of(parts: list[Stored]) -> Path:
    """Where this version of these files is kept; the name tells its bytes, too."""
    digest = hashlib.sha256(bucket.identity().encode())
    for part in parts:
        digest.update(f"\0{part.path}\0{part.etag}\0{part.size}".encode())
    return staged_root() / f"{digest.hexdigest()[:32]}-{sum(part.size for part in parts)}"


def _hold(folder: Path, main: Stored) -> Held | None:
    descriptor = locked(folder, fcntl.LOCK_SH, beat=lambda: None)
    if descriptor is None:
        return None
    os.utime(folder / LOCK)  # what was used last goes last
    return Held(_file_of(folder, main), descriptor)


def _file_of(folder: Path, part: Stored) -> Path:
    # by the whole path: two files of one slide may have equal names in two folders
    return folder / "files" / part.path


def _fill(folder: Path, parts: list[Stored], beat: Beat) -> None:
    """Fetch `parts`, or wait until another process has. The caller looks again then."""
    partial = folder.with_name(folder.name + PARTIAL)
    _claim(folder, partial, parts)
    descriptor = locked(partial, fcntl.LOCK_EX, beat=beat)
    if descriptor is None:
        return  # it is whole by now, or who fetched it failed
    try:
        for part in parts:
            downloads.fetch(part, _file_of(partial, part), beat=beat)
        partial.rename(folder)
    except BaseException:
        _discard(partial)
        raise
    finally:
        os.close(descriptor)


def _claim(folder: Path, partial: Path, parts: list[Stored]) -> None:
    """Make the folder with files of full size, after others made room. Raises SlideAway."""
    staged_root().mkdir(parents=True, exist_ok=True)
    with _one_at_a_time():
        if any((each / LOCK).exists() for each in (folder, partial)):
            return
        for halved in (folder, partial):  # by a process that was killed
            _discard(halved)
        _make_room(sum(part.size for part in parts), Path(parts[0].path).name)
        try:
            for part in parts:
                _allocate(_file_of(partial, part), part.size)
            (partial / LOCK).touch()
        except OSError as error:
            _discard(partial)
            raise SlideAway(
                f"The slide cache can not be written ({error.strerror}): free some of the disk that "
                "holds LABSCHED_CACHE, then try again."
            ) from error


def _allocate(file: Path, size: int) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("wb") as stream:
        if size and hasattr(os, "posix_fallocate"):  # elsewhere a full disk shows later
            os.posix_fallocate(stream.fileno(), 0, size)


def _make_room(wanted: int, name: str) -> None:
    """Remove what was used longest ago until `wanted` bytes fit. Raises SlideAway."""
    limit = settings.SLIDE_CACHE_GB * 1e9
    if wanted > limit:
        raise SlideAway(
            f"{name} has {wanted / 1e9:.1f} GB, more than the slide cache may hold. Ask the operator "
            f"to raise SLIDE_CACHE_GB ({settings.SLIDE_CACHE_GB:g})."
        )
    for each in staged_root().glob("gone.*"):
        shutil.rmtree(each, ignore_errors=True)
    folders = sorted((each for each in staged_root().iterdir() if each.is_dir()), key=_last_used)
    free = shutil.disk_usage(staged_root()).free - LEFT_FREE
    missing = max(sum(_bytes_of(each) for each in folders) + wanted - limit, wanted - free)
    doomed: list[Path] = []
    with contextlib.ExitStack() as locks:
        for oldest in folders:
            if missing > 0 and _seized(oldest, locks):
                doomed.append(oldest)
                missing -= _bytes_of(oldest)
        if missing > 0:  # nothing was removed yet: others may still want what is there
            raise SlideAway(
                f"There is no room for {name} ({wanted / 1e9:.1f} GB): the other slides of the cache "
                "are in use, or its disk is full. Try again later, or ask the operator to raise "
                f"SLIDE_CACHE_GB ({settings.SLIDE_CACHE_GB:g}) or to free some of the disk."
            )
        for each in doomed:
            _discard(each)


def _seized(folder: Path, locks: contextlib.ExitStack) -> bool:
    """Lock `folder` among `locks`, to be removed; False where somebody reads or fills it."""
    descriptor = locked(folder, fcntl.LOCK_EX, beat=None)
    if descriptor is not None:
        locks.callback(os.close, descriptor)
    return descriptor is not None or not (folder / LOCK).exists()


def _discard(folder: Path) -> None:
    """Delete `folder`, which nobody else may find in the middle of that."""
    doomed = folder.with_name(f"gone.{uuid.uuid4().hex}")
    with contextlib.suppress(FileNotFoundError):
        folder.rename(doomed)
        shutil.rmtree(doomed, ignore_errors=True)


def _last_used(folder: Path) -> float:
    try:
        return (folder / LOCK).stat().st_mtime
    except FileNotFoundError:
        return 0.0  # half made, or half removed, when its process was killed


def _bytes_of(folder: Path) -> int:
    size = folder.name.removesuffix(PARTIAL).rpartition("-")[2]
    return int(size) if size.isdigit() else 0


@contextlib.contextmanager
def _one_at_a_time() -> Iterator[None]:
    """One process of this machine makes room at a time."""
    with (staged_root() / "room.lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
