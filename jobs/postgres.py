"""The two moves that every job makes, on PostgreSQL: functions of the database, one round trip each.

`services` has the same moves statement by statement for other databases; the tests run on both.
The functions are in migration 0004.
"""

from __future__ import annotations

import json
import uuid
from typing import Any, NamedTuple

from django.conf import settings

from jobs import sql


class Succeeded(NamedTuple):
    """Whose job it was, and its workflow if that was its last live job."""

    tenant_id: int
    over: uuid.UUID | None


def start(job_pk: int, attempt: int, worker: str) -> int | None:
    """QUEUED → RUNNING with lease and event. The tenant's id; None when fenced."""
    values = [job_pk, attempt, worker, settings.LEASE_S]
    ((tenant_id,),) = sql.rows("SELECT labsched_start(%s, %s, %s, %s)", values)
    return None if tenant_id is None else int(tenant_id)


def succeed(
    job_pk: int, attempt: int, summary: dict[str, Any], reason: str, result_key: str
) -> Succeeded | None:
    """RUNNING → SUCCEEDED with all it means for others, event and notification. None when fenced
    or cancelled."""
    values = [job_pk, attempt, json.dumps(summary), reason, result_key]
    found = sql.rows("SELECT * FROM labsched_succeed(%s, %s, %s, %s, %s)", values)
    return Succeeded(*found[0]) if found else None
