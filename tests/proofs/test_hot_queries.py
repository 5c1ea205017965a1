"""R12: no statement of the hot path reads a large table from end to end, on either database.

The statements are not named here: they are caught while jobs are promoted, started, ended, …, over
tables that are already large, and the database is asked how it would go about each.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from django.apps import apps
from django.db import connection, models

from jobs import moves, services
from jobs.models import Job, Lease, Worker
from jobs.scheduling import leases, promotion, shards, slots, sweep
from jobs.states import JobState, Reason
from tenants.models import Tenant
from tests import factories
from tests.proofs import bench
from tests.proofs.bench import Word

LARGE = 50_000
TENANTS = 500
LARGE_TABLES = {
    *("jobs_job", "jobs_edge", "jobs_event", "jobs_branch", "tenants_tenant"),
    *("workflows_workflow", "jobs_artifact", "jobs_jobprogress"),
}
READY = f"""
    SELECT j.id FROM jobs_job j
    WHERE j.tenant_id = 2 AND j.queue = 'cpu' AND j.state = {JobState.READY:d}
"""
Statement = tuple[str, Any]

pytestmark = [
    pytest.mark.timeout(600),
    pytest.mark.django_db(transaction=True),
    pytest.mark.usefixtures("small_house"),
]


# --- large tables ------------------------------------------------------------------------


def fill() -> None:
    """50,000 waiting jobs of 500 tenants and as many ended ones, each with an edge and events.

    One workflow goes the one way in; the database copies its rows.
    """
    bench.empty_house()
    jobs = [factories.job("a", "main"), factories.job("b", "main", after=["a"])]
    flow = factories.workflow(factories.tenant(), jobs)
    model = {job.key: job.pk for job in factories.jobs_of(flow).values()}
    first = 1_000_000  # above every id that is given out
    copies = {"n": LARGE // 2}
    _copy("tenants_tenant", TENANTS, {"id": f"{first} + n", "key": "'copy-' || n"})
    owner = f"{first + 1} + n %% {TENANTS}"
    _copy(
        "workflows_workflow",
        TENANTS,
        {"id": _numbered("n"), "tenant_id": owner, "state": "'RUNNING'"},
    )
    _copy("jobs_branch", LARGE // 2, {"id": f"{first} + n", "tenant_id": owner, "name": "'l' || n"})
    for place, (pk, state) in enumerate(
        [(model["a"], JobState.READY), (model["b"], JobState.PENDING), (model["a"], 10)]
    ):
        _copy(
            "jobs_job",
            copies["n"],
            {
                "id": f"{first} * {place + 1} + n",
                "uuid": _uuid(),
                "tenant_id": owner,
                "workflow_id": _numbered(f"1 + n %% {TENANTS}"),
                "branch_id": f"{first} + n",
                "sequence": f"{first} * {place + 1} + n",
                "state": str(int(state)),
                "finished_at": bench.past("t.created_at") if state == 10 else "NULL",
                "key": f"'copy-{place}-' || n",
            },
            where=f"t.id = {pk}",
        )
    _copy(
        "jobs_edge",
        LARGE // 2,
        {
            "id": f"{first} + n",
            "tenant_id": owner,
            "upstream_id": f"{first} + n",
            "downstream_id": f"{first} * 2 + n",
        },
    )
    _copy(
        "jobs_event",
        LARGE,
        {
            "id": f"{first} + n",
            "tenant_id": owner,
            "seq": f"{first} + n",
            "at": bench.past("t.at"),
        },
        where="t.seq = 1",
    )
    bench.write(
        "INSERT INTO jobs_jobprogress (job_id, tenant_id, attempt, phase, progress, tiles_done, "
        "tiles_total, phases, updated_at) SELECT id, tenant_id, 1, 'run', 0.5, 1, 2, '[]', "
        f"created_at FROM jobs_job WHERE id > {first}"
    )
    if (
        connection.vendor == "postgresql"
    ):  # by itself in time; nothing tells SQLite how many there are
        bench.write("ANALYZE")


def _copy(table: str, count: int, changed: dict[str, str], *, where: str = "1 = 1") -> None:
    """Copy the first row of `table` that fits, `count` times, with these columns changed."""
    names = _columns(table)
    quoted = ", ".join(f'"{name}"' for name in names)
    values = ", ".join(changed.get(name, f't."{name}"') for name in names)
    bench.write(
        f"INSERT INTO {table} ({quoted}) "
        "WITH RECURSIVE copies(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM copies "
        f"WHERE n < {count}) SELECT {values} FROM copies CROSS JOIN "
        f"(SELECT * FROM {table} t WHERE {where} ORDER BY 1 LIMIT 1) t"
    )


def _columns(table: str) -> list[str]:
    with connection.cursor() as cursor:
        cursor.execute(f"SELECT * FROM {table} LIMIT 0")
        return [column[0] for column in cursor.description or ()]


def _numbered(number: str) -> str:
    """An expression: the UUID whose digits are that number."""
    if connection.vendor == "postgresql":
        return f"lpad(({number})::text, 32, '0')::uuid"
    return f"printf('%%032d', {number})"


def _uuid() -> str:
    if connection.vendor == "postgresql":
        return "gen_random_uuid()"
    return "lower(hex(randomblob(16)))"


# --- what is caught ----------------------------------------------------------------------


def caught(call: Callable[[], object]) -> list[Statement]:
    """The statements that `call` executes."""
    seen: list[Statement] = []

    def note(execute: Any, statement: str, values: Any, many: bool, context: Any) -> Any:
        if not many:
            seen.append((statement, values))
        return execute(statement, values, many, context)

    with connection.execute_wrapper(note):
        call()
    return seen


def live(tenant: Tenant) -> dict[str, Callable[[], object]]:
    """Every hot move of one tenant's jobs, in the order in which they can happen."""
    jobs = [factories.job(f"j{n}", "lane") for n in range(6)]
    flow = factories.workflow(tenant, [*jobs, factories.job("below", "x", after=["j0"])])
    words: list[Word] = []

    def promote() -> None:
        mine = {job.pk for job in factories.jobs_of(flow).values()}
        words[:] = [word for word in promotion.promote() if word[0] in mine]
        assert words, "the tenant's job was not promoted"

    def word() -> Word:
        return words[0]

    return {
        "submit": lambda: factories.workflow(tenant, [factories.job("more", "lane")]),
        "promote": promote,
        "start": lambda: bench.start(word()),
        "renew": lambda: leases.renew(*word(), "cpu-0"),
        "let it be long": lambda: bench.grow_long(word()),
        "send help": lambda: _help(word()),
        "look for help": lambda: moves.holds_shard(*word(), 1, "cpu-1"),
        "ask it back": lambda: _ask_back("cpu-1"),
        "leave": lambda: moves.leave_shard(word()[0], 1, "cpu-1"),
        "succeed": lambda: bench.succeed(word()),
        "promote again": promote,
        "start again": lambda: bench.start(word()),
        "fail": lambda: bench.fail(word()),
        "sleep": bench.sleep,
        "sweep": sweep.sweep,
        "cancel": lambda: services.cancel(factories.jobs_of(flow)["j4"]),
        "saturated pass": promotion.promote,
        "fail for good": lambda: _end(flow, Reason.BAD_INPUT),
        "sweep again": sweep.sweep,
        "cancel all": lambda: services.cancel_all(tenant.pk, flow.pk),
        "last sweep": sweep.sweep,
    }


