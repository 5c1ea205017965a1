"""Scenario 11: another tenant's rows do not exist, and a bad identity is nobody."""

from __future__ import annotations

import uuid
from typing import Any

import pytest
import requests

from tests.client import Client, by_key, probe
from tests.conftest import Cast
from tests.stack import Stack

READS = ("", "/why", "/result", "/results", "/artifacts", "/artifacts/x")
ODD_IDS = ("*", "..%2Fx", "%2e%2e%2fx", "0", "1", "-1", "null")


def anns_job(ann: Client) -> tuple[str, str]:
    """A finished workflow of ann: its id and its job's."""
    made = ann.submit([probe("mine", "x")])
    over = ann.wait(made["id"])
    return over["id"], by_key(over)["mine"]["id"]


def same_as_unknown(eve: Client, method: str, path: str, known: str, body: Any = None) -> None:
    """Asking for `known` answers as for an id that nobody has."""
    ask = eve.get if method == "GET" else lambda p: eve.post(p, body)
    unknown = str(uuid.uuid4())
    mine, nobody = ask(path.format(id=known)), ask(path.format(id=unknown))
    assert mine.status_code == nobody.status_code == 404, (path, mine.status_code, mine.text[:300])
    assert mine.text.replace(known, "") == nobody.text.replace(unknown, "")


def test_11_eve_can_not_read_or_change_anns_rows(stack: Stack, cast: Cast) -> None:
    ann, eve = cast("ann", "eve")
    workflow_id, job_id = anns_job(ann)
    before = ann.workflow(workflow_id)
    for read in READS:
        same_as_unknown(eve, "GET", f"/api/jobs/{{id}}{read}", job_id)
    same_as_unknown(eve, "GET", "/api/visualization/{id}/visualization", job_id)
    same_as_unknown(eve, "GET", "/api/workflows/{id}", workflow_id)
    same_as_unknown(eve, "GET", "/api/workflows/{id}/jobs", workflow_id)
    for action in ("cancel", "retry"):
        same_as_unknown(eve, "POST", f"/api/jobs/{{id}}/{action}", job_id)
        same_as_unknown(eve, "POST", f"/api/workflows/{{id}}/{action}", workflow_id)
    assert ann.workflow(workflow_id) == before


def test_11_eve_can_not_add_to_anns_workflow(stack: Stack, cast: Cast) -> None:
    ann, eve = cast("ann", "eve")
    workflow_id, _ = anns_job(ann)
    before = ann.workflow(workflow_id)

    def add(target: str) -> requests.Response:
        body = {"workflow_id": target, "branch": "x", "job_type": "probe", "params": {"seconds": 0}}
        return eve.post("/api/jobs", body)

    unknown = str(uuid.uuid4())
    foreign, nobody = add(workflow_id), add(unknown)
    assert 400 <= foreign.status_code < 500
    assert foreign.status_code == nobody.status_code
    assert foreign.text.replace(workflow_id, "") == nobody.text.replace(unknown, "")
    assert ann.workflow(workflow_id) == before
    assert eve.read("/api/jobs")["results"] == []


def test_11_lists_and_counts_hold_ones_own_rows_only(stack: Stack, cast: Cast) -> None:
    ann, eve = cast("ann", "eve")
    workflow_id, job_id = anns_job(ann)
    assert eve.read("/api/workflows")["results"] == []
    assert eve.read("/api/jobs")["results"] == []
    assert eve.read(f"/api/jobs?workflow={workflow_id}")["results"] == []
    assert sum(eve.dashboard()["jobs"].values()) == 0
    assert eve.dashboard()["queue_depth"] == []
    assert [row["id"] for row in ann.read("/api/jobs")["results"]] == [job_id]


@pytest.mark.parametrize("odd", ODD_IDS)
def test_11_odd_ids_are_unknown_ids(stack: Stack, cast: Cast, odd: str) -> None:
    (eve,) = cast("eve")
    for path in (f"/api/jobs/{odd}", f"/api/workflows/{odd}", f"/api/jobs/{odd}/result"):
        assert eve.get(path).status_code == 404, path
    assert eve.post(f"/api/jobs/{odd}/cancel").status_code == 404
    assert eve.post(f"/api/workflows/{odd}/cancel").status_code == 404


@pytest.mark.parametrize("dependency", ["foreign-id", "foreign-key"])
def test_11_dependencies_reach_no_foreign_job(stack: Stack, cast: Cast, dependency: str) -> None:
    ann, eve = cast("ann", "eve")
    _, job_id = anns_job(ann)
    upstream = job_id if dependency == "foreign-id" else "mine"
    answer = eve.post("/api/workflows", {"name": "n", "jobs": [probe("child", after=[upstream])]})
    assert answer.status_code == 400


@pytest.mark.parametrize(
    "user",
    [None, "", "../../etc", "a/b", "a b", "-a", ".a", "x" * 65, "x" * 10_000, "a;b", "é"],
)
def test_11_a_missing_or_bad_user_id_is_refused(stack: Stack, user: str | None) -> None:
    headers = {} if user is None else {"X-User-ID": user.encode()}
    for method, path in (
        ("GET", "/api/workflows"),
        ("POST", "/api/workflows"),
        ("GET", "/api/jobs"),
    ):
        answer = requests.request(
            method, stack.url + path, headers=headers, json={"name": "n"}, timeout=20
        )
        assert 400 <= answer.status_code < 500, (path, answer.status_code)
        assert answer.status_code != 404
        assert "Traceback" not in answer.text


def test_11_the_longest_user_id_is_accepted(stack: Stack) -> None:
    longest = stack.client("x" * 55 + "._:@-9abc")
    assert longest.get("/api/workflows").status_code == 200


def test_11_an_unknown_token_is_refused(stack: Stack) -> None:
    headers = {"Authorization": "Bearer " + "0" * 40}
    answer = requests.get(f"{stack.url}/api/workflows", headers=headers, timeout=20)
    assert answer.status_code == 401
    assert answer.json()["detail"]
