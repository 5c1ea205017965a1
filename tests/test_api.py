"""The HTTP contract of DESIGN §6 from outside: shapes, codes, and a sentence for every refusal.

Run alone: `pytest tests/test_api.py`. It starts a private stack of real processes.
"""

from __future__ import annotations

import re
import sys
import time
import uuid
from typing import Any

import pytest
import requests

from tests.client import Client, Row, by_key, probe, until
from tests.conftest import Cast
from tests.stack import Stack

pytestmark = pytest.mark.stack

JOB_FIELDS = [
    "id",
    "job_id",
    "workflow_id",
    "branch",
    "job_type",
    "state",
    "reason",
    "progress",
    "phase",
    "tiles_done",
    "tiles_total",
    "attempt",
    "max_attempts",
    "depends_on",
    "params",
    "priority",
    "error",
    "created_at",
    "queued_at",
    "started_at",
    "finished_at",
    "artifacts",
]
WORKFLOW_FIELDS = ["id", "name", "state", "progress", "jobs", "edges", "created_at", "finished_at"]
METRICS = [
    "scheduler_jobs_enqueued_total",
    "scheduler_jobs_completed_total",
    "scheduler_pending_jobs",
    "scheduler_active_users",
    "workflow_jobs_total",
    "workflow_jobs_active",
    "workflow_queue_depth",
    "job_latency_seconds",
    "active_users",
    "worker_active_jobs",
    "queue_depth",
]


@pytest.fixture
def ann(cast: Cast) -> Client:
    return cast("ann")[0]


def refused(answer: requests.Response, *words: str, status: int = 400) -> None:
    """A refusal with this status, whose text holds the words and no traceback."""
    assert answer.status_code == status, f"{answer.status_code} {answer.text[:500]}"
    assert "Traceback" not in answer.text
    assert isinstance(answer.json(), dict)
    for word in words:
        assert word in answer.text, answer.text


def create(client: Client, *jobs: Row, **fields: Any) -> requests.Response:
    return client.post("/api/workflows", {"name": "n", "jobs": list(jobs), **fields})


# --- shapes ------------------------------------------------------------------------------


def test_a_created_workflow_is_answered_whole(ann: Client) -> None:
    jobs = [
        probe("up", "x", seconds=0.1, ticks=2),
        {**probe("down", "y", after=["up"]), "priority": 5},
    ]
    made = ann.submit(jobs, name="Whole & <b>odd</b> näme")
    assert set(made) >= set(WORKFLOW_FIELDS)
    assert made["name"] == "Whole & <b>odd</b> näme"
    assert made["edges"] == [["up", "down"]]
    assert uuid.UUID(made["id"])
    found = by_key(made)
    for key, job in found.items():
        assert set(job) >= set(JOB_FIELDS), set(JOB_FIELDS) - set(job)
        assert uuid.UUID(job["id"])
        assert job["workflow_id"] == made["id"]
        assert job["job_id"] == key
    assert found["down"]["depends_on"] == ["up"]
    assert found["down"]["priority"] == 5
    assert found["up"]["params"]["seconds"] == 0.1
    assert found["up"]["max_attempts"] == 3


def test_a_finished_job_tells_its_times_and_progress(ann: Client) -> None:
    over = ann.wait(ann.submit([probe("one", "x", seconds=1.5, ticks=4)])["id"])
    (job,) = over["jobs"]
    alone = ann.job(job["id"])
    assert {name: alone[name] for name in job} == job
    assert job["progress"] == 1.0
    assert job["attempt"] == 1
    assert (job["tiles_done"], job["tiles_total"]) == (4, 4)
    times = [job[name] for name in ("created_at", "queued_at", "started_at", "finished_at")]
    assert times == sorted(times)
    assert all(re.match(r"\d{4}-\d\d-\d\dT", moment) for moment in times)
    assert over["finished_at"]


def test_lists_are_pages_and_leave_jobs_out(ann: Client) -> None:
    made = [ann.submit([probe("a", "x")])["id"] for _ in range(5)]
    first = ann.read("/api/workflows?page_size=2")
    assert set(first) == {"next", "previous", "results"}
    assert first["previous"] is None
    assert len(first["results"]) == 2
    assert not {"jobs", "edges"} & set(first["results"][0])
    seen, page = [row["id"] for row in first["results"]], first
    while page["next"]:
        page = ann.read(page["next"])
        seen += [row["id"] for row in page["results"]]
    assert sorted(seen) == sorted(made)
    assert len(seen) == 5


