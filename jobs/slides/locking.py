"""Locks on folders that processes of one machine share; they end with the process that has them."""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path

from jobs.slides.files import Beat

LOCK = ".lock"
POLL_S = 0.25


def locked(folder: Path, kind: int, *, beat: Beat | None) -> int | None:
    """A descriptor that holds the lock of `folder`; None when that is not there.

    beat   called while the lock is waited for; None: do not wait, a lock that is taken gives None
    """
    file = folder / LOCK
    while True:
        try:
            descriptor = os.open(file, os.O_RDWR)
        except FileNotFoundError:
            return None
        try:
            taken = _taken(descriptor, file, kind, beat)
        except BaseException:
            os.close(descriptor)
            raise
        if taken and _is(file, descriptor):
            return descriptor
        os.close(descriptor)
        if not taken and beat is None:
            return None


def _taken(descriptor: int, file: Path, kind: int, beat: Beat | None) -> bool:
    """Whether the lock was taken; False, too, when the folder is renamed or removed meanwhile:
    under its new name others may hold it for hours."""
    while _is(file, descriptor):
        try:
            fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            if beat is None:
                return False
            beat()
            time.sleep(POLL_S)
        else:
            return True
    return False


def _is(file: Path, descriptor: int) -> bool:
    try:
        return file.stat().st_ino == os.fstat(descriptor).st_ino
    except FileNotFoundError:
        return False
