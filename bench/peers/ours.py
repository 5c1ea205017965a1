"""labsched itself: the real processes, one scheduler and N workers, on one engine."""

from __future__ import annotations

import json
import secrets
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import redis

from bench.peers.base import CHAIN, LANES, TENANTS, Crew, Place
from bench.scheduling_cpu import Meter
from bench.scheduling_servers import drop_database, new_database, postgres_pid, redis_pid
from tests.client import until
from tests.processes import REPOSITORY, Process, die_with_parent, plain_environment

ENGINES = ("postgresql", "sqlite")


class Agent:
    """The process that knows Django for one database: bench/scheduling_agent.py."""

    def __init__(self, env: Mapping[str, str], log: Path) -> None:
        log.parent.mkdir(parents=True, exist_ok=True)
        self.log = log
        with log.open("ab") as sink:
            self.process = subprocess.Popen(
                [sys.executable, str(REPOSITORY / "bench" / "scheduling_agent.py")],
                cwd=REPOSITORY,
                env=dict(env),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=sink,
                text=True,
                preexec_fn=die_with_parent,
            )

    def ask(self, what: str, **arguments: Any) -> Any:
        """Have one thing done, and wait for the answer."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps({"do": what, **arguments}) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        answer = json.loads(line) if line else {"error": "its process ended"}
        if "error" in answer:
            raise RuntimeError(f"{what}: {answer['error']}")
        return answer["answer"]

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


class Database:
    """A fresh database of labsched's on one engine, with its agent."""

    def __init__(self, place: Place, engine: str, name: str, **settings: object) -> None:
        self.data = place.folder / name
        self.data.mkdir(parents=True)
        server = place.postgres
        self.url = f"sqlite:///{self.data / 'db.sqlite3'}"
        if engine == "postgresql":
            self.url = new_database(server, name.replace("-", "_"))
        self.env = _environment(place, self.data, self.url, settings)
        self.agent = Agent(self.env, place.folder / "logs" / f"{name}-agent.log")
        self.agent.ask("migrate")

    def close(self) -> None:
        self.agent.close()
        if self.url.startswith("postgresql"):
            drop_database(self.url)


def _environment(
    place: Place, data: Path, url: str, settings: Mapping[str, object]
) -> dict[str, str]:
    ours: dict[str, object] = {
        "DJANGO_SETTINGS_MODULE": "labsched.settings",
        "DJANGO_SECRET_KEY": secrets.token_hex(32),
        "DATABASE_URL": url,
        "REDIS_URL": place.redis_db(0),
        "LABSCHED_DATA": data,
        "LABSCHED_ENABLE_PROBE_JOBS": 1,
        "MAX_WORKERS": place.workers,
        "MAX_ACTIVE_USERS": TENANTS,
        "ACTIVE_USER_QUANTUM_S": 0,
        "MAX_PENDING_JOBS": 10_000_000,
        "LOG_LEVEL": "WARNING",  # as quiet as the peers
        "PYTHONUNBUFFERED": 1,
        **settings,
    }
    return {**plain_environment(), **{name: str(value) for name, value in ours.items()}}


class Labsched:
    """Scheduler and workers of production. Held back by stopping the scheduler alone."""

    name = "labsched"

    def __init__(
        self, place: Place, engine: str, part: str, *, probed: bool = False, **settings: object
    ) -> None:
        self.place = place
        self.engine = engine
        self.layout = f"1 scheduler, {place.workers} workers"
        self.part = f"{part}-{engine}"
        self.probe_log = place.folder / f"{self.part}.jsonl"
        self.settings = {"LABSCHED_PROBE_LOG": self.probe_log if probed else "", **settings}
        # engines share a Redis, whose queue has one name: each gets a database of its own
        self.redis = place.redis_db(4 + ENGINES.index(engine))
        self.crew = Crew(self.part, place.folder)
        self.database: Database | None = None
        self.submit_s: list[tuple[int, float]] = []
        self.scheduler: Process | None = None

    def open(self) -> None:
        with redis.Redis.from_url(self.redis) as client:
            client.flushdb()  # of an earlier part
        settings = {"REDIS_URL": self.redis, **self.settings}
        self.database = Database(self.place, self.engine, self.part, **settings)
        self.agent = self.database.agent
        self.env = self.database.env
        for _ in range(self.place.workers):
            self.hire()
        until(self._warm, timeout_s=120, what=f"{self.place.workers} warm workers", every_s=0.25)

    def hire(self) -> Process:
        """One more worker."""
        command = (sys.executable, "manage.py", "run_worker", "--queue", "cpu")
        return self.crew.hire(*command, **self.env)

    def _warm(self) -> bool:
        self.crew.check()
        return int(self.agent.ask("warm_workers")) >= self.place.workers

    def fill(self, shape: str, waiting: int) -> None:
        missing = waiting - int(self.agent.ask("waiting"))
        if missing > 0:
            tenants = 1 if shape == CHAIN else TENANTS
            took = self.agent.ask("fill", shape=shape, count=missing, tenants=tenants, lanes=LANES)
            if took is not None:
                self.submit_s.append((missing, took))

    def done(self) -> int:
        return int(self.agent.ask("done"))

    @contextmanager
    def running(self) -> Iterator[None]:
        command = (sys.executable, "manage.py", "run_scheduler")
        self.scheduler = self.crew.hire(*command, **self.env)
        try:
            yield
            self.crew.check()
        finally:
            self.crew.members.remove(self.scheduler)
            self.scheduler.stop(timeout_s=10)
            self.scheduler = None
            until(self._idle, timeout_s=60, what="what was promoted has ended")

    def _idle(self) -> bool:
        return int(self.agent.ask("active")) == 0

    def clear(self) -> None:
        self.agent.ask("clear")
        time.sleep(0.1)

    def meter(self) -> Meter:
        mine = self.scheduler.pid if self.scheduler else 0
        trees = {
            "redis": [redis_pid(self.redis)],
            "scheduler": [mine],
            "workers": [pid for pid in self.crew.pids if pid != mine],
        }
        if self.engine == "postgresql":
            trees["postgresql"] = [postgres_pid(self.place.postgres)]
        return Meter(trees, frozenset([int(self.agent.ask("backend"))]))

    def close(self) -> None:
        self.crew.dismiss()
        if self.database is not None:
            self.database.close()