@pytest.mark.parametrize(
    "query", ["page_size=x", "page_size=0", "page_size=-1", "page_size=10000000", "cursor=x"]
)
def test_odd_page_parameters_are_no_server_error(ann: Client, query: str) -> None:
    assert ann.get(f"/api/jobs?{query}").status_code < 500


def test_jobs_are_listed_with_filters(ann: Client) -> None:
    made = ann.submit([probe("a", "x"), probe("b", "y", fail="error", fail_attempts=3)])
    other = ann.submit([probe("c", "x")])
    ann.wait(made["id"])
    ann.wait(other["id"])

    def keys(query: str) -> set[str]:
        return {job["job_id"] for job in ann.read(f"/api/jobs?{query}")["results"]}

    assert keys("") == {"a", "b", "c"}
    assert keys("branch=x") == {"a", "c"}
    assert keys("state=FAILED") == {"b"}
    assert keys("type=probe") == {"a", "b", "c"}
    assert keys("type=cell_segmentation") == set()
    assert keys(f"workflow={made['id']}") == {"a", "b"}
    assert keys(f"workflow={made['id']}&branch=y&state=FAILED") == {"b"}
    listed = ann.read(f"/api/workflows/{made['id']}/jobs")["results"]
    assert [job["job_id"] for job in listed] == ["a", "b"]


def test_jobs_come_back_in_submitted_order(ann: Client) -> None:
    keys = ["z", "a", "m", "b"]
    made = ann.submit([probe("z", "x", after=["b"]), *(probe(key, "x") for key in keys[1:])])
    assert [job["job_id"] for job in made["jobs"]] == keys
    assert [job["job_id"] for job in ann.workflow(made["id"])["jobs"]] == keys


