"""One job's move by compare-and-swap: the state and attempt it expects are named in the statement.

These are the statements that every job pays for. They write what a move means for the job itself;
what it means for others is in `scheduling.lanes`, and `services` puts both into one transaction.
"""

from __future__ import annotations

import datetime as dt
import json
import uuid
from dataclasses import dataclass
from typing import Any, NamedTuple

from django.conf import settings

from jobs import sql
from jobs.models import Branch, Job
from jobs.states import FIRST_TERMINAL, TRANSITIONS, JobState, Reason
from tenants.models import Tenant

LOCK = """
    SELECT t.id FROM tenants_tenant t JOIN jobs_job j ON j.tenant_id = t.id WHERE j.id = %s {lock}
"""
# the same, and the number of the event that this move will write
NUMBER = """
    UPDATE tenants_tenant SET next_event = next_event + 1
    WHERE id = (SELECT tenant_id FROM jobs_job WHERE id = %s) RETURNING id, next_event - 1
"""
READ = """
    SELECT tenant_id, branch_id, workflow_id, sequence, state, attempt, failures, max_attempts,
        cancel_requested_at IS NOT NULL, on_failure, "key"
    FROM jobs_job WHERE id = %s
"""
START = f"""
    UPDATE jobs_job SET state = {JobState.RUNNING:d}, reason = '', error = '', started_at = {{now}}
    WHERE id = %s AND state = {JobState.QUEUED:d} AND attempt = %s
"""
TAKE_LEASE = """
    UPDATE jobs_lease SET worker = %s, expires_at = {later} WHERE job_id = %s AND attempt = %s
"""
# a helper's hold on a part of a job; asked again, because the answer was lost, it is the same one's
TAKE_SHARD = f"""
    UPDATE jobs_lease SET worker = %s, expires_at = {{later}}
    WHERE job_id = %s AND attempt = %s AND shard = %s AND worker IN ('', %s) AND EXISTS (
        SELECT 1 FROM jobs_job j WHERE j.id = jobs_lease.job_id AND j.state = {JobState.RUNNING:d}
            AND j.attempt = jobs_lease.attempt AND j.cancel_requested_at IS NULL)
"""
HOLDS_SHARD = f"""
    SELECT 1 FROM jobs_lease l JOIN jobs_job j ON j.id = l.job_id
    WHERE l.job_id = %s AND l.attempt = %s AND l.shard = %s AND l.worker = %s
        AND j.state = {JobState.RUNNING:d} AND j.attempt = l.attempt
        AND j.cancel_requested_at IS NULL
"""
# whatever attempt it names: one that is asked back names none
LEAVE_SHARD = "DELETE FROM jobs_lease WHERE job_id = %s AND shard = %s AND worker = %s"
BEGUN = f"""
    SELECT 1 FROM jobs_job j JOIN jobs_lease l ON l.job_id = j.id
    WHERE j.id = %s AND j.state = {JobState.RUNNING:d} AND l.attempt = %s AND l.worker = %s
"""
# what a worker needs of the job that it started; `as_job` reads it
STARTED = """
    SELECT j.id, j.uuid, j.tenant_id, j.workflow_id, j.branch_id, j."key", j.job_type, j.slide_id,
        j.params, j.attempt, t."key", b.name
    FROM jobs_job j JOIN tenants_tenant t ON t.id = j.tenant_id JOIN jobs_branch b
        ON b.id = j.branch_id
    WHERE j.id = %s
"""
SUCCEED = f"""
    UPDATE jobs_job SET state = {JobState.SUCCEEDED:d}, reason = %s, summary = %s, result_key = %s,
        finished_at = {{now}}, user_slot_id = NULL, retry_at = NULL
    WHERE id = %s AND state = {JobState.RUNNING:d} AND attempt = %s AND cancel_requested_at IS NULL
    RETURNING branch_id
"""
END = """
    UPDATE jobs_job SET state = %s, reason = %s, error = %s, failures = %s,
        finished_at = {now}, user_slot_id = NULL, retry_at = NULL
    WHERE id = %s AND state = %s AND attempt = %s
"""
PUT_BACK = f"""
    UPDATE jobs_job SET state = {JobState.PENDING:d}, reason = %s, error = %s, failures = %s,
        user_slot_id = NULL, retry_at = NULL
    WHERE id = %s AND state = %s AND attempt = %s
"""
PUT_OFF = f"""
    UPDATE jobs_job SET state = {JobState.RETRY_WAIT:d}, reason = '{Reason.RETRY_WAIT}', error = %s,
        failures = %s, user_slot_id = NULL, retry_at = {{later}}
    WHERE id = %s AND state = %s AND attempt = %s
"""
DROP_LEASES = "DELETE FROM jobs_lease WHERE job_id = %s"
OVER = f"""
    SELECT j.workflow_id FROM jobs_job j WHERE j.id = %s AND NOT EXISTS (
        SELECT 1 FROM jobs_job l
        WHERE l.workflow_id = j.workflow_id AND l.state < {FIRST_TERMINAL:d})
"""


