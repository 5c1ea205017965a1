"""Why a job waits: every gate with its present value, its place exact to 1,000, its start."""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Callable
from typing import Any

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from jobs import services
from jobs.models import Branch, Duration, Job, JobProgress, Queue, UserSlot, Worker
from jobs.scheduling import explain, gates, lanes, promotion, slots
from jobs.scheduling.line import Line
from jobs.scheduling.overview import entries
from jobs.states import JobState, Reason
from tenants.models import Tenant, User
from tests import factories
from tests.factories import job, jobs_of, workflow
from workflows import submission

pytestmark = pytest.mark.django_db
ORDER = [
    "maintenance",
    "paused",
    "dependency",
    "branch",
    "retry_wait",
    "no_worker",
    "user_limit",
    "worker_limit",
]


@pytest.fixture(autouse=True)
def house(settings: Any, db: None) -> None:
    settings.LABSCHED_ENABLE_PROBE_JOBS = True
    settings.MAX_WORKERS = 4
    settings.MAX_ACTIVE_USERS = 3
    settings.ACTIVE_USER_QUANTUM_S = 0
    factories.capacity()


def start_all() -> list[tuple[int, int]]:
    promoted = promotion.promote()
    for pk, attempt in promoted:
        assert services.start(pk, attempt, "cpu-0")
    return promoted


def learnt(seconds: float, job_type: str = "probe") -> None:
    """So many jobs took `seconds` that there is no doubt."""
    import math

    Duration.objects.create(
        job_type=job_type, jobs=10**6, log_mean=math.log(seconds), log_variance=0, per_tile=False
    )


def held(answer: dict[str, Any]) -> list[str]:
    return [gate["gate"] for gate in answer["gates"] if gate["holds"]]


def values(answer: dict[str, Any]) -> dict[str, str]:
    return {gate["gate"]: gate["value"] for gate in answer["gates"]}


def in_s(text: str | None) -> float:
    assert text is not None
    return (dt.datetime.fromisoformat(text) - timezone.now()).total_seconds()


# --- the gates -----------------------------------------------------------------------------------


def test_a_job_that_nothing_holds_tells_every_gate_and_starts_now() -> None:
    flow = workflow(factories.tenant(), [job("a", "main")])
    answer = explain.why(jobs_of(flow)["a"])
    assert [gate["gate"] for gate in answer["gates"]] == ORDER
    assert held(answer) == []
    assert values(answer) == {
        "maintenance": "off",
        "paused": "nothing",
        "dependency": "none",
        "branch": "first of its branch",
        "retry_wait": "0 of 3 attempts failed",
        "no_worker": "4 live workers of queue cpu",
        "user_limit": "0 of 3 user slots taken",
        "worker_limit": "0 of 4 busy in queue cpu, 0 of 4 in all",
    }
    assert answer["position"] == 1
    assert abs(in_s(answer["estimated_start"])) < 2
    assert answer["estimated_range"] == [answer["estimated_start"]] * 2


def test_the_first_gate_that_holds_is_the_reason_and_all_that_hold_are_told() -> None:
    flow = workflow(factories.tenant(), [job("a", "main"), job("b", "main", after=["a"])])
    Branch.objects.across_tenants("test").update(paused=True)
    Worker.objects.all().delete()
    slots.set_maintenance(True, "New disks until noon")
    answer = explain.why(jobs_of(flow)["b"])
    assert answer["reason"] == "maintenance"
    assert "New disks until noon." in answer["detail"]
    assert held(answer) == [
        "maintenance",
        "paused",
        "dependency",
        "branch",
        "no_worker",
        "worker_limit",
    ]
    assert answer["estimated_start"] is None
    assert answer["estimated_range"] is None
    slots.set_maintenance(False)
    assert explain.why(jobs_of(flow)["b"])["reason"] == "paused"


def _pause_tenant(row: Job) -> None:
    Tenant.objects.filter(pk=row.tenant_id).update(paused=True)


def _pause_lane(row: Job) -> None:
    lanes.set_paused(row.branch, True)


