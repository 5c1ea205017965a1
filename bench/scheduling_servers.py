"""The two servers of a run: a private PostgreSQL that is durable, and the embedded Redis."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import psycopg
import redis
from psycopg import sql

from bench.scheduling_cpu import parent_of
from labsched import leash
from labsched.embedded_redis import EmbeddedRedis, free_port
from tests import private_postgres

CONNECTIONS = 300


@contextmanager
def durable_postgres() -> Iterator[str]:
    """The URL of a fresh server with PostgreSQL's own defaults; gone afterwards.

    The one that tests use skips the disk (fsync=off), which would flatter everybody here.
    """
    programs = private_postgres.find_programs()
    if programs is None:
        raise SystemExit("No PostgreSQL is installed: put initdb and postgres on PATH.")
    account = private_postgres._account()
    folder = Path(tempfile.mkdtemp(prefix="labsched-bench-postgres-"))
    if account is not None:
        os.chown(folder, account.pw_uid, account.pw_gid)
    port = free_port()
    private_postgres._initialise(programs, folder / "data", account)
    command = [str(programs / "postgres"), "-D", str(folder / "data"), "-p", str(port)]
    command += ["-k", str(folder), "-c", "listen_addresses=127.0.0.1"]
    command += ["-c", f"max_connections={CONNECTIONS}"]
    server = leash.spawn(command, cwd=folder, stdout=subprocess.DEVNULL, account=account)
    try:
        url = f"postgresql://labsched@127.0.0.1:{port}/labsched"
        private_postgres._create_database(url, server)
        yield url
    finally:
        leash.stop(server, grace_s=private_postgres.STOP_TIMEOUT_S)
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def embedded_redis(folder: Path) -> Iterator[str]:
    """The URL of the server that the one-command start uses."""
    server = EmbeddedRedis.claim(folder)
    try:
        yield server.start()
    finally:
        server.stop()


def new_database(server: str, name: str) -> str:
    """The URL of a fresh database on the server."""
    with psycopg.connect(_named(server, "postgres"), autocommit=True) as link:
        link.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
    return _named(server, name)


def drop_database(url: str) -> None:
    """Drop it with every connection to it."""
    name = urlsplit(url).path.lstrip("/")
    with psycopg.connect(_named(url, "postgres"), autocommit=True) as link:
        link.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


def postgres_facts(url: str) -> dict[str, str]:
    """What was asked of the disk."""
    with psycopg.connect(url, autocommit=True) as link:
        names = ("server_version", "fsync", "synchronous_commit", "full_page_writes")
        return {name: str(link.execute(f"SHOW {name}").fetchone()[0]) for name in names}  # type: ignore[index]


def postgres_pid(url: str) -> int:
    """The postmaster: every backend is its child."""
    with psycopg.connect(url, autocommit=True) as link:
        return parent_of(link.info.backend_pid)


def redis_pid(url: str) -> int:
    with redis.Redis.from_url(url) as client:
        return int(client.info("server")["process_id"])


def _named(url: str, database: str) -> str:
    return urlunsplit(urlsplit(url)._replace(path=f"/{database}"))
