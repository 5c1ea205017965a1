"""Procrastinate with one lock a branch: the nearest thing to our lanes on the same PostgreSQL."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import LiteralString

import psycopg
from procrastinate.sql import queries

from bench.peers.base import CHAIN, LANES, TENANTS, Crew, Place
from bench.scheduling_cpu import Meter
from bench.scheduling_servers import new_database, postgres_pid
from tests.processes import Process

FILL = """
    INSERT INTO procrastinate_jobs (queue_name, task_name, priority, lock, args)
    SELECT 'bench', 'noop', 0, 'lane-' || (n %% %(lanes)s), '{}'
    FROM generate_series(1, %(count)s) AS n ORDER BY n
"""


class ProcrastinateLocks:
    """`processes` workers of its own command, together with as many jobs at once as we have workers."""

    engine = "postgresql"
    name = "procrastinate"

    def __init__(self, place: Place, *, processes: int, database: str = "") -> None:
        self.place = place
        self.processes = processes
        self.concurrency = place.workers // processes
        self.layout = f"{processes} x {self.concurrency}"
        self.database = database
        self.crew = Crew(f"procrastinate-{processes}", place.folder)
        self.link: psycopg.Connection

    def open(self) -> None:
        if not self.database:
            self.database = new_database(self.place.postgres, f"procrastinate_{self.processes}")
        self.link = psycopg.connect(self.database, autocommit=True)
        if not self._run("schema", "--apply").wait(60):
            raise RuntimeError("Procrastinate's schema was not applied in time")
        self.crew.members.clear()

    def _run(self, *arguments: str) -> Process:
        return self.crew.hire(
            *(sys.executable, "-m", "procrastinate", "--log-level", "warning"),
            *("--app", "bench.peers.procrastinate_app.app", *arguments),
            BENCH_POSTGRES=self.database,
        )

    def fill(self, shape: str, waiting: int) -> None:
        self.fill_lanes(1 if shape == CHAIN else LANES * TENANTS, waiting)

    def fill_lanes(self, lanes: int, waiting: int) -> None:
        todo = self._number("SELECT count(*) FROM procrastinate_jobs WHERE status = 'todo'")
        if waiting > todo:
            self.link.execute(FILL, {"lanes": lanes, "count": waiting - todo})
            self.link.execute("ANALYZE procrastinate_jobs")

    def done(self) -> int:
        """Each job writes two events, its start and its end: the sequence tells without a scan."""
        return self._number("SELECT last_value FROM procrastinate_events_id_seq") // 2

    def _number(self, query: LiteralString) -> int:
        row = self.link.execute(query).fetchone()
        assert row is not None
        return int(row[0])

    @contextmanager
    def running(self) -> Iterator[None]:
        for _ in range(self.processes):
            self._run("worker", "--queues", "bench", "--concurrency", str(self.concurrency))
        try:
            yield
            self.crew.check()
        finally:
            self.crew.dismiss()

    def clear(self) -> None:
        self.link.execute("TRUNCATE procrastinate_jobs, procrastinate_events CASCADE")

    def meter(self) -> Meter:
        watching = frozenset([self.link.info.backend_pid])
        trees = {"postgresql": [postgres_pid(self.place.postgres)], "workers": self.crew.pids}
        return Meter(trees, watching)

    def fetch(self) -> bool:
        """One decision, by its own query: whether it found a job to run."""
        row = self.link.execute(
            queries["fetch_job"], {"queues": ["bench"], "worker_id": self.worker_id()}
        ).fetchone()
        return row is not None and row[0] is not None

    def worker_id(self) -> int:
        """A worker of its own kind in its table, registered once."""
        if not hasattr(self, "_worker"):
            row = self.link.execute(queries["register_worker"]).fetchone()
            assert row is not None
            self._worker = int(row[0])
        return self._worker

    def close(self) -> None:
        self.crew.dismiss()
        self.link.close()
