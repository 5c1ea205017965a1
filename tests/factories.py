"""Rows for tests: two tenants, probe jobs in every state, workers that count as capacity."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Any

from jobs.models import Job, Worker
from jobs.scheduling import slots, workers
from tenants.models import Tenant
from workflows import submission
from workflows.models import Workflow

_numbers = itertools.count(1)


def tenant(key: str | None = None, **fields: Any) -> Tenant:
    """A saved tenant."""
    return Tenant.objects.create(key=key or f"tenant-{next(_numbers)}", **fields)


def job(
    key: str, branch: str | None = None, after: Iterable[str] = (), **fields: Any
) -> dict[str, Any]:
    """The body of one probe job."""
    body = {"job_id": key, "job_type": "probe", "depends_on": list(after), **fields}
    return body if branch is None else {**body, "branch": branch}


def workflow(owner: Tenant, jobs: Iterable[dict[str, Any]], **fields: Any) -> Workflow:
    """A workflow that went the one way in."""
    return submission.submit(owner, {"name": "test", "jobs": list(jobs), **fields})


def capacity(cpu: int = 4, gpu: int = 0) -> None:
    """Slot rows as the settings say, and so many live workers."""
    slots.seed()
    Worker.objects.all().delete()
    for queue, count in (("cpu", cpu), ("gpu", gpu)):
        for number in range(count):
            workers.announce(f"{queue}-{number}", queue, warm=True)


def jobs_of(flow: Workflow) -> dict[str, Job]:
    """The jobs of a workflow by key, as they are now."""
    rows = Job.objects.for_tenant(flow.tenant).filter(workflow=flow)
    return {row.key: row for row in rows.select_related("branch", "tenant")}


def states(flow: Workflow) -> dict[str, str]:
    """The public state of every job of a workflow."""
    return {key: row.status.public for key, row in jobs_of(flow).items()}