def test_a_job_can_be_added_and_gets_a_key_and_a_lane_of_its_own(ann: Client) -> None:
    made = ann.submit()
    assert (made["state"], made["progress"], made["jobs"]) == ("PENDING", 0.0, [])
    body = {"workflow_id": made["id"], "job_type": "probe", "params": {"seconds": 0}}
    answers = [ann.post("/api/jobs", body) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [201, 201]
    one, two = (answer.json() for answer in answers)
    assert one["job_id"] != two["job_id"]
    assert one["branch"] != two["branch"]
    assert one["branch"]
    assert ann.wait(made["id"])["state"] == "SUCCEEDED"


def test_adding_to_a_finished_workflow_reopens_it(ann: Client) -> None:
    made = ann.submit([probe("a", "x")])
    ann.wait(made["id"])
    body = {"workflow_id": made["id"], "job_id": "b", "job_type": "probe", "branch": "x"}
    answer = ann.post("/api/jobs", {**body, "params": {"seconds": 1}, "depends_on": ["a"]})
    assert answer.status_code == 201
    assert ann.workflow(made["id"])["state"] == "RUNNING"
    over = ann.wait(made["id"])
    assert over["state"] == "SUCCEEDED"
    assert over["edges"] == [["a", "b"]]


def test_a_key_may_be_used_once_in_a_workflow(ann: Client) -> None:
    made = ann.submit([probe("a", "x")])
    body = {"workflow_id": made["id"], "job_id": "a", "job_type": "probe"}
    answer = ann.post("/api/jobs", body)
    assert answer.status_code in (400, 409)
    assert "a" in answer.text
    assert ann.post("/api/jobs", {**body, "workflow_id": ann.submit()["id"]}).status_code == 201


def test_why_names_the_rule_and_what_stands_before(ann: Client, stack: Stack) -> None:
    jobs = [probe("hold", "x", seconds=3), probe("lane", "x"), probe("dep", "y", after=["hold"])]
    found = by_key(ann.submit(jobs))
    stack.wait_started(ann, "hold")
    reasons = {}
    for key in ("lane", "dep"):
        why = ann.read(f"/api/jobs/{found[key]['id']}/why")
        assert set(why) >= {"reason", "detail", "blocking", "position", "estimated_start"}
        assert len(why["detail"]) > 10
        assert why["blocking"]
        reasons[key] = why["reason"]
    assert reasons == {"lane": "branch", "dep": "dependency"}


def test_why_says_user_limit_to_the_fourth_user(stack: Stack, cast: Cast) -> None:
    *three, dan = cast("a", "b", "c", "d")
    for client in three:
        client.submit([probe("busy", "x", seconds=3)])
    for client in three:
        stack.wait_started(client, "busy")
    made = dan.submit([probe("wait", "x")])
    path = f"/api/jobs/{made['jobs'][0]['id']}/why"
    until(lambda: dan.read(path)["reason"] == "user_limit", timeout_s=3, what="reason user_limit")
    assert dan.read(path)["position"] >= 1


def test_results_are_409_until_finished_and_404_where_there_is_none(
    ann: Client, stack: Stack
) -> None:
    made = ann.submit([probe("a", "x", seconds=1.5)])
    job_id = made["jobs"][0]["id"]
    refused(ann.get(f"/api/jobs/{job_id}/result"), status=409)
    ann.wait(made["id"])
    refused(ann.get(f"/api/jobs/{job_id}/result"), status=404)
    refused(ann.get(f"/api/jobs/{job_id}/artifacts/none.json"), status=404)
    assert ann.get(f"/api/jobs/{job_id}/artifacts").status_code == 200


def test_the_dashboard_numbers_have_the_shape_of_the_contract(ann: Client) -> None:
    made = ann.submit([probe("a", "x", seconds=1.5), probe("b", "x"), probe("c", "x")])
    seen = ann.dashboard()
    wanted = {
        "active_users",
        "max_active_users",
        "workers",
        "jobs",
        "queue_depth",
        "latency_per_minute",
    }
    assert set(seen) >= wanted
    assert set(seen["workers"]) >= {"total", "busy"}
    depth = {row["branch"]: row["pending"] for row in seen["queue_depth"]}
    assert depth.get("x", 0) >= 2
    ann.wait(made["id"])
    assert ann.dashboard()["jobs"]["SUCCEEDED"] == 3
    assert sum(row["pending"] for row in ann.dashboard()["queue_depth"]) == 0
    for row in ann.dashboard()["latency_per_minute"]:
        assert set(row) >= {"minute", "jobs", "seconds"}


def test_metrics_hold_every_promised_name(ann: Client, stack: Stack) -> None:
    ann.wait(ann.submit([probe("a", "x")])["id"])
    answer = requests.get(f"{stack.url}/metrics", timeout=20)
    assert answer.status_code == 200
    missing = [name for name in METRICS if f"# TYPE {name} " not in answer.text]
    assert missing == []


def test_metrics_agree_with_the_api_when_idle(ann: Client, stack: Stack) -> None:
    ann.wait(ann.submit([probe("a", "x"), probe("b", "x")])["id"])
    until(stack.idle, timeout_s=10, what="idle")
    text = requests.get(f"{stack.url}/metrics", timeout=20).text
    values = dict(re.findall(r"^(\w+)(?:\{[^}]*\})? ([0-9.e+-]+)$", text, re.M))
    for name in (
        "scheduler_active_users",
        "active_users",
        "worker_active_jobs",
        "scheduler_pending_jobs",
    ):
        assert float(values[name]) == 0, name


def test_the_schema_names_the_paths(stack: Stack) -> None:
    schema = requests.get(f"{stack.url}/api/schema/?format=json", timeout=30)
    assert schema.status_code == 200
    paths = set(schema.json()["paths"])
    assert any(path.startswith("/api/workflows") for path in paths)


# --- refusals ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("job", "words"),
    [
        pytest.param({"job_id": "a", "job_type": "tarot"}, ["tarot", "probe"], id="unknown-type"),
        pytest.param({"job_id": "a"}, ["job_type"], id="no-type"),
        pytest.param({"job_id": "a", "job_type": "tissue_mask"}, ["image_path"], id="no-slide"),
        pytest.param(
            {"job_id": "a", "job_type": "tissue_mask", "image_path": "nope.svs"},
            ["nope.svs"],
            id="missing-slide",
        ),
        pytest.param(probe("a", "x", seconds="long"), ["seconds"], id="params-of-wrong-type"),
        pytest.param(probe("a", "x", seconds=-1), ["seconds"], id="params-out-of-range"),
        pytest.param(probe("a", "x", unheard=1), ["unheard"], id="unknown-param"),
        pytest.param({**probe("a"), "params": [1]}, ["params"], id="params-no-object"),
        pytest.param({**probe("a"), "branch": ""}, ["branch"], id="empty-branch"),
        pytest.param({**probe("a"), "branch": "x" * 101}, ["branch"], id="long-branch"),
        pytest.param({**probe("a"), "job_id": ""}, ["job_id"], id="empty-key"),
        pytest.param({**probe("a"), "job_id": "-a"}, ["job_id"], id="key-starts-with-dash"),
        pytest.param({**probe("a"), "job_id": "a" * 101}, ["job_id"], id="long-key"),
        pytest.param({**probe("a"), "depends_on": "b"}, ["depends_on"], id="depends-on-a-text"),
        pytest.param({**probe("a"), "priority": "high"}, ["priority"], id="priority-a-text"),
        pytest.param("probe", [], id="job-no-object"),
        pytest.param(None, [], id="job-null"),
    ],
)
def test_a_bad_job_is_refused_with_a_sentence(ann: Client, job: Any, words: list[str]) -> None:
    refused(create(ann, job), *words)
    assert ann.read("/api/workflows")["results"] == []
    assert ann.read("/api/jobs")["results"] == []


