"""What a move of a job, and a sweep of a scheduler, set off inside this app."""

from __future__ import annotations

import logging
import time

from django.db import DatabaseError

from jobs.scheduling import estimate, tally
from jobs.scheduling.wake import by_database, wake
from jobs.signals import jobs_moved, swept

LEARN_EVERY_S = 15.0
log = logging.getLogger(__name__)
_learnt = {"at": time.monotonic()}  # the first lesson comes after a while: a start is busy enough


def connect() -> None:
    """Wake the schedulers after every move that may let work start; count, and learn from what
    ended."""
    jobs_moved.connect(_wake, dispatch_uid="jobs.wake")
    swept.connect(_learn, dispatch_uid="jobs.learn")
    swept.connect(_keep_counts, dispatch_uid="jobs.tally")


def _wake(*, work_may_start: bool, **_: object) -> None:
    if work_may_start and not by_database():
        wake()


def _learn(**_: object) -> None:
    if time.monotonic() - _learnt["at"] < LEARN_EVERY_S:
        return
    _learnt["at"] = time.monotonic()
    try:
        estimate.learn()
    except DatabaseError as error:
        log.warning("nothing is learnt about how long jobs take: %s", error)


def _keep_counts(**_: object) -> None:
    try:
        tally.keep_in_time()
    except DatabaseError as error:
        log.warning("what was counted for /metrics is kept later: %s", error)