WANTED = (
    *("id", "uuid", "tenant_id", "workflow_id", "branch_id", "key", "job_type", "slide_id"),
    *("params", "attempt"),
)


class StaleTransition(Exception):
    """The job is not where the move expects it; nothing was written."""


@dataclass(frozen=True)
class Standing:
    """Where a job stands, its tenant's row being held."""

    pk: int
    tenant_id: int
    branch_id: int
    workflow_id: uuid.UUID
    sequence: int
    state: JobState
    attempt: int
    failures: int
    max_attempts: int
    cancel_asked: bool
    on_failure: str
    key: str

    def is_attempt(self, attempt: int) -> bool:
        """Whether this attempt is the present one, and has not ended."""
        return self.attempt == attempt and self.state.active


def locked(job_pk: int) -> Standing | None:
    """Take the row of the job's tenant, then read the job. None when there is no such job."""
    sql.rows(sql.text(LOCK), [job_pk])
    found = sql.rows(READ, [job_pk])
    if not found:
        return None
    tenant, branch, workflow, sequence, state, *rest = found[0]
    attempt, failures, most, cancel_asked, on_failure, key = rest
    return Standing(
        pk=job_pk,
        tenant_id=tenant,
        branch_id=branch,
        workflow_id=as_uuid(workflow),
        sequence=sequence,
        state=JobState(state),
        attempt=attempt,
        failures=failures,
        max_attempts=most,
        cancel_asked=bool(cancel_asked),
        on_failure=on_failure,
        key=key,
    )


def as_uuid(value: Any) -> uuid.UUID:
    """SQLite keeps a UUID as 32 hexadecimal digits."""
    return value if isinstance(value, uuid.UUID) else uuid.UUID(value)


class Taken(NamedTuple):
    """The held row of a job's tenant, and the number of the next event, which is this move's."""

    tenant_id: int
    event: int


def numbered(job_pk: int) -> Taken | None:
    """Take the row of the job's tenant, and a number for one event of the job.

    When the move is refused the caller rolls back: numbers have no holes.
    """
    found = sql.rows(NUMBER, [job_pk])
    return Taken(*found[0]) if found else None


def start(job_pk: int, attempt: int, worker: str) -> bool:
    """QUEUED → RUNNING, the lease is `worker`'s. False when fenced."""
    if sql.run(sql.text(START), [job_pk, attempt]) != 1:
        return False
    return sql.run(sql.text(TAKE_LEASE), [worker, settings.LEASE_S, job_pk, attempt]) == 1


def is_begun(job_pk: int, attempt: int, worker: str) -> bool:
    """Whether `worker` began this attempt already: the answer to its start was lost."""
    return bool(sql.rows(BEGUN, [job_pk, attempt, worker]))


