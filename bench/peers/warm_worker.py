"""Plain RQ with the worker kind that labsched has: one long-lived spawned child does all jobs.

Only where RQ would fork is changed. The child runs RQ's own `perform_job`, and the parent watches
it with RQ's own `monitor_work_horse`: heartbeats, hard time-outs and stop commands are RQ's.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import sys
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Any

from redis import Redis
from rq import Queue, Worker
from rq.executions import Execution
from rq.job import Job

PR_SET_PDEATHSIG = 1


class WarmWorker(Worker):
    """An RQ worker whose work-horse stays."""

    _horse: SpawnProcess | None = None
    _pipe: Connection

    def fork_work_horse(self, job: Job, queue: Queue) -> None:
        """Hand the job to the child, which is started once."""
        if self._horse is None or not self._horse.is_alive():
            self._start_horse(queue)
        assert self._horse is not None
        assert self.execution is not None
        self._horse_pid = self._horse.pid or 0
        self._pipe.send((job.id, self.execution.id))

    def wait_for_horse(self) -> tuple[int | None, int | None, Any]:
        """Wait until the child says that it is done, or dies."""
        assert self._horse is not None
        pid = self._horse.pid
        if self._pipe in wait([self._pipe, self._horse.sentinel]) and self._heard():
            return pid, os.EX_OK, None
        self._horse.join()
        code, self._horse = self._horse.exitcode or 0, None
        return pid, -code if code < 0 else code << 8, None

    def _heard(self) -> bool:
        try:
            self._pipe.recv()
        except EOFError:
            return False
        return True

    def _start_horse(self, queue: Queue) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        options = self.connection.connection_pool.connection_kwargs
        kept = {name: options[name] for name in _REDIS_OPTIONS if options.get(name) is not None}
        arguments = (theirs, kept, self.name, queue.name)
        self._horse = context.Process(target=_serve, args=arguments, daemon=True)
        self._horse.start()
        theirs.close()
        self._pipe.recv()


_REDIS_OPTIONS = ("host", "port", "db", "username", "password")


def _serve(pipe: Connection, redis_options: dict[str, Any], worker: str, queue_name: str) -> None:
    """The child: one job after another, until the parent goes."""
    os.setpgrp()  # RQ kills the group
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    connection = Redis(**redis_options)
    queue = Queue(queue_name, connection=connection)
    horse = Worker([queue], name=worker, connection=connection, prepare_for_work=False)
    horse._is_horse = True
    pipe.send("ready")
    while True:
        try:
            job_id, execution_id = pipe.recv()
        except EOFError:
            return
        job = Job.fetch(job_id, connection=connection)
        horse.execution = Execution.fetch(execution_id, job_id, connection=connection)
        horse.perform_job(job, queue)
        pipe.send(job_id)
