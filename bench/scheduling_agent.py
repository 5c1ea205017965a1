"""The side of the benchmark that knows Django: one process a database, told what to do line by line.

The settings are read once from the environment, so each database needs a process of its own. It
submits, loads, counts and times passes; what it is measured with runs elsewhere. It answers one
JSON line for each one it reads.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

AT_ONCE = 10_000  # the most jobs of one submission
MANY = 50_000  # more than this is loaded, not submitted


def main() -> int:
    """Serve until the pipe closes."""
    import django

    django.setup()
    commands = _commands()
    for line in sys.stdin:
        order = json.loads(line)
        try:
            answer = {"answer": commands[order.pop("do")](**order)}
        except Exception as error:
            import traceback

            traceback.print_exc()
            answer = {"error": f"{type(error).__name__}: {str(error).splitlines()[:1]}"}
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()
    return 0


def _commands() -> dict[str, Callable[..., Any]]:
    from bench import scheduling_decisions, scheduling_loading

    return {
        "backend": backend,
        "migrate": migrate,
        "fill": fill,
        "submit": submit,
        "done": done,
        "active": active,
        "waiting": waiting,
        "warm_workers": warm_workers,
        "clear": scheduling_loading.clear,
        "load": scheduling_loading.load,
        "line_up_workers": scheduling_decisions.line_up_workers,
        "passes": scheduling_decisions.passes,
        "holder": holder,
        "leaves": leaves,
        "cancel": cancel,
    }


def backend() -> int:
    """The process that serves this connection on PostgreSQL; 0 on SQLite."""
    from django.db import connection

    connection.ensure_connection()
    return connection.connection.info.backend_pid if connection.vendor == "postgresql" else 0


def migrate() -> None:
    from django.core.management import call_command

    from jobs.scheduling import slots

    call_command("migrate", verbosity=0)
    slots.seed()


# --- submitting --------------------------------------------------------------------------


def fill(shape: str, count: int, tenants: int, lanes: int) -> float | None:
    """Submit `count` no-ops through the one way in; the seconds that took.

    Where nothing waits and very much is wanted, rows as submissions would have left them are
    loaded instead: None then.
    """
    if count >= MANY and not waiting():
        from bench import scheduling_loading

        chain = shape == "chain"
        scheduling_loading.load(count, tenants, 1 if chain else lanes, chained=chain)
        return None
    began = time.perf_counter()
    if shape == "chain":
        _submit_all("bench-0", _chain(count))
    else:
        for number in range(tenants):
            share = count // tenants + (number < count % tenants)
            _submit_all(f"bench-{number}", _wide(share, lanes))
    return time.perf_counter() - began


def _wide(count: int, lanes: int) -> list[dict[str, Any]]:
    return [_probe(str(n), f"lane-{n % lanes}") for n in range(count)]


def _chain(count: int) -> list[dict[str, Any]]:
    """One lane, and each job waits for the one before it: order twice over."""
    jobs = [_probe(str(n), "chain") for n in range(count)]
    for n in range(1, count):
        if n % AT_ONCE:  # edges join jobs of one workflow
            jobs[n]["depends_on"] = [str(n - 1)]
    return jobs


def _probe(key: str, branch: str, **params: float) -> dict[str, Any]:
    return {
        "job_id": key,
        "job_type": "probe",
        "branch": branch,
        "params": {"seconds": 0, **params},
    }


def _submit_all(user: str, jobs: list[dict[str, Any]]) -> None:
    for start in range(0, len(jobs), AT_ONCE):
        _submit(user, jobs[start : start + AT_ONCE])


def _submit(user: str, jobs: list[dict[str, Any]]) -> Any:
    from tenants.models import Tenant
    from workflows import submission

    tenant, _ = Tenant.objects.get_or_create(key=user)
    return submission.submit(tenant, {"name": "bench", "jobs": jobs})


def submit(user: str, branch: str, jobs: int, seconds: float = 0) -> dict[str, Any]:
    """Probes of one lane. Returns them, and the moment of the commit.

    Our note of that moment is the first of all that happens on commit: the submission's own
    nudges come after it, and count.
    """
    from django.db import transaction

    committed: list[float] = []
    with transaction.atomic():
        transaction.on_commit(lambda: committed.append(time.clock_gettime(time.CLOCK_MONOTONIC)))
        workflow = _submit(user, [_probe(str(n), branch, seconds=seconds) for n in range(jobs)])
    rows = _jobs().filter(workflow=workflow.pk).order_by("position").values_list("uuid", flat=True)
    return {"t": committed[0], "jobs": [str(row) for row in rows]}


# --- looking -----------------------------------------------------------------------------


def _jobs() -> Any:
    from jobs.models import Job

    return Job.objects.across_tenants("the benchmark looks at all of its jobs")


def done() -> int:
    """Jobs that ended: the one partial index that holds them answers."""
    return int(_jobs().ended().filter(finished_at__isnull=False).count())


def active() -> int:
    return int(_jobs().active().count())


def waiting() -> int:
    return int(_jobs().live().count())


def warm_workers() -> int:
    from jobs.models import Worker

    return Worker.objects.live().filter(warm=True).count()


def holder(job: str) -> dict[str, Any]:
    """The worker process that runs a job, {} while nobody does."""
    from jobs.models import Lease, Worker

    leases = Lease.objects.across_tenants("the benchmark looks for a job's worker")
    lease = leases.filter(job__uuid=job).exclude(worker="").first()
    worker = Worker.objects.filter(name=lease.worker).first() if lease else None
    return {"pid": worker.pid, "attempt": lease.attempt} if lease and worker else {}


def leaves(job: str, attempt: int, timeout_s: float) -> float | None:
    """When the row of this attempt was no longer RUNNING; None when that took too long."""
    from jobs.states import JobState

    row = _jobs().filter(uuid=job, attempt=attempt, state=JobState.RUNNING.value)
    deadline = time.monotonic() + timeout_s
    while row.exists():
        if time.monotonic() > deadline:
            return None
        time.sleep(0.005)
    return time.clock_gettime(time.CLOCK_MONOTONIC)


def cancel(job: str) -> None:
    """Cancel one job, unless it is over."""
    from jobs import services

    row = _jobs().filter(uuid=job).first()
    if row is not None and not row.status.terminal:
        services.cancel(row)


if __name__ == "__main__":
    sys.exit(main())