def _pause_queue(row: Job) -> None:
    Queue.objects.filter(name=row.queue).update(paused=True)


@pytest.mark.parametrize(
    ("pause", "value"), [(_pause_tenant, "you"), (_pause_lane, "branch"), (_pause_queue, "queue")]
)
def test_each_pause_is_told_and_nobody_knows_its_end(
    pause: Callable[[Job], None], value: str
) -> None:
    flow = workflow(factories.tenant(), [job("a", "main")])
    pause(jobs_of(flow)["a"])
    answer = explain.why(jobs_of(flow)["a"])
    assert (answer["reason"], values(answer)["paused"]) == ("paused", value)
    assert answer["estimated_start"] is None


def test_dependencies_are_counted_and_named() -> None:
    names = [f"u{number}" for number in range(8)]
    flow = workflow(factories.tenant(), [*map(job, names), job("end", after=names)])
    promoted = start_all()
    services.succeed(*promoted[0], artifacts=[], summary={})
    answer = explain.why(jobs_of(flow)["end"])
    assert answer["reason"] == "dependency"
    assert values(answer)["dependency"] == "1 of 8 upstream jobs done"
    assert "and 2 more" in answer["detail"]
    assert len(answer["blocking"]) == 7
    assert answer["position"] == 8


def test_the_place_counts_every_step_above() -> None:
    chain = [job(f"c{n:02}", after=[f"c{n - 1:02}"] if n else []) for n in range(30)]
    flow = workflow(factories.tenant(), [*chain, job("side", after=["c04"])])
    rows = jobs_of(flow)
    assert explain.why(rows["c29"])["position"] == 30
    assert explain.why(rows["side"])["position"] == 6


def test_a_retry_tells_its_moment() -> None:
    flow = workflow(factories.tenant(), [job("a")])
    ((pk, attempt),) = start_all()
    services.fail(pk, attempt, Reason.ERROR, "It broke.")
    retry_at = timezone.now() + dt.timedelta(seconds=100)
    Job.objects.across_tenants("test").filter(pk=pk).update(retry_at=retry_at)
    answer = explain.why(jobs_of(flow)["a"])
    assert answer["reason"] == "retry_wait"
    assert "Attempt 1 of 3 failed (It broke)" in answer["detail"]
    assert in_s(answer["estimated_start"]) == pytest.approx(100, abs=3)


def test_the_line_of_users_is_counted_and_nobody_is_named() -> None:
    users = [factories.tenant(f"user-{n}") for n in range(6)]
    flows = [workflow(user, [job("a", "main")]) for user in users]
    start_all()
    places = []
    for flow in flows[3:]:
        answer = explain.why(jobs_of(flow)["a"])
        assert answer["reason"] == "user_limit"
        assert not re.search(r"user-\d", str(answer))
        places.append(answer["position"])
    assert places == [1, 2, 3]
    assert (
        "3 of 3 user slots are taken, 1 user waits before you."
        in explain.why(jobs_of(flows[4])["a"])["detail"]
    )


def test_a_turn_that_is_over_is_told(settings: Any) -> None:
    settings.ACTIVE_USER_QUANTUM_S = 60
    settings.MAX_ACTIVE_USERS = 1
    slots.seed()
    greedy, patient = factories.tenant(), factories.tenant()
    flow = workflow(greedy, [job(f"g{n}", f"b{n}") for n in range(6)])
    start_all()
    ahead = explain.why(jobs_of(flow)["g5"])
    assert ahead["reason"] == "worker_limit"
    workflow(patient, [job("p")])
    UserSlot.objects.update(acquired_at=timezone.now() - dt.timedelta(seconds=61))
    answer = explain.why(jobs_of(flow)["g5"])
    assert answer["reason"] == "user_limit"
    assert "Your turn of 60 s is over" in answer["detail"]


