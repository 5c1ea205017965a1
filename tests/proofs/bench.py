"""The work bench of the proofs: an empty house, words of workers, and what time would do."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import django_rq
from django.conf import settings
from django.db import connection, connections

from jobs import services
from jobs.models import Job
from jobs.scheduling import dispatch, promotion, shards, sweep, wake
from jobs.states import JobState, Reason
from tests import factories

Word = tuple[int, int]  # (job, attempt): all that a message names
LIMITS: dict[str, Any] = {
    "LABSCHED_ENABLE_PROBE_JOBS": True,
    "MAX_WORKERS": 3,
    "MAX_ACTIVE_USERS": 2,
    "ACTIVE_USER_QUANTUM_S": 0,
    "MAX_ATTEMPTS": 2,
    "LEASE_S": 600,
    "WITHDRAW_S": 600,
    "WORKER_TTL_S": 3600,
    "SPREAD_SHARDS": 3,
    "RETRY_BACKOFF_S": 20,  # held back in the rows, and let go by `sleep`
}
WORKERS = {"cpu": 3, "gpu": 1}
# children before parents
TABLES = (
    *("jobs_event", "jobs_artifact", "jobs_jobprogress", "jobs_lease", "jobs_edge", "jobs_job"),
    *("jobs_branch", "workflows_workflow", "jobs_userslot", "jobs_runslot", "jobs_queue"),
    *("jobs_worker", "tenants_membership", "tenants_tenant", "tenants_user"),
)


def empty_house() -> None:
    """No rows but the slots, queues and workers; nothing on the wire."""
    with connection.cursor() as cursor:
        for table in TABLES:
            cursor.execute(f"DELETE FROM {table}")
    lose_wire()
    factories.capacity(**WORKERS)


# --- the wire ----------------------------------------------------------------------------


def lose_wire() -> None:
    """Redis is emptied."""
    wake.client().flushall()


def on_wire() -> list[Word]:
    """The messages that workers would find, in order."""
    return [word for name in settings.QUEUES for word in map(_read, _queue(name).get_job_ids())]


def pop() -> Word | None:
    """Take the next message off the wire, as a worker does."""
    for name in settings.QUEUES:
        raw: Any = wake.client().lpop(_queue(name).key)
        if raw is not None:
            return _read(raw.decode())
    return None


def _queue(name: str) -> Any:
    return django_rq.get_queue(name, connection=wake.client())


def _read(raw: str) -> Word:
    word = dispatch.read_id(raw.encode())
    assert word is not None, f"{raw} is no message of ours"
    return word[:2]


# --- time --------------------------------------------------------------------------------


def write(statement: str, *values: int) -> int:
    """What no service does: let time pass in the rows. How many rows it touched."""
    with connection.cursor() as cursor:
        cursor.execute(statement, values)
        return int(cursor.rowcount)


def past(column: str, seconds: int = 3600) -> str:
    """An expression: the moment in `column`, so much earlier."""
    if connection.vendor == "postgresql":
        return f"{column} - interval '{seconds} seconds'"
    return f"strftime('%%Y-%%m-%%d %%H:%%M:%%f', {column}, '-{seconds} seconds')"


def expire(job: int) -> None:
    """The lease of a job was not renewed in time."""
    write(f"UPDATE jobs_lease SET expires_at = {past('expires_at')} WHERE job_id = %s", job)


def sleep() -> None:
    """Every back-off is over, and every message was pushed long ago."""
    write(f"UPDATE jobs_job SET retry_at = {past('retry_at')} WHERE retry_at IS NOT NULL")
    write(f"UPDATE jobs_lease SET pushed_at = {past('pushed_at')} WHERE worker = ''")


def grow_long(word: Word) -> None:
    """A job that runs turns out to be of a type that spreads, with much of it left."""
    job, attempt = word
    write(
        f"UPDATE jobs_job SET job_type = '{shards.SPREADS[0]}', started_at = {past('started_at')} "
        "WHERE id = %s",
        job,
    )
    write("DELETE FROM jobs_jobprogress WHERE job_id = %s", job)
    write(
        "INSERT INTO jobs_jobprogress (job_id, tenant_id, attempt, phase, progress, tiles_done, "
        "tiles_total, phases, updated_at) SELECT id, tenant_id, %s, 'segment', 0.1, 1, 10, '[]', "
        "created_at FROM jobs_job WHERE id = %s",
        attempt,
        job,
    )


def end_turns() -> None:
    """Every holder of a user slot has had it for long."""
    write(
        f"UPDATE jobs_userslot SET acquired_at = {past('acquired_at')} WHERE holder_id IS NOT NULL"
    )


# --- words of workers --------------------------------------------------------------------


def start(word: Word, worker: str = "cpu-0") -> bool:
    return services.start(*word, worker) is not None


def succeed(word: Word) -> bool:
    return services.succeed(*word, artifacts=[], summary={"ticks": 1})


def fail(word: Word, reason: Reason = Reason.ERROR) -> bool:
    return services.fail(*word, reason, "It broke.")


# --- several at once ---------------------------------------------------------------------


def at_once(*calls: Callable[[], Any]) -> list[Any]:
    """Run the calls on connections of their own, all at once. Their answers, in order."""
    answers: list[Any] = [None] * len(calls)
    ready = threading.Barrier(len(calls))

    def run(place: int, call: Callable[[], Any]) -> None:
        try:
            ready.wait()
            answers[place] = call()
        except Exception as error:
            answers[place] = error
        finally:
            connections.close_all()

    threads = [threading.Thread(target=run, args=(place, call)) for place, call in enumerate(calls)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for answer in answers:
        if isinstance(answer, Exception):
            raise answer
    return answers


# --- to the end --------------------------------------------------------------------------


def work_off() -> int:
    """Play scheduler and workers until nothing is left to do. How many rounds it took.

    raises AssertionError  when a round changes nothing though jobs are left
    """
    rounds = 0
    while live := _live():
        rounds += 1
        assert rounds <= 3 * len(live) + 200, "it goes on for ever"
        before = _standing()
        sleep()
        sweep.sweep()
        done = _work_one_round()
        assert done or _standing() != before, f"nothing moves any more: {before}"
    promotion.promote()  # takes the last user slot back
    return rounds


def _work_one_round() -> int:
    """Workers take what is on the wire; those that run come to their end."""
    while word := pop():
        start(word)
    rows = Job.objects.across_tenants("tests").filter(state=JobState.RUNNING.value)
    running = list(rows.values_list("pk", "attempt"))
    return sum(succeed(word) or services.finish_cancel(*word) for word in running)


def _live() -> list[int]:
    return list(Job.objects.across_tenants("tests").live().values_list("pk", flat=True))


def _standing() -> list[tuple[int, int, int]]:
    rows = Job.objects.across_tenants("tests").order_by("pk")
    return list(rows.values_list("pk", "state", "attempt"))
