"""Workflows over HTTP: shapes, pages, refusals, and how many queries an answer costs."""

from __future__ import annotations

from typing import Any

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from rest_framework.test import APIClient

from tests import factories
from tests.api.conftest import GONE, People, by_header

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("capacity")]

WORKFLOW = {"id", "name", "state", "progress", "created_at", "finished_at"}
JOB = {
    "id", "job_id", "workflow_id", "branch", "job_type", "state", "reason", "progress", "phase",
    "tiles_done", "tiles_total", "attempt", "max_attempts", "depends_on", "params", "priority",
    "error", "created_at", "queued_at", "started_at", "finished_at", "artifacts",
}  # fmt: skip


def submit(client: APIClient, *jobs: dict[str, Any], name: str = "n") -> dict[str, Any]:
    answer = client.post("/api/workflows", {"name": name, "jobs": list(jobs)})
    assert answer.status_code == 201, answer.content
    found: dict[str, Any] = answer.json()
    return found


def test_creating_answers_the_whole_object() -> None:
    ann = by_header("ann")
    made = submit(ann, factories.job("b", "x"), factories.job("a", "y", after=["b"]))
    assert {*WORKFLOW, "jobs", "edges"} <= set(made)
    assert [job["job_id"] for job in made["jobs"]] == ["b", "a"], "in submitted order"
    assert set(made["jobs"][0]) >= JOB
    assert made["edges"] == [["b", "a"]]
    assert made["jobs"][1]["depends_on"] == ["b"]
    assert ann.get(f"/api/workflows/{made['id']}").json() == made
    assert ann.get(f"/api/workflows/{made['id']}/").json() == made


def test_an_empty_workflow_waits_for_jobs() -> None:
    ann = by_header("ann")
    made = submit(ann)
    assert (made["state"], made["progress"], made["jobs"]) == ("PENDING", 0.0, [])
    body = {"workflow_id": made["id"], "job_type": "probe", "branch_id": "main", "params": {}}
    added = ann.post("/api/jobs", body)
    assert added.status_code == 201
    assert set(added.json()) >= JOB
    assert added.json()["branch"] == "main"
    after = {**body, "depends_on": [added.json()["job_id"]]}
    assert ann.post("/api/jobs", after).json()["depends_on"] == [added.json()["job_id"]]


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "name"),
        ({"name": ""}, "name"),
        ({"name": 5}, "name"),
        ([], "detail"),
        ("text", "detail"),
        ({"name": "n", "jobs": {}}, "jobs"),
        ({"name": "n", "jobs": [1]}, "jobs"),
        ({"name": "n", "jobs": [{"job_id": "a", "job_type": "fly"}]}, "jobs"),
        ({"name": "n", "jobs": [factories.job("a", after=["a"])]}, "jobs"),
        ({"name": "n", "jobs": [factories.job("a", after=["z"])]}, "jobs"),
        ({"name": "n", "on_failure": "explode"}, "on_failure"),
    ],
)
def test_a_refused_submission_names_the_field(body: object, field: str) -> None:
    ann = by_header("ann")
    answer = ann.post("/api/workflows", body, format="json")
    assert answer.status_code == 400
    assert field in answer.json(), answer.json()
    assert ann.get("/api/workflows").json()["results"] == []


@pytest.mark.parametrize("wanted", [None, 5, [], {}])
def test_adding_a_job_needs_the_id_of_a_workflow(wanted: object) -> None:
    body = {"workflow_id": wanted, "job_type": "probe"}
    answer = by_header("ann").post("/api/jobs", body, format="json")
    assert answer.status_code == 400
    assert "workflow_id" in answer.json()
    assert by_header("ann").post("/api/jobs", [], format="json").status_code == 400


def test_cancel_answers_the_object_once_and_409_after() -> None:
    ann = by_header("ann")
    made = submit(ann, factories.job("a", "x"), factories.job("b", "x"))
    first, again = (ann.post(f"/api/workflows/{made['id']}/cancel") for _ in range(2))
    assert first.status_code == 200
    assert first.json()["state"] == "CANCELLED"
    assert first.json()["progress"] == 1.0
    assert again.status_code == 409
    assert again.json()["detail"]
    job = {"workflow_id": made["id"], "job_type": "probe", "params": {}}
    assert ann.post("/api/jobs", job).status_code == 409
    assert ann.post(f"/api/workflows/{made['id']}/retry").status_code == 409


