"""The database of a private stack: a SQLite file, or a fresh one on the PostgreSQL of DATABASE_URL."""

from __future__ import annotations

import os
import uuid
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import psycopg
from psycopg import sql


def engine() -> str:
    """`postgresql` when DATABASE_URL names such a server, else `sqlite`."""
    scheme = urlsplit(os.environ.get("DATABASE_URL", "")).scheme
    return "postgresql" if scheme.startswith(("postgres", "pgsql")) else "sqlite"


@dataclass(frozen=True)
class Database:
    """One database for one stack; `server` is None for a file."""

    url: str
    name: str
    server: str | None

    def drop(self) -> None:
        """Drop it with every connection to it; a file goes with its folder."""
        if self.server:
            _execute(self.server, "DROP DATABASE IF EXISTS {} WITH (FORCE)", self.name)


def fresh(data: Path) -> Database:
    """An empty database on the engine of this run."""
    if engine() == "sqlite":
        file = data / "db.sqlite3"
        return Database(url=f"sqlite:///{file}", name=str(file), server=None)
    server = os.environ["DATABASE_URL"]
    name = f"labsched_stack_{uuid.uuid4().hex[:12]}"
    _execute(server, "CREATE DATABASE {}", name)
    return Database(url=_with_name(server, name), name=name, server=server)


def _with_name(url: str, name: str) -> str:
    return urlunsplit(urlsplit(url)._replace(path=f"/{name}"))


def _execute(server: str, statement: str, name: str) -> None:
    """Run one statement from the server's own `postgres` database."""
    address = _with_name(server, "postgres")
    with psycopg.connect(address, autocommit=True) as connection:
        connection.execute(sql.SQL(statement).format(sql.Identifier(name)))
