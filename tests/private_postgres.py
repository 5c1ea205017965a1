"""A PostgreSQL of our own for one test run, where its programs are installed; no service, no root needed."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg

from labsched import leash
from labsched.embedded_redis import free_port

START_TIMEOUT_S = 60
STOP_TIMEOUT_S = 20
DEBIAN_PROGRAMS = Path("/usr/lib/postgresql")


def find_programs() -> Path | None:
    """The folder that holds initdb and postgres: on PATH, else the newest that Debian installed."""
    initdb, server = shutil.which("initdb"), shutil.which("postgres")
    if initdb and server:
        return Path(initdb).resolve().parent
    found = sorted(DEBIAN_PROGRAMS.glob("*/bin/initdb"), key=lambda p: float(p.parts[-3]))
    return found[-1].parent if found else None


@contextlib.contextmanager
def private_postgres(programs: Path) -> Iterator[str]:
    """The URL of a fresh server on the loopback address; gone afterwards, with its files."""
    account = _account()
    folder = Path(tempfile.mkdtemp(prefix="labsched-postgres-"))
    if account is not None:
        os.chown(folder, account.pw_uid, account.pw_gid)
    data, port = folder / "data", free_port()
    try:
        _initialise(programs, data, account)
        server = leash.spawn(
            [
                *(str(programs / "postgres"), "-D", str(data), "-p", str(port)),
                *("-k", str(folder), "-c", "listen_addresses=127.0.0.1"),
                # a test run that loses power starts anew: no reason to wait for the disk
                *("-c", "fsync=off", "-c", "full_page_writes=off", "-c", "max_connections=200"),
            ],
            cwd=folder,
            stdout=subprocess.DEVNULL,
            account=account,
        )
        try:
            url = f"postgresql://labsched@127.0.0.1:{port}/labsched"
            _create_database(url, server)
            yield url
        finally:
            leash.stop(server, grace_s=STOP_TIMEOUT_S)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _account() -> pwd.struct_passwd | None:
    """PostgreSQL refuses to run as root: the account that runs it then, None for ourselves."""
    if os.geteuid() != 0:
        return None
    with contextlib.suppress(KeyError):
        return pwd.getpwnam("postgres")
    return pwd.getpwnam("nobody")


def _initialise(programs: Path, data: Path, account: pwd.struct_passwd | None) -> None:
    command = [str(programs / "initdb"), "-D", str(data), "-U", "labsched", "--auth=trust", "-N"]
    options = {} if account is None else {"user": account.pw_uid, "group": account.pw_gid}
    done = subprocess.run(
        [*command, "--encoding=UTF8", "--locale=C"],
        cwd=data.parent,
        capture_output=True,
        text=True,
        check=False,
        **options,
    )
    if done.returncode:
        raise RuntimeError(f"initdb failed: {done.stderr[-500:]}")


def _create_database(url: str, server: subprocess.Popen[bytes]) -> None:
    """Wait until the server answers, then make the database that `url` names."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while True:
        try:
            with psycopg.connect(
                url.removesuffix("labsched") + "postgres", autocommit=True
            ) as link:
                link.execute("CREATE DATABASE labsched")
                return
        except psycopg.OperationalError:
            if server.poll() is not None or time.monotonic() > deadline:
                raise
            time.sleep(0.1)