def _help(word: Word) -> None:
    ((job, attempt, _, shard),) = shards.settle()
    assert (job, attempt) == word
    assert moves.take_shard(job, attempt, shard, "cpu-1")


def _ask_back(worker: str) -> None:
    Worker.objects.filter(name=worker).update(draining=True)
    shards.settle()
    assert Lease.objects.across_tenants("test").get(worker=worker).attempt == 0
    Worker.objects.filter(name=worker).update(draining=False)


def _end(flow: Any, reason: Reason) -> None:
    running = [job for job in factories.jobs_of(flow).values() if job.status.active]
    assert running
    for job in running:
        bench.start((job.pk, job.attempt))
        assert bench.fail((job.pk, job.attempt), reason)


# moves of the tests themselves, not of the product
OURS = {"sleep", "let it be long"}


# --- how the database goes about it ------------------------------------------------------


def partial_indexes() -> set[str]:
    """The indexes of a few rows of a large table: reading one of them whole is cheap."""
    return {
        index.name
        for model in apps.get_models()
        for index in [*model._meta.indexes, *model._meta.constraints]
        if isinstance(index, models.Index | models.UniqueConstraint) and index.condition
    }


def plan_of(statement: str, values: Any) -> list[str]:
    """How the database would go about it, a line a step."""
    words = "EXPLAIN QUERY PLAN " if connection.vendor == "sqlite" else "EXPLAIN "
    with connection.cursor() as cursor:
        cursor.execute(words + statement, values)
        return [str(row[-1]).strip() for row in cursor.fetchall()]


