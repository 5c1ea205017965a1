"""Rows by the hundred thousand, set-based: what as many submissions would have left, in seconds.

Columns that are not named here get their model's default, so that the loader follows the models.
"""

from __future__ import annotations

import datetime as dt
import time
from collections.abc import Mapping
from contextlib import contextmanager
from typing import Any

from django.apps import apps
from django.core.management.color import no_style
from django.db import connection, models, transaction
from django.utils import timezone

from jobs.models import Branch, Edge, Job
from jobs.scheduling import slots
from jobs.states import JobState
from tenants.models import Tenant
from workflows.models import Workflow

NUMBERS = "WITH RECURSIVE s(n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM s WHERE n + 1 < {count})"
# live workers stay announced
KEPT = ("worker", "user", "user_groups", "user_user_permissions")
A_WORKFLOW = 10_000  # as many jobs as one submission may bring
_used = {"jobs": 0}  # ids are never used twice: messages of old jobs may still lie in Redis


def clear() -> None:
    """Forget every tenant with its jobs; the slots are made anew."""
    _used["jobs"] = max(_used["jobs"], _last_job())
    mine = [
        model
        for app in ("jobs", "workflows", "tenants")
        for model in apps.get_app_config(app).get_models(include_auto_created=True)
        if model._meta.model_name not in KEPT
    ]
    tables = [model._meta.db_table for model in mine]
    flush = connection.ops.sql_flush(no_style(), tables, reset_sequences=False, allow_cascade=False)
    connection.ops.execute_sql_flush(flush)
    slots.seed()


def _last_job() -> int:
    jobs = Job.objects.across_tenants("the benchmark looks at all of its jobs")
    return int(jobs.aggregate(last=models.Max("pk"))["last"] or 0)


