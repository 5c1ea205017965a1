"""The embedded server: one a folder, kept data, gone with its parent."""

from __future__ import annotations

import os
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from labsched import embedded_redis
from labsched.embedded_redis import EmbeddedRedis, RedisUnavailable
from tests.bootstrap.conftest import Owner, gone_within

OWN_A_SERVER = """
import sys, time
from pathlib import Path
from labsched.embedded_redis import EmbeddedRedis
server = EmbeddedRedis.claim(Path(sys.argv[1]))
server.start()
print(server._process.pid, flush=True)
time.sleep(60)
"""


def test_what_was_written_is_there_after_a_restart_at_the_same_address(tmp_path: Path) -> None:
    first = EmbeddedRedis.claim(tmp_path)
    url = first.start()
    with redis.Redis.from_url(url) as client:
        client.set("kept", "yes")
    first.stop()
    second = EmbeddedRedis.claim(tmp_path)
    try:
        assert second.start() == url
        with redis.Redis.from_url(url) as client:
            assert client.get("kept") == b"yes"
    finally:
        second.stop()


def test_it_listens_on_loopback_and_wants_the_password(tmp_path: Path) -> None:
    server = EmbeddedRedis.claim(tmp_path)
    url = server.start()
    try:
        where = urlsplit(url)
        assert where.hostname == "127.0.0.1"
        with (
            redis.Redis(port=where.port or 0, retry=Retry(NoBackoff(), 0)) as stranger,
            pytest.raises(redis.AuthenticationError),
        ):
            stranger.ping()
    finally:
        server.stop()
    for name in ("url", "server.conf"):
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o600


def test_a_second_one_on_the_same_folder_is_refused_with_a_sentence(tmp_path: Path) -> None:
    server = EmbeddedRedis.claim(tmp_path / "redis")
    try:
        with pytest.raises(RedisUnavailable, match=f"process {os.getpid()}.*LABSCHED_DATA"):
            EmbeddedRedis.claim(tmp_path / "redis")
    finally:
        server.release()
    EmbeddedRedis.claim(tmp_path / "redis").release()


def test_it_dies_with_a_parent_that_is_killed(tmp_path: Path, owner: Callable[..., Owner]) -> None:
    parent = owner(OWN_A_SERVER, str(tmp_path))
    parent.kill()
    assert gone_within(parent.pids[0], 2)
    server = EmbeddedRedis.claim(tmp_path)  # the lock went with them
    server.start()
    server.stop()


def test_an_orphan_that_the_kernel_left_is_ended_and_its_folder_taken(tmp_path: Path) -> None:
    server = EmbeddedRedis.claim(tmp_path)
    # as on a system without the kernel's help: the server keeps the lock, its owner is dead
    orphan = subprocess.Popen(server.command, pass_fds=[server.lock_fd], stdout=subprocess.DEVNULL)
    server.wait_until_ready(orphan)
    (tmp_path / "lock").write_text(f"{_dead_pid()}\n")
    server.release()
    heir = EmbeddedRedis.claim(tmp_path)
    assert orphan.wait(5) == 0
    heir.start()
    heir.stop()


def test_a_server_that_cannot_start_says_what_to_do(tmp_path: Path) -> None:
    server = EmbeddedRedis.claim(tmp_path)
    (tmp_path / "server.conf").write_text("no-such-option 1\n")
    try:
        with pytest.raises(RedisUnavailable, match="Delete that folder and start again"):
            server.start()
    finally:
        server.stop()


def test_the_program_comes_from_the_wheel_or_from_the_machine() -> None:
    assert Path(embedded_redis.find_server()).name in ("valkey-server", "redis-server")


def _dead_pid() -> int:
    ended = subprocess.Popen(["true"])
    ended.wait()
    return ended.pid
