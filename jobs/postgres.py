"""The three moves that every job makes, on PostgreSQL: functions of the database, one round trip each.

`scheduling.promotion` and `services` have the same moves statement by statement for other databases;
the tests run on both. The functions are in migration 0006.
"""

from __future__ import annotations

import json
import uuid
from typing import Any, NamedTuple

from django.conf import settings

from jobs import sql
from jobs.models import Job
from jobs.moves import as_job


class Succeeded(NamedTuple):
    """Whose job it was, and its workflow if that was its last live job."""

    tenant_id: int
    over: uuid.UUID | None


def promote(jobs: list[int], run_slots: list[int]) -> list[sql.Row]:
    """READY → QUEUED with lease and event, in the order of `jobs`. (job, attempt, workflow) of each
    that was READY still."""
    values = [jobs, run_slots, settings.WITHDRAW_S]
    return sql.rows("SELECT * FROM labsched_promote(%s, %s, %s)", values)


def start(job_pk: int, attempt: int, worker: str) -> Job | None:
    """QUEUED → RUNNING with lease and event. None when fenced."""
    values = [job_pk, attempt, worker, settings.LEASE_S]
    found = sql.rows("SELECT * FROM labsched_start(%s, %s, %s, %s)", values)
    return as_job(found[0]) if found else None


def succeed(
    job_pk: int, attempt: int, summary: dict[str, Any], reason: str, result_key: str
) -> Succeeded | None:
    """RUNNING → SUCCEEDED with all it means for others, event and notification. None when fenced
    or cancelled."""
    values = [job_pk, attempt, json.dumps(summary), reason, result_key]
    found = sql.rows("SELECT * FROM labsched_succeed(%s, %s, %s, %s, %s)", values)
    return Succeeded(*found[0]) if found else None
