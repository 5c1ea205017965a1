"""Plain SQL for the hot path: what every job pays several times costs as few statements as it takes.

Statements are written once for both databases; a few words in braces differ, see `text`.
Every moment is the database's own, so a worker with a wrong clock changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import psycopg
from django.conf import settings
from django.db import OperationalError, connection, transaction

Row = tuple[Any, ...]
BE_BRIEF = "SET LOCAL lock_timeout = '200ms'"

_WORDS = {
    # text, like Django's own: it sorts as time does
    "sqlite": {
        "now": "strftime('%%Y-%%m-%%d %%H:%%M:%%f', 'now')",
        "later": "strftime('%%Y-%%m-%%d %%H:%%M:%%f', 'now', %s || ' seconds')",
        "age": "((julianday('now') - julianday({0})) * 86400.0)",
        "lock": "",
        "lock_free": "",
        "skip": "",
    },
    "postgresql": {
        "now": "clock_timestamp()",
        "later": "(clock_timestamp() + %s * interval '1 second')",
        "age": "extract(epoch FROM clock_timestamp() - {0})::float8",
        # rows that only point at the locked one may still be written meanwhile
        "lock": "FOR NO KEY UPDATE",
        "lock_free": "FOR NO KEY UPDATE SKIP LOCKED",
        "skip": "FOR UPDATE SKIP LOCKED",
    },
}


@cache
def is_postgres() -> bool:
    """Whether this database has functions of its own for the moves that every job makes."""
    return connection.vendor == "postgresql"


class RowHeld(Exception):
    """Somebody holds a row for long; nothing was written."""


@contextmanager
def briefly() -> Iterator[None]:
    """A transaction for who serves all tenants: it gives up on a row that somebody holds for long, a
    large submission or a process that was stopped. Raises RowHeld."""
    try:
        with transaction.atomic():
            if is_postgres():
                run(BE_BRIEF)
            yield
    except OperationalError as error:
        if is_lock_timeout(error):
            raise RowHeld from error
        raise


def is_lock_timeout(error: Exception) -> bool:
    """Whether a statement gave up on a row that somebody else holds."""
    return isinstance(error.__cause__, psycopg.errors.LockNotAvailable)


@cache
def text(statement: str) -> str:
    """`statement` in the words of this database.

    {now}    this moment
    {later}  this moment and as many seconds as its parameter says
    {lock}   hold the rows until the end of the transaction; SQLite's transactions hold them all
    {lock_free}, {skip}  the same, leaving out those that somebody else holds; {skip} for a change
             of what others point at
    """
    return statement.format(**_WORDS[connection.vendor])


def age(column: str) -> str:
    """An expression: the seconds since the moment in `column`; NULL stays NULL."""
    return _WORDS[connection.vendor]["age"].format(column)


@contextmanager
def one_round_trip() -> Iterator[None]:
    """What is run inside is sent together, where the database can; the first answer that is read
    brings all. Inside a transaction."""
    if not is_postgres() or settings.DATABASE_POOLED:
        yield
        return
    connection.ensure_connection()
    with connection.wrap_database_errors, connection.connection.pipeline():
        yield


def marks(values: Sequence[object]) -> str:
    """A placeholder for each value, between commas."""
    return ", ".join(["%s"] * len(values))


def run(statement: str, parameters: Sequence[Any] = ()) -> int:
    """Execute a statement that `text` made. How many rows it touched."""
    with connection.cursor() as cursor:
        cursor.execute(statement, parameters)
        return int(cursor.rowcount)


def rows(statement: str, parameters: Sequence[Any] = ()) -> list[Row]:
    """Execute a statement that `text` made. The rows it answers."""
    with connection.cursor() as cursor:
        cursor.execute(statement, parameters)
        return list(cursor.fetchall())
