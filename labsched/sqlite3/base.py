"""Django's SQLite, with a shorter wait for the turn to write.

SQLite itself waits in steps that grow to 100 ms. Here several workers and a scheduler each write
for a millisecond, many times a second: who waits looks again at once when that is over.
"""

from __future__ import annotations

import random
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager

from django.db.backends.sqlite3 import base
from django.db.utils import OperationalError

LOOK_AGAIN_S = 0.0005
LOOK_SELDOM_S = 0.005  # once it has lasted
SELDOM_AFTER_S = 0.25


class DatabaseWrapper(base.DatabaseWrapper):
    """The backend `labsched.sqlite3`."""

    def _start_transaction_under_autocommit(self) -> None:
        """BEGIN IMMEDIATE as soon as nobody else writes. Raises OperationalError after `timeout`."""
        patience_s = float(self.settings_dict["OPTIONS"]["timeout"])
        began_at = time.monotonic()
        with _without_waiting(self.connection, patience_s):
            while not self._begun():
                waited_s = time.monotonic() - began_at
                if waited_s > patience_s:
                    raise OperationalError("database is locked")
                step_s = LOOK_AGAIN_S if waited_s < SELDOM_AFTER_S else LOOK_SELDOM_S
                time.sleep(step_s * random.uniform(0.5, 1.5))  # noqa: S311 — no secret

    def _begun(self) -> bool:
        with self.wrap_database_errors:
            try:
                self.connection.execute("BEGIN IMMEDIATE")
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY:
                    raise
                return False
        return True


@contextmanager
def _without_waiting(link: sqlite3.Connection, usual_s: float) -> Iterator[None]:
    """SQLite's own wait is off inside, and as before afterwards."""
    link.execute("PRAGMA busy_timeout=0")
    try:
        yield
    finally:
        link.execute(f"PRAGMA busy_timeout={int(usual_s * 1000)}")