def test_an_active_or_ended_job_says_so() -> None:
    flow = workflow(factories.tenant(), [job("a")])
    ((pk, attempt),) = promotion.promote()
    assert "about to take" in explain.why(jobs_of(flow)["a"])["detail"]
    services.start(pk, attempt, "cpu-0")
    assert explain.why(jobs_of(flow)["a"])["detail"] == "This job is running."
    services.succeed(pk, attempt, artifacts=[], summary={})
    over = explain.why(jobs_of(flow)["a"])
    assert "over" in over["detail"]
    assert (over["position"], over["gates"], over["estimated_range"]) == (None, [], None)


# --- place in line -------------------------------------------------------------------------------


def test_places_are_exact_and_end_at_a_thousand() -> None:
    tenant = factories.tenant()
    flow = workflow(tenant, [job(f"j{n:04}", "main" if n % 2 else None) for n in range(2100)])
    start_all()
    rows = jobs_of(flow)
    assert explain.why(rows["j0021"])["position"] == 11  # of its lane: j0001 runs
    assert explain.why(rows["j1999"])["position"] == 1000
    assert explain.why(rows["j2099"])["position"] == 1001
    assert "more than 1,000" in explain.why(rows["j2099"])["detail"]
    # the three other workers took the first free ones
    assert explain.why(rows["j0008"])["position"] == 2
    assert explain.why(rows["j2004"])["position"] == 1000


def test_priority_and_the_other_members_come_before() -> None:
    tenant = factories.tenant()
    ann, bob = (User.objects.create_user(name) for name in ("ann", "bob"))
    submission.submit(tenant, {"name": "w", "jobs": [job(f"a{n}") for n in range(9)]}, user=ann)
    start_all()  # all four workers run ann's
    flow = submission.submit(
        tenant, {"name": "w", "jobs": [job(f"b{n}") for n in range(3)]}, user=bob
    )
    urgent = submission.submit(tenant, {"name": "w", "jobs": [job("now", priority=5)]}, user=ann)
    places = {key: explain.why(row)["position"] for key, row in jobs_of(flow).items()}
    assert places == {"b0": 2, "b1": 3, "b2": 4}
    assert explain.why(jobs_of(urgent)["now"])["position"] == 1
    first = Job.objects.for_tenant(tenant).get(key="a4")
    assert explain.why(first)["position"] == 5


def test_the_place_is_the_order_in_which_the_plan_takes_them() -> None:
    """Whatever members and priorities: n free workers take exactly those in the first n places."""
    tenant = factories.tenant()
    people = [User.objects.create_user(f"p{n}") for n in range(3)]
    for number in range(24):
        body = {"name": "w", "jobs": [job(f"j{number}", priority=(number * 7) % 3)]}
        submission.submit(tenant, body, user=people[(number * 5) % 3])
    taken = set(promotion.promote())
    everybody = Job.objects.for_tenant(tenant)
    places = {row.pk: explain.why(row)["position"] for row in everybody.waiting()}
    assert sorted(places.values()) == list(range(1, 21))
    for pk, attempt in taken:
        services.hand_back(pk, attempt)
    before = {row.pk: explain.why(row)["position"] for row in everybody}
    again = {pk for pk, _ in promotion.promote()}
    assert {pk for pk, place in before.items() if place <= 4} == again


# --- the estimated start -------------------------------------------------------------------------


def test_no_history_no_estimate() -> None:
    flow = workflow(factories.tenant(), [job(f"j{n}") for n in range(6)])
    start_all()
    answer = explain.why(jobs_of(flow)["j5"])
    assert (answer["estimated_start"], answer["estimated_range"]) == (None, None)


def test_no_worker_no_estimate() -> None:
    learnt(30)
    Worker.objects.all().delete()
    flow = workflow(factories.tenant(), [job("a")])
    assert explain.why(jobs_of(flow)["a"])["estimated_start"] is None


