"""What a move of a job sets off inside this app."""

from __future__ import annotations

from jobs.scheduling.wake import wake
from jobs.signals import jobs_moved


def connect() -> None:
    """Wake the schedulers after every move that may let work start."""
    jobs_moved.connect(_wake, dispatch_uid="jobs.wake")


def _wake(*, work_may_start: bool, **_: object) -> None:
    if work_may_start:
        wake()