@pytest.mark.parametrize("mpp", [0.05, 1.5, -1, 0, "half"])
def test_an_mpp_outside_the_range_is_refused_at_once(ann: Client, stack: Stack, mpp: Any) -> None:
    (stack.data / "slides" / "plain.svs").write_bytes(b"x")
    job = {"job_id": "a", "job_type": "cell_segmentation", "image_path": "plain.svs"}
    refused(create(ann, {**job, "params": {"mpp": mpp}}), "mpp")


@pytest.mark.parametrize(
    "body",
    [
        pytest.param({}, id="no-name"),
        pytest.param({"name": ""}, id="empty-name"),
        pytest.param({"name": "x" * 201}, id="long-name"),
        pytest.param({"name": None}, id="null-name"),
        pytest.param({"name": "n", "jobs": "a"}, id="jobs-a-text"),
        pytest.param({"name": "n", "jobs": {"a": 1}}, id="jobs-an-object"),
        pytest.param({"name": "n", "on_failure": "explode"}, id="unknown-policy"),
        pytest.param([], id="a-list"),
        pytest.param("text", id="a-text"),
        pytest.param(None, id="nothing"),
    ],
)
def test_a_bad_workflow_is_refused_with_a_sentence(ann: Client, body: Any) -> None:
    refused(ann.post("/api/workflows", body))
    assert ann.read("/api/workflows")["results"] == []


@pytest.mark.parametrize("raw", [b"{", b"\xff\xfe", b'{"name": "n"' + b"[" * 100_000, b"NaN"])
def test_a_body_that_is_no_json_is_refused(ann: Client, raw: bytes) -> None:
    headers = {"Content-Type": "application/json"}
    answer = ann.session.post(
        f"{ann.base_url}/api/workflows", data=raw, headers=headers, timeout=20
    )
    refused(answer)


def test_text_that_a_database_can_not_hold_is_refused(ann: Client) -> None:
    for name in ("a\x00b", "\ud800"):
        answer = ann.post("/api/workflows", {"name": name})
        assert answer.status_code == 400, name


def test_adding_to_an_unknown_workflow_is_refused(ann: Client) -> None:
    for target in (str(uuid.uuid4()), "*", 7, None):
        answer = ann.post("/api/jobs", {"workflow_id": target, "job_type": "probe"})
        assert answer.status_code in (400, 404)


def test_an_added_job_may_not_depend_on_an_unknown_one(ann: Client) -> None:
    made = ann.submit([probe("a", "x")])
    other = ann.submit([probe("b", "x")])
    body = {"workflow_id": made["id"], "job_id": "c", "job_type": "probe"}
    refused(ann.post("/api/jobs", {**body, "depends_on": ["ghost"]}), "ghost")
    refused(ann.post("/api/jobs", {**body, "depends_on": ["b"]}), "b")
    refused(ann.post("/api/jobs", {**body, "depends_on": ["c"]}), "c")
    assert [job["job_id"] for job in ann.workflow(made["id"])["jobs"]] == ["a"]
    ann.wait(other["id"])


def test_a_retry_of_what_did_not_fail_is_409(ann: Client) -> None:
    over = ann.wait(ann.submit([probe("a", "x")])["id"])
    refused(ann.post(f"/api/jobs/{over['jobs'][0]['id']}/retry"), status=409)


@pytest.mark.parametrize("path", ["/api/nothing", "/api/jobs/x/y/z", "/nothing-here"])
def test_an_unknown_address_is_404(ann: Client, path: str) -> None:
    assert ann.get(path).status_code == 404


def test_a_wrong_method_is_405(ann: Client) -> None:
    refused(ann._request("DELETE", "/api/workflows"), status=405)
    refused(ann.post("/api/metrics/dashboard"), status=405)


def test_a_list_of_many_jobs_answers_soon(ann: Client) -> None:
    """Ten times the rows must not make the first page slow: pages, not whole tables."""
    ann.submit([probe("hold", "x", seconds=4), *(probe(f"n{n}", "x") for n in range(2000))])
    began = time.monotonic()
    assert len(ann.read("/api/jobs?page_size=50")["results"]) == 50
    assert time.monotonic() - began < 2


if __name__ == "__main__":
    raise SystemExit(pytest.main([__file__, *sys.argv[1:]]))