def test_history_gives_a_start_with_a_range() -> None:
    learnt(60)
    flow = workflow(factories.tenant(), [job(f"j{n}") for n in range(9)])
    start_all()
    rows = jobs_of(flow)
    assert in_s(explain.why(rows["j4"])["estimated_start"]) == pytest.approx(60, abs=4)
    assert in_s(explain.why(rows["j8"])["estimated_start"]) == pytest.approx(120, abs=4)
    Duration.objects.update(jobs=4, log_variance=0.5)
    early, late = explain.why(rows["j4"])["estimated_range"]
    assert in_s(early) < 60 < in_s(late)


def test_a_running_jobs_progress_says_more_than_history() -> None:
    learnt(1000)
    flow = workflow(factories.tenant(), [job("run", "main"), job("next", "main")])
    ((pk, _),) = start_all()
    began = timezone.now() - dt.timedelta(seconds=90)
    Job.objects.across_tenants("test").filter(pk=pk).update(started_at=began)
    JobProgress.objects.across_tenants("test").filter(job=pk).delete()
    JobProgress.objects.create(job_id=pk, tenant=flow.tenant, progress=0.75, attempt=1)
    assert in_s(explain.why(jobs_of(flow)["next"])["estimated_start"]) == pytest.approx(30, abs=3)


def test_a_chain_and_a_join_add_up() -> None:
    learnt(10)
    jobs = [job("a"), job("b", after=["a"]), job("c"), job("end", "x", after=["b", "c"])]
    flow = workflow(factories.tenant(), [*jobs, job("then", "x")])
    start_all()
    rows = jobs_of(flow)
    assert in_s(explain.why(rows["end"])["estimated_start"]) == pytest.approx(20, abs=3)
    assert in_s(explain.why(rows["then"])["estimated_start"]) == pytest.approx(30, abs=3)


def test_the_fourth_user_starts_when_the_first_is_done() -> None:
    learnt(20)
    users = [factories.tenant() for _ in range(4)]
    flows = [workflow(user, [job("a", "x"), job("b", "x")]) for user in users]
    start_all()
    answer = explain.why(jobs_of(flows[3])["b"])
    assert answer["reason"] == "branch"
    assert in_s(answer["estimated_start"]) == pytest.approx(60, abs=4)


def test_the_forecast_is_what_the_scheduler_does() -> None:
    """Jobs of 100 s each of three users with lanes, edges, members, priorities and weights, played
    for real on a clock of our own: every job starts when it was forecast to."""
    learnt(100)
    people = [User.objects.create_user(f"p{n}") for n in range(2)]
    for number in range(3):
        owner = factories.tenant(weight=1 + number % 2)
        jobs = [job(f"l{n}", f"lane{n % 2}") for n in range(6)]
        jobs += [job(f"f{n}", priority=n % 2) for n in range(4)]
        jobs += [job("join", after=["l0", "f1"]), job("tail", "lane1", after=["join"])]
        submission.submit(owner, {"name": "w", "jobs": jobs}, user=people[number % 2])
    ends: dict[tuple[int, int], int] = {}
    for number, (pk, attempt) in enumerate(start_all()):  # one ends after the other
        elapsed_s = 10 * number + 5
        began = timezone.now() - dt.timedelta(seconds=elapsed_s)
        Job.objects.across_tenants("test").filter(pk=pk).update(started_at=began)
        ends[pk, attempt] = 100 - elapsed_s
    forecasts: dict[int, float] = {}
    for tenant in Tenant.objects.all():
        forecasts |= {pk: span.typical for pk, span in Line(tenant).starts.items()}
    starts: dict[int, int] = {}
    while ends:
        clock_s = min(ends.values())
        for pair in [pair for pair, end_s in ends.items() if end_s == clock_s]:
            services.succeed(*pair, artifacts=[], summary={})
            del ends[pair]
        for pk, attempt in start_all():
            ends[pk, attempt] = clock_s + 100
            starts[pk] = clock_s
    assert len(starts) == 32
    assert {pk: round(at / 5) * 5 for pk, at in forecasts.items() if pk in starts} == starts


# --- what it costs -------------------------------------------------------------------------------


def queries(row: Job) -> list[str]:
    explain.why(row)
    with CaptureQueriesContext(connection) as seen:
        explain.why(row)
    return [each["sql"] for each in seen.captured_queries]


