"""Who may do what at every address: a table, and one answer for what is not theirs."""

from __future__ import annotations

import pytest
from rest_framework.test import APIClient

from tests import factories
from tests.api.conftest import GONE, Done, People

pytestmark = pytest.mark.django_db

OURS = ("ann", "mel", "vic", "header", "token")
OTHERS = ("bob", "eve", "foreign token")
READS = (
    "/api/workflows/{workflow}",
    "/api/workflows/{workflow}/jobs",
    "/api/jobs/{job}",
    "/api/jobs/{job}/why",
    "/api/jobs/{job}/result",
    "/api/jobs/{job}/results",
    "/api/jobs/{job}/results?page=1",
    "/api/jobs/{job}/artifacts",
    "/api/jobs/{job}/artifacts/w_cells_segmentation.json",
    "/api/jobs/{job}/cells?bbox=0,0,10,10",
    "/api/jobs/{job}/cells/1",
    "/api/visualization/{job}/visualization",
)
WRITES = (
    "/api/workflows/{workflow}/cancel",
    "/api/workflows/{workflow}/retry",
    "/api/jobs/{job}/cancel",
    "/api/jobs/{job}/retry",
)
LISTS = ("/api/workflows", "/api/jobs", "/api/slides", "/api/metrics/dashboard")


def address(path: str, done: Done) -> str:
    return path.format(workflow=done.workflow.pk, job=done.job.uuid)


def ask(client: APIClient, path: str, method: str = "get") -> tuple[int, bytes]:
    """(status, body), read to the end: that closes files."""
    answer = getattr(client, method)(path)
    body = b"".join(answer.streaming_content) if answer.streaming else answer.content
    return answer.status_code, body


@pytest.mark.parametrize("who", OURS)
def test_everybody_of_the_lab_reads_its_rows(people: People, done: Done, who: str) -> None:
    client = people.client(who)
    for path in (*READS, *LISTS):
        assert ask(client, address(path, done))[0] == 200, path


@pytest.mark.parametrize("who", OTHERS)
def test_a_foreign_row_is_one_that_is_not_there(people: People, done: Done, who: str) -> None:
    client = people.client(who)
    table = [("get", path) for path in READS] + [("post", path) for path in WRITES]
    for method, path in table:
        foreign = ask(client, address(path, done), method)
        unknown = ask(client, path.format(workflow=GONE, job=GONE), method)
        assert foreign == unknown, path
        assert foreign[0] == 404, path


def test_nobody_is_asked_for_a_name(people: People, done: Done) -> None:
    client = people.client("nobody")
    table = [("get", path) for path in (*READS, *LISTS)] + [("post", path) for path in WRITES]
    for method, path in [*table, ("post", "/api/workflows"), ("post", "/api/jobs")]:
        status, body = ask(client, address(path, done), method)
        assert status == 401, path
        assert b"X-User-ID" in body


def test_a_viewer_writes_nothing(people: People, done: Done) -> None:
    client = people.client("vic")
    for path in (*WRITES, "/api/workflows", "/api/jobs"):
        status, body = ask(client, address(path, done), "post")
        assert status == 403, path
        assert b"viewer" in body


@pytest.mark.parametrize("who", ["ann", "mel", "header", "token"])
def test_members_write(people: People, capacity: None, who: str) -> None:
    client = people.client(who)
    body = {"name": "n", "jobs": [factories.job("a", "x")]}
    made = client.post("/api/workflows", body)
    assert made.status_code == 201, made.content
    assert client.post(f"/api/jobs/{made.json()['jobs'][0]['id']}/cancel").status_code == 200


@pytest.mark.parametrize("who", OTHERS)
def test_lists_and_counts_hold_ones_own_rows_only(people: People, done: Done, who: str) -> None:
    client = people.client(who)
    assert client.get("/api/workflows").json()["results"] == []
    assert client.get("/api/jobs").json()["results"] == []
    assert client.get(f"/api/jobs?workflow={done.workflow.pk}").json()["results"] == []
    assert sum(client.get("/api/metrics/dashboard").json()["jobs"].values()) == 0


@pytest.mark.parametrize("who", OTHERS)
def test_a_foreign_workflow_takes_no_job(people: People, done: Done, who: str) -> None:
    client = people.client(who)
    foreign, unknown = (
        client.post("/api/jobs", {"workflow_id": target, "job_type": "probe", "params": {}})
        for target in (str(done.workflow.pk), GONE)
    )
    assert foreign.status_code == unknown.status_code == 404
    assert foreign.content == unknown.content


@pytest.mark.parametrize("odd", ["*", "..", "0", "-1", "null", "a b", "%00", "x" * 3000])
def test_odd_ids_are_unknown_ids(people: People, odd: str) -> None:
    client = people.client("ann")
    for path in (f"/api/jobs/{odd}", f"/api/workflows/{odd}", f"/api/slides/{odd}"):
        assert client.get(path).status_code == 404, path
    assert client.post(f"/api/jobs/{odd}/cancel").status_code == 404
