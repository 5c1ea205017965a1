"""The first published client of the brief works unchanged: no `/api`, no slash, `X-User-ID`."""

from __future__ import annotations

from tests.conftest import Cast
from tests.stack import Stack


def test_a_workflow_is_made_filled_watched_and_cancelled_without_the_prefix(
    stack: Stack, cast: Cast
) -> None:
    (ann,) = cast("ann")
    empty = ann.post("/workflows", {"name": "first client"})
    assert empty.status_code == 201
    workflow = empty.json()
    ann.workflows.append(workflow["id"])
    assert workflow["state"] == "PENDING"
    assert workflow["progress"] == 0.0

    body = {
        "workflow_id": workflow["id"],
        "job_type": "probe",
        "params": {"seconds": 5, "ticks": 20},
    }
    first = ann.post("/jobs", {**body, "branch": "main"})
    assert first.status_code == 201, first.text
    second = ann.post(
        "/jobs", {**body, "branch_id": "main", "depends_on": [first.json()["job_id"]]}
    )
    assert second.status_code == 201, second.text
    assert second.json()["branch"] == "main"

    assert {job["id"] for job in ann.read("/jobs")["results"]} == {
        first.json()["id"],
        second.json()["id"],
    }
    assert ann.read(f"/workflows/{workflow['id']}")["id"] == workflow["id"]
    assert ann.read(f"/jobs/{first.json()['id']}")["workflow_id"] == workflow["id"]
    for job in (second, first):
        answer = ann.post(f"/jobs/{job.json()['id']}/cancel")
        assert answer.status_code == 200
    assert ann.wait(workflow["id"])["state"] == "CANCELLED"


def test_the_same_object_answers_under_both_addresses(stack: Stack, cast: Cast) -> None:
    (ann,) = cast("ann")
    made = ann.submit([])
    with_prefix = ann.read(f"/api/workflows/{made['id']}")
    assert ann.read(f"/workflows/{made['id']}") == with_prefix
    assert ann.read(f"/api/workflows/{made['id']}/") == with_prefix


def test_adding_to_a_cancelled_workflow_is_refused(stack: Stack, cast: Cast) -> None:
    (ann,) = cast("ann")
    made = ann.post("/workflows", {"name": "gone"}).json()
    job = {"workflow_id": made["id"], "job_type": "probe", "branch": "x", "params": {"seconds": 20}}
    ann.post("/jobs", job)
    assert ann.post(f"/api/workflows/{made['id']}/cancel").status_code == 200
    ann.wait(made["id"])
    assert ann.post("/jobs", job).status_code == 409