def test_the_queries_do_not_grow_with_what_waits() -> None:
    tenant = factories.tenant()
    flow = workflow(tenant, [job(f"j{n}") for n in range(6)])
    start_all()
    few = queries(jobs_of(flow)["j5"])
    workflow(tenant, [job(f"k{n}", f"b{n % 9}") for n in range(1500)])
    many = queries(jobs_of(flow)["j5"])
    assert len(many) <= len(few) <= 24


def test_every_query_reads_through_an_index_of_live_rows() -> None:
    tenant = factories.tenant()
    names = [f"j{n}" for n in range(8)]
    flow = workflow(tenant, [*(job(name, "x") for name in names), job("e", after=names), job("f")])
    workflow(factories.tenant(), [job("other")])
    # so many ended jobs that a scan is the wrong plan
    (template, *_) = Job.objects.for_tenant(tenant)
    Job.objects.bulk_create(
        [
            Job(
                tenant=tenant,
                workflow=template.workflow,
                branch=template.branch,
                key=f"old{n}",
                position=1000 + n,
                sequence=10_000 + n,
                job_type="probe",
                queue="cpu",
                state=JobState.SUCCEEDED.value,
                created_at=timezone.now(),
            )
            for n in range(5000)
        ]
    )
    start_all()
    with connection.cursor() as cursor:
        # not everything: tests of another process hold the tables that all databases share
        for table in ("jobs_job", "jobs_edge", "jobs_lease", "jobs_branch", "jobs_userslot"):
            cursor.execute(f"ANALYZE {table}")
    rows = jobs_of(flow)
    asked = {text for key in ("j5", "e", "f") for text in queries(rows[key])}
    scans = [
        text for text in asked if text.lstrip().startswith(("SELECT", "WITH")) and scanned(text)
    ]
    assert scans == []


def scanned(statement: str) -> bool:
    """Whether the plan reads the whole of a table that grows."""
    with connection.cursor() as cursor:
        if connection.vendor == "sqlite":
            cursor.execute(f"EXPLAIN QUERY PLAN {statement}", [])
            plan = [str(row[-1]) for row in cursor.fetchall()]
            return any(re.match(r"SCAN jobs_(job|artifact)\b(?!.*INDEX)", line) for line in plan)
        cursor.execute(f"EXPLAIN {statement}", [])
        return any(re.search(r"Seq Scan on jobs_job\b", row[0]) for row in cursor.fetchall())


# --- the page's way comes to the same ------------------------------------------------------------


def test_the_overview_says_of_every_job_what_why_says_of_it() -> None:
    learnt(10)
    tenant = factories.tenant()
    people = [User.objects.create_user(f"p{n}") for n in range(2)]
    for number in range(2):
        jobs = [job(f"l{n}", f"lane{n % 3}", priority=n % 2) for n in range(9)]
        jobs += [job("join", after=["l0", "l5"]), job("tail", "lane1", after=["join"]), job("solo")]
        submission.submit(tenant, {"name": "w", "jobs": jobs}, user=people[number])
    start_all()
    found = {entry.row.pk: entry for entry in entries(Line(tenant))}
    waiting = list(Job.objects.for_tenant(tenant).waiting().select_related("branch", "tenant"))
    assert {row.pk for row in waiting} == set(found)
    for row in waiting:
        told, entry = explain.why(row), found[row.pk]
        assert entry.gate is not None
        assert (told["reason"], told["position"]) == (entry.gate.reason, entry.position), row.key
        assert told["detail"] == entry.gate.detail


def test_members_take_turns_by_their_leases() -> None:
    others = {2: [1, 2, 3], 3: [50]}
    assert gates.members_before(1, 0, 10, others, {}) == 1  # 2's first was submitted before
    assert gates.members_before(1, 0, 10, others, {2: 1}) == 0
    assert gates.members_before(1, 2, 10, others, {}) == 4
    assert gates.members_before(1, 0, 10, others, {1: 5}) == 4
