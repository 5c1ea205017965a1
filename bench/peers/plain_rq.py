"""Plain RQ without limits: the upper bound. Its own command line, its own workers."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import redis
from rq import Queue
from rq.job import JobStatus
from rq.suspension import resume, suspend

from bench.peers import tasks
from bench.peers.base import CHAIN, Crew, Place
from bench.scheduling_cpu import Meter
from bench.scheduling_servers import redis_pid
from tests.client import until

KINDS = {
    "rq-simple": (1, "rq.worker.SimpleWorker"),
    "rq-warm": (2, "bench.peers.warm_worker.WarmWorker"),
    "rq-fork": (3, "rq.worker.Worker"),
}
QUEUE = "bench"
AT_ONCE = 2000
MANY = 20_000  # more than this is cloned inside Redis: the same hashes, in seconds
CLONE = """
    local fields = redis.call('HGETALL', KEYS[1])
    for n = 1, tonumber(ARGV[1]) do
        local id = ARGV[2] .. n
        redis.call('HSET', 'rq:job:' .. id, unpack(fields))
        redis.call('RPUSH', KEYS[2], id)
    end
"""


class PlainRq:
    """N workers of one kind on one queue, in a Redis database of their own."""

    engine = "redis"

    def __init__(self, kind: str, place: Place) -> None:
        self.name = kind
        self.place = place
        database, self.worker_class = KINDS[kind]
        self.layout = f"{place.workers} workers"
        self.url = place.redis_db(database)
        self.connection = redis.Redis.from_url(self.url)
        self.queue = Queue(QUEUE, connection=self.connection)
        self.crew = Crew(kind, place.folder)
        self.marks = place.folder / f"{kind}.marks"
        self.workers = [f"{kind}-{number}" for number in range(place.workers)]

    def open(self) -> None:
        """Start the workers and let each begin a job, so that children are warm."""
        for name in self.workers:
            self.crew.hire(
                *(sys.executable, "-m", "rq.cli", "worker", QUEUE, "--quiet", "--name", name),
                *("--worker-class", self.worker_class, "--url", self.url),
                BENCH_MARKS=str(self.marks),
            )
        until(self._registered, timeout_s=60, what=f"{self.name} workers up")
        self._warm_up()
        suspend(self.connection)

    def _registered(self) -> bool:
        self.crew.check()
        return all(self.connection.exists(f"rq:worker:{name}") for name in self.workers)

    def _warm_up(self) -> None:
        def each_did_one() -> bool:
            self.fill("wide", 4 * len(self.workers))
            return min(self._counts()) > 0

        until(each_did_one, timeout_s=60, what=f"{self.name} workers warm")
        until(lambda: self.queue.count == 0, timeout_s=60, what=f"{self.name} idle")

    def fill(self, shape: str, waiting: int) -> None:
        if shape == CHAIN:
            if self.queue.count == 0:
                self.queue.enqueue(tasks.chain_step)
            return
        if waiting - self.queue.count >= MANY:
            self._clone(waiting - self.queue.count)
        while (missing := waiting - self.queue.count) > 0:
            data = [Queue.prepare_data(tasks.noop) for _ in range(min(missing, AT_ONCE))]
            self.queue.enqueue_many(data)

    def _clone(self, count: int) -> None:
        """As many copies of one saved job: what enqueueing each would have left in Redis."""
        job = self.queue.create_job(tasks.noop, status=JobStatus.QUEUED)
        job.enqueued_at = job.created_at
        job.save()
        script = self.connection.register_script(CLONE)
        script(keys=[job.key, self.queue.key], args=[count, f"{self.name}-{time.time_ns()}-"])
        job.delete()

    def done(self) -> int:
        return sum(self._counts())

    def _counts(self) -> list[int]:
        pipe = self.connection.pipeline(transaction=False)
        for name in self.workers:
            pipe.hget(f"rq:worker:{name}", "successful_job_count")
        return [int(count or 0) for count in pipe.execute()]

    @contextmanager
    def running(self) -> Iterator[None]:
        resume(self.connection)
        try:
            yield
        finally:
            suspend(self.connection)

    def clear(self) -> None:
        time.sleep(0.5)  # what runs still ends, and the last of a chain enqueues one more
        self.queue.empty()

    def meter(self) -> Meter:
        return Meter({"redis": [redis_pid(self.url)], "workers": self.crew.pids})

    def mark(self) -> float:
        """Enqueue one job on the idle workers; seconds from enqueue's return to its body."""
        before = _lines(self.marks)
        self.queue.enqueue(tasks.mark)
        enqueued = time.monotonic()
        found = until(
            lambda: _lines(self.marks)[len(before) :],
            timeout_s=10,
            what=f"{self.name} began a job",
            every_s=0.005,
        )
        return float(found[0]) - enqueued

    def close(self) -> None:
        self.crew.dismiss()
        self.connection.flushdb()
        self.connection.close()


def _lines(path: Path) -> list[str]:
    return path.read_text().split("\n")[:-1] if path.exists() else []