def full_scans(statement: str, values: Any) -> Iterator[str]:
    """The lines of the database's plan that read a large table from end to end."""
    if not re.match(r"\s*(SELECT|UPDATE|DELETE|INSERT|WITH)\b", statement):
        return
    names = dict(_aliases(statement))
    for line in plan_of(statement, values):
        found = re.match(r"SCAN (\w+)(.*)", line) or re.search(r"Seq Scan on (\w+)(.*)", line)
        if found is None:
            continue
        table = names.get(found[1], found[1])
        small = any(name in found[2] for name in partial_indexes())
        if table in LARGE_TABLES and not small:
            yield line


def _aliases(statement: str) -> Iterator[tuple[str, str]]:
    for table, alias in re.findall(
        r'(?:FROM|JOIN|UPDATE)\s+"?(\w+)"?\s+(?:AS\s+)?"?(\w+)"?', statement
    ):
        yield alias, table


def test_no_hot_statement_reads_a_large_table_whole() -> None:
    fill()
    assert Job.objects.across_tenants("a check of the tests").count() > LARGE
    tenant = factories.tenant()
    _only(tenant)
    sweep.sweep()  # the first one of a process looks at all that is kept
    faults: dict[str, str] = {}
    statements = 0
    for name, call in live(tenant).items():
        for statement, values in caught(call):
            if name in OURS:
                continue
            statements += 1
            for line in full_scans(statement, values):
                faults[" ".join(statement.split())[:600]] = f"{name}: {line}"
    for statement, values in _of_many_groups(tenant):
        statements += 1
        for line in _no_seeks(statement, values):
            faults[" ".join(statement.split())[:600]] = f"a pass over many groups: {line}"
    assert statements > 40
    assert list(full_scans("SELECT count(*) FROM jobs_job WHERE error = 'x'", ())), "it sees none"
    assert list(_no_seeks(f"{READY} ORDER BY j.created_at LIMIT 1", ())), "it sees no sort"
    assert list(_no_seeks(READY.replace("tenant_id", "attempt"), ())), "it sees none"
    assert not faults, "\n".join(f"{place}\n    {text}" for text, place in faults.items())


# --- a tenant of many members and priorities ---------------------------------------------


def _many_groups(tenant: Tenant) -> None:
    """Many ready jobs of one tenant and queue, of 50 members and 3 priorities, 30 waiting for each."""
    flow = factories.workflow(tenant, [factories.job("mixed")])
    model = factories.jobs_of(flow)["mixed"]
    first, count = 10_000_000, 50 * 3 * 30
    _copy(
        "jobs_branch",
        count,
        {"id": f"{first} + n", "tenant_id": str(tenant.pk), "name": "'m' || n"},
    )
    _copy(
        "jobs_job",
        count,
        {
            "id": f"{first} + n",
            "uuid": _uuid(),
            "branch_id": f"{first} + n",
            "sequence": f"{first} + n",
            "member": "n %% 50",
            "priority": "n %% 3",
            "key": "'mixed-' || n",
        },
        where=f"t.id = {model.pk}",
    )
    if connection.vendor == "postgresql":
        bench.write("ANALYZE")


def _of_many_groups(tenant: Tenant) -> list[Statement]:
    """The statements by which a pass finds the candidates of that tenant."""
    _many_groups(tenant)
    assert any(queue.free for queue in slots.read_bounds().queues), "no queue has room"
    seen = caught(promotion.promote)
    of_pass = (promotion.FIRST_AND_LAST, promotion.GROUPS, promotion.OF_GROUP)
    begins = [each.partition("{")[0].strip() for each in of_pass]
    found = [[each for each in seen if begin in each[0]] for begin in begins]
    assert all(found), "the pass did not look at every group"
    return [each for statements in found for each in statements]


def _no_seeks(statement: str, values: Any) -> Iterator[str]:
    """The steps of a plan that sort, or read more jobs than those of a tenant and queue in order."""
    names = dict(_aliases(statement))
    for line, following in itertools.pairwise([*plan_of(statement, values), ""]):
        if re.search(r"\bSort\b|TEMP B-TREE", line):
            yield line
        if found := re.match(r"(?:SCAN|SEARCH) (\w+)(.*)", line):
            table, how = found[1], found[2]
        elif found := re.search(r"Scan.* on (\w+)", line):
            table, how = found[1], following if following.startswith("Index Cond") else ""
        else:
            continue
        if names.get(table, table) != "jobs_job":
            continue
        if not re.search(r"tenant_id ?=.*queue\b.*=|rowid=|\(id = ", how):
            yield line


def _only(tenant: Tenant) -> None:
    """The copies wait, and none of them is in line: what is promoted is this tenant's."""
    bench.write(f"UPDATE tenants_tenant SET waiting_since = NULL WHERE id <> {tenant.pk}")