def started(job_pk: int) -> Job:
    """The job as its worker needs it."""
    (row,) = sql.rows(STARTED, [job_pk])
    return as_job(row)


def as_job(row: sql.Row) -> Job:
    """The job in a row of STARTED, with its tenant and branch; other fields load when asked for."""
    *values, tenant_key, branch_name = row
    found = dict(zip(WANTED, values, strict=True))
    for name in ("uuid", "workflow_id"):
        found[name] = as_uuid(found[name])
    found["params"] = json.loads(found["params"])
    names = [field.attname for field in Job._meta.concrete_fields if field.attname in found]
    job = Job.from_db("default", names, [found[name] for name in names])
    job.tenant = Tenant.from_db("default", ["id", "key"], [job.tenant_id, tenant_key])
    job.branch = Branch.from_db("default", ["id", "name"], [job.branch_id, branch_name])
    return job


def take_shard(job_pk: int, attempt: int, shard: int, worker: str) -> bool:
    """A part of a job that runs is `worker`'s to help with. False when no help is wanted now."""
    values = [worker, settings.LEASE_S, job_pk, attempt, shard, worker]
    return sql.run(sql.text(TAKE_SHARD), values) == 1


def holds_shard(job_pk: int, attempt: int, shard: int, worker: str) -> bool:
    """Whether `worker` is to go on helping."""
    return bool(sql.rows(HOLDS_SHARD, [job_pk, attempt, shard, worker]))


def leave_shard(job_pk: int, shard: int, worker: str) -> bool:
    """`worker` helps no more. False when its hold was gone already."""
    return sql.run(LEAVE_SHARD, [job_pk, shard, worker]) == 1


def succeed(
    job_pk: int, attempt: int, summary: dict[str, Any], reason: str, result_key: str
) -> int | None:
    """RUNNING → SUCCEEDED. The job's branch; None when fenced, or a cancel was asked for."""
    values = [reason, json.dumps(summary), result_key, job_pk, attempt]
    found = sql.rows(sql.text(SUCCEED), values)
    if not found or not sql.run(DROP_LEASES, [job_pk]):
        return None
    ((branch_id,),) = found
    return int(branch_id)


def end(
    job: Standing, to: JobState, reason: Reason, *, error: str = "", failures: int | None = None
) -> None:
    """Any live state → FAILED or CANCELLED."""
    kept = job.failures if failures is None else failures
    _swap(job, to, END, [to.value, reason.value, error, kept])


def put_back(
    job: Standing, reason: Reason, *, error: str = "", failures: int | None = None
) -> None:
    """An active or put-off job → PENDING, first of its lane still: the lane makes it ready again."""
    kept = job.failures if failures is None else failures
    _swap(job, JobState.PENDING, PUT_BACK, [reason.value, error, kept])


def put_off(job: Standing, wait: dt.timedelta, *, error: str, failures: int) -> None:
    """An active job → RETRY_WAIT. It stays head of its lane, so order is kept."""
    _swap(job, JobState.RETRY_WAIT, PUT_OFF, [error, failures, wait.total_seconds()])


def _swap(job: Standing, to: JobState, statement: str, values: list[Any]) -> None:
    """Raises StaleTransition when the move is not one of the table, or the job is elsewhere."""
    if to not in TRANSITIONS[job.state]:
        raise StaleTransition(f"{job.key} can not go from {job.state.name} to {to.name}.")
    fence = [job.pk, job.state.value, job.attempt]
    if sql.run(sql.text(statement), [*values, *fence]) != 1:
        raise StaleTransition(f"{job.key} is {job.state.name} no longer.")
    if job.state.active:
        sql.run(DROP_LEASES, [job.pk])


def over_with(job_pk: int) -> list[uuid.UUID]:
    """The job's workflow, if no job of it is live any more."""
    return [as_uuid(workflow) for (workflow,) in sql.rows(OVER, [job_pk])]
