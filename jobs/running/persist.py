"""Writes that must not be lost to a database that is away for a moment."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TypeVar

from django.db import DatabaseError, InterfaceError, OperationalError, connection

Answer = TypeVar("Answer")
FIRST_PAUSE_S = 0.1
LONGEST_PAUSE_S = 2.0
log = logging.getLogger(__name__)


def persist(
    write: Callable[[], Answer], *, for_s: float, beat: Callable[[], None] = lambda: None
) -> Answer:
    """The answer of `write`, tried again for `for_s` while the database is away.

    Safe because every write of a job is fenced: one that was committed although its answer was
    lost changes nothing the second time.
    """
    give_up_at = time.monotonic() + for_s
    pause_s = FIRST_PAUSE_S
    while True:
        beat()
        try:
            return write()
        except (OperationalError, InterfaceError) as error:
            if time.monotonic() + pause_s > give_up_at:
                raise
            log.warning("the database does not answer, trying again: %s", error)
        reconnect()
        time.sleep(pause_s)
        pause_s = min(pause_s * 2, LONGEST_PAUSE_S)


def reconnect() -> None:
    """Drop this thread's database connection; the next query opens a new one."""
    try:
        connection.close()
    except DatabaseError as error:
        log.debug("closing a broken connection: %s", error)