def test_too_many_pending_jobs_are_told_when_to_come_back(settings: Any) -> None:
    settings.MAX_PENDING_JOBS = 1
    ann = by_header("ann")
    submit(ann, factories.job("a"))
    answer = ann.post("/api/workflows", {"name": "n", "jobs": [factories.job("b")]})
    assert answer.status_code == 429
    assert int(answer.headers["Retry-After"]) > 0
    assert answer.json()["detail"]


def test_pages_walk_all_workflows_newest_first() -> None:
    ann = by_header("ann")
    names = [submit(ann, name=f"w{number}")["name"] for number in range(7)]
    seen: list[str] = []
    url: str | None = "/api/workflows?page_size=3"
    while url:
        page = ann.get(url).json()
        assert set(page) == {"next", "previous", "results"}
        assert len(page["results"]) <= 3
        assert all("jobs" not in row for row in page["results"])
        seen += [row["name"] for row in page["results"]]
        url = page["next"]
    assert seen == names[::-1]


@pytest.mark.parametrize("size", ["0", "-1", "x", "1.5", "99999999999999999999"])
def test_page_sizes_are_bounded(size: str) -> None:
    assert by_header("ann").get(f"/api/workflows?page_size={size}").status_code == 200


def test_a_cursor_past_every_row_is_no_fault(people: People) -> None:
    for cursor in ("cD05OTk5OTk5OTk5OTk5OTk5OTk5OTk5OTk=", "%00"):
        for path in ("/api/jobs", "/api/slides"):
            assert by_header("lab").get(f"{path}?cursor={cursor}").status_code < 500


@pytest.mark.parametrize("cursor", ["x", "cD1hYmM=", "é"])
def test_a_bad_cursor_is_refused(cursor: str, people: People) -> None:
    factories.workflow(people.lab, [factories.job("a")])
    for path in ("/api/workflows", "/api/jobs", "/api/slides"):
        answer = by_header("lab").get(f"{path}?cursor={cursor}")
        assert 400 <= answer.status_code < 500, path
        assert answer.json()["detail"]


@pytest.mark.parametrize(
    "path", ["/api/workflows", "/api/jobs", "/api/workflows/{id}", "/api/workflows/{id}/jobs"]
)
def test_more_rows_cost_no_more_queries(people: People, path: str) -> None:
    client = people.client("token")

    def cost(jobs: int) -> int:
        chain = [factories.job(f"j{n}", "x", after=[f"j{n - 1}"] if n else []) for n in range(jobs)]
        flow = factories.workflow(people.lab, chain)
        with CaptureQueriesContext(connection) as queries:
            assert client.get(path.format(id=flow.pk)).status_code == 200
        return len(queries)

    assert cost(2) == cost(12) <= 10


def test_jobs_of_a_workflow_come_in_submitted_order(people: People) -> None:
    flow = factories.workflow(people.lab, [factories.job(f"j{n}") for n in range(5)])
    client = people.client("token")
    first = client.get(f"/api/workflows/{flow.pk}/jobs?page_size=3").json()
    rest = client.get(first["next"]).json()
    keys = [job["job_id"] for job in first["results"] + rest["results"]]
    assert keys == [f"j{n}" for n in range(5)]
    assert client.get(f"/api/workflows/{GONE}/jobs").status_code == 404


def test_the_dashboard_counts_own_jobs_and_all_users(people: People) -> None:
    flow = factories.workflow(people.lab, [factories.job("a", "x"), factories.job("b", "x")])
    factories.workflow(people.elsewhere, [factories.job("c", "y")])
    found = people.client("token").get("/api/metrics/dashboard").json()
    assert found["jobs"]["PENDING"] == 2
    assert found["queue_depth"] == [{"branch": "x", "pending": 2}]
    assert found["workers"] == {"total": 4, "busy": 0}
    assert (found["active_users"], found["max_active_users"]) == (0, 3)
    assert found["latency_per_minute"] == []
    assert factories.states(flow) == {"a": "PENDING", "b": "PENDING"}