def load(pending: int, tenants: int, lanes: int, *, chained: bool = False) -> float:
    """`pending` no-op probes of `tenants` tenants over `lanes` branches each; the seconds it took.

    For an empty database. The jobs of all tenants lie interleaved in the table, which is the worst
    for locality. The first job of each lane is READY, as raise_heads() leaves it, and every tenant
    stands in line. `chained`: each job of a workflow also waits for the one before it.
    """
    began = time.perf_counter()
    now, each = timezone.now(), -(-pending // tenants)
    flows, first = -(-each // A_WORKFLOW), _used["jobs"] + 1
    # without checking each row's foreign keys, which are right by construction
    with _unchecked(), transaction.atomic(), connection.cursor() as cursor:
        _insert(cursor, Tenant, tenants, _tenants(now, each))
        _insert(cursor, Workflow, tenants * flows, _workflows(now, flows))
        _insert(cursor, Branch, tenants * lanes, _branches(lanes))
        _insert(cursor, Job, pending, _jobs(now, tenants, lanes, first, each, chained=chained))
        if chained:
            _insert(cursor, Edge, pending - 1, _edges(first), where=f"(n + 1) %% {A_WORKFLOW} <> 0")
        for statement in connection.ops.sequence_reset_sql(no_style(), [Tenant, Branch, Job, Edge]):
            cursor.execute(statement)
    with connection.cursor() as cursor:
        # what autovacuum would have done by the time that so much waits
        cursor.execute("VACUUM ANALYZE" if connection.vendor == "postgresql" else "ANALYZE")
    return time.perf_counter() - began


Expressions = Mapping[str, tuple[str, list[Any]]]


def _insert(
    cursor: Any, model: type[models.Model], count: int, given: Expressions, *, where: str = ""
) -> None:
    """Insert `count` rows; `given` are SQL expressions of n = 0.. by column, the rest defaults."""
    columns, chosen, values = [], [], []
    for field in model._meta.concrete_fields:
        if field.name in given:
            expression, parameters = given[field.name]
        elif field.has_db_default() or isinstance(field, models.AutoField):
            continue
        else:
            value = field.get_db_prep_save(field.get_default(), connection)
            expression, parameters = "%s", [value]
        columns.append(connection.ops.quote_name(str(field.column)))
        chosen.append(expression)
        values += parameters
    table = connection.ops.quote_name(model._meta.db_table)
    # PostgreSQL wants WITH before SELECT, SQLite takes that too
    statement = f"INSERT INTO {table} ({', '.join(columns)}) {NUMBERS.format(count=count)} "
    picked = f"SELECT {', '.join(chosen)} FROM s" + (f" WHERE {where}" if where else "")
    cursor.execute(statement + picked, values)


def _tenants(now: dt.datetime, each: int) -> Expressions:
    return {
        "id": ("n + 1", []),
        "key": ("'bench-' || n", []),
        "created_at": _moment(now),
        "next_sequence": (str(each + 1), []),
        "waiting_since": _moment(now),  # equal moments: in line by id
    }


def _workflows(now: dt.datetime, flows: int) -> Expressions:
    return {
        "id": (_uuid("n + 1"), []),
        "tenant": (f"n / {flows} + 1", []),
        "name": ("'bench'", []),
        "created_at": _moment(now),
    }


def _branches(lanes: int) -> Expressions:
    return {
        "id": ("n + 1", []),
        "tenant": (f"n / {lanes} + 1", []),
        "name": (f"'lane-' || (n %% {lanes})", []),
    }


def _jobs(
    now: dt.datetime, tenants: int, lanes: int, first: int, each: int, *, chained: bool
) -> Expressions:
    tenant, place = f"(n %% {tenants})", f"(n / {tenants})"
    flows = -(-each // A_WORKFLOW)
    head = f"{place} < {lanes}"
    at, moment = _moment(now)
    return {
        "id": (f"n + {first}", []),
        "uuid": (_uuid(f"n + {first}"), []),
        "tenant": (f"{tenant} + 1", []),
        "workflow": (_uuid(f"{tenant} * {flows} + {place} / {A_WORKFLOW} + 1"), []),
        "branch": (f"{tenant} * {lanes} + {place} %% {lanes} + 1", []),
        "key": (f"'j' || {place}", []),
        "position": (f"{place} %% {A_WORKFLOW}", []),
        "sequence": (f"{place} + 1", []),
        "job_type": ("'probe'", []),
        "queue": ("'cpu'", []),
        "params": ("%s", [_json({"seconds": 0})]),
        "upstream_left": (f"CASE WHEN n %% {A_WORKFLOW} = 0 THEN 0 ELSE {chained:d} END", []),
        "state": (f"CASE WHEN {head} THEN {JobState.READY:d} ELSE {JobState.PENDING:d} END", []),
        "created_at": (at, moment),
        "ready_at": (f"CASE WHEN {head} THEN {at} END", moment),
    }


def _edges(first: int) -> Expressions:
    return {
        "tenant": ("1", []),
        "upstream": (f"n + {first}", []),
        "downstream": (f"n + {first} + 1", []),
    }


def _json(value: dict[str, int]) -> Any:
    return Job._meta.get_field("params").get_db_prep_save(value, connection)


def _moment(when: dt.datetime) -> tuple[str, list[Any]]:
    value = connection.ops.adapt_datetimefield_value(when)
    return ("%s::timestamptz" if connection.vendor == "postgresql" else "%s"), [value]


def _uuid(number: str) -> str:
    """An expression for the UUID with this number as its digits, as the engine stores it."""
    if connection.vendor == "postgresql":
        return f"lpad(to_hex({number}), 32, '0')::uuid"
    return f"printf('%%032x', {number})"


@contextmanager
def _unchecked() -> Any:
    off, on = ("PRAGMA foreign_keys = OFF", "PRAGMA foreign_keys = ON")
    if connection.vendor == "postgresql":
        off = "SET session_replication_role = replica"
        on = "SET session_replication_role = origin"
    with connection.cursor() as cursor:
        cursor.execute(off)
        try:
            yield
        finally:
            cursor.execute(on)
