"""Jobs over HTTP: filters, moves, results and files."""

from __future__ import annotations

import hashlib
import json

import pytest
from django.core.files.storage import default_storage
from rest_framework.test import APIClient

from jobs.scheduling import promotion
from tests import factories
from tests.api.conftest import CELLS, DOCUMENT, LINES, Done, People, finish, stored
from tests.api.test_isolation import ask

pytestmark = pytest.mark.django_db


@pytest.fixture
def client(people: People) -> APIClient:
    return people.client("token")


def keys(client: APIClient, query: str) -> list[str]:
    answer = client.get(f"/api/jobs?{query}")
    assert answer.status_code == 200, answer.content
    return [job["job_id"] for job in answer.json()["results"]]


def test_lists_are_filtered(client: APIClient, done: Done, people: People) -> None:
    other = factories.workflow(people.lab, [factories.job("late", "z")])
    assert keys(client, "") == ["late", "cells"]
    assert keys(client, "state=SUCCEEDED") == ["cells"]
    assert keys(client, "state=PENDING") == ["late"]
    assert keys(client, "state=FAILED") == []
    assert keys(client, "branch=z") == ["late"]
    assert keys(client, "type=probe") == ["late", "cells"]
    assert keys(client, "type=tissue_mask") == []
    assert keys(client, f"workflow={other.pk}") == ["late"]


@pytest.mark.parametrize("query", ["state=GONE", "state=ready", "workflow=x", "branch=%00"])
def test_a_filter_that_means_nothing_is_refused(client: APIClient, query: str) -> None:
    answer = client.get(f"/api/jobs?{query}")
    assert answer.status_code == 400
    assert query.split("=")[0] in answer.json()


def test_cancel_retry_and_why(client: APIClient, people: People, capacity: None) -> None:
    flow = factories.workflow(
        people.lab, [factories.job("a", "x"), factories.job("b", "y", after=["a"])]
    )
    rows = factories.jobs_of(flow)
    first, second = (f"/api/jobs/{rows[key].uuid}" for key in "ab")
    why = client.get(f"{second}/why").json()
    assert why["reason"] == "dependency"
    assert why["blocking"]
    assert set(why) == {
        "reason", "detail", "blocking", "position", "estimated_start", "estimated_range", "gates"
    }  # fmt: skip
    cancelled = client.post(f"{first}/cancel")
    assert cancelled.status_code == 200
    assert (cancelled.json()["state"], cancelled.json()["reason"]) == (
        "CANCELLED",
        "cancelled_by_user",
    )
    assert client.post(f"{first}/cancel").status_code == 409
    assert client.get(second).json()["reason"] == "upstream_failed"
    assert client.post(f"{second}/retry").status_code == 409, "its upstream is cancelled"
    assert client.post(f"{first}/retry").json()["state"] == "PENDING"
    assert client.get(second).json()["state"] == "PENDING"


def test_no_result_before_the_end(client: APIClient, people: People, capacity: None) -> None:
    flow = factories.workflow(people.lab, [factories.job("a", "x")])
    url = f"/api/jobs/{factories.jobs_of(flow)['a'].uuid}"
    for path in ("result", "results", "results?page=1", "cells?bbox=0,0,1,1", "cells/1"):
        answer = client.get(f"{url}/{path}")
        assert answer.status_code == 409, path
        assert "SUCCEEDED" in answer.json()["detail"]
    promotion.promote()
    client.post(f"{url}/cancel")
    assert client.get(f"{url}/result").status_code == 404, "it ended without one"
    assert client.get(f"{url}/artifacts").json()["results"] == []


def test_the_result_is_the_main_file(client: APIClient, done: Done) -> None:
    answer = client.get(f"{done.url}/result")
    assert answer.status_code == 200
    assert b"".join(answer.streaming_content) == LINES
    assert f"{done.job.uuid}_cells.jsonl" in answer.headers["Content-Disposition"]
    assert answer.headers["Content-Type"] == "application/x-ndjson"


def test_the_document_comes_whole_or_by_page(client: APIClient, done: Done) -> None:
    status, body = ask(client, f"{done.url}/results")
    assert status == 200
    assert json.loads(body) == DOCUMENT
    first = client.get(f"{done.url}/results?page=1&page_size=3").json()
    last = client.get(first["next"]).json()
    assert (first["page"], first["pages"], first["previous"]) == (1, 2, None)
    assert last["next"] is None
    assert "page=1" in last["previous"]
    assert first["cells"] + last["cells"] == DOCUMENT["cells"]
    for name in ("total_cells", "tiles_processed", "method", "coordinate_order"):
        assert first[name] == DOCUMENT[name]


@pytest.mark.parametrize(
    ("query", "status"),
    [
        ("page=0", 400),
        ("page=x", 400),
        ("page=", 400),
        ("page=1&page_size=-1", 400),
        ("page=9", 404),
    ],
)
def test_a_page_that_is_none_is_refused(
    client: APIClient, done: Done, query: str, status: int
) -> None:
    assert client.get(f"{done.url}/results?{query}").status_code == status


def test_cells_are_found_by_window_and_by_id(client: APIClient, done: Done) -> None:
    found = client.get(f"{done.url}/cells?bbox=90,0,120,250").json()
    assert [cell["cell_id"] for cell in found["cells"]] == [2, 4]
    assert (found["total"], found["truncated"]) == (5, False)
    few = client.get(f"{done.url}/cells?bbox=0,0,999,999&limit=2").json()
    assert (len(few["cells"]), few["truncated"]) == (2, True)
    assert client.get(f"{done.url}/cells/5").json() == CELLS[4]
    for number in ("0", "6", "x", "-1", "9" * 20):
        assert client.get(f"{done.url}/cells/{number}").status_code == 404
    for box in ("", "1,2,3", "a,b,c,d", "0,0,nan,1", "0,0,inf,1"):
        assert client.get(f"{done.url}/cells?bbox={box}").status_code == 400


def test_files_are_listed_and_sent_with_their_validators(client: APIClient, done: Done) -> None:
    rows = client.get(f"{done.url}/artifacts").json()["results"]
    assert {row["kind"] for row in rows} == {"cells_jsonl", "segmentation"}
    for row in rows:
        answer = client.get(row["url"])
        body = b"".join(answer.streaming_content)
        assert len(body) == row["size"] == int(answer.headers["Content-Length"])
        assert hashlib.sha256(body).hexdigest() == row["sha256"]
        assert answer.headers["Accept-Ranges"] == "bytes"
        etag = answer.headers["ETag"]
        assert client.get(row["url"], HTTP_IF_NONE_MATCH=etag).status_code == 304
    assert client.get(f"{done.url}/artifacts/none.json").status_code == 404


@pytest.mark.parametrize(
    ("asked", "status", "start", "end"),
    [
        ("bytes=0-9", 206, 0, 10),
        ("bytes=10-", 206, 10, None),
        ("bytes=-5", 206, -5, None),
        ("bytes=5-99999999", 206, 5, None),
        ("bytes=0-", 200, 0, None),
        ("bytes=9-5", 200, 0, None),
        ("bytes=0-1,3-4", 200, 0, None),
        ("lines=1-2", 200, 0, None),
        ("bytes=-", 200, 0, None),
    ],
)
def test_ranges(
    client: APIClient, done: Done, asked: str, status: int, start: int, end: int | None
) -> None:
    answer = client.get(f"{done.url}/result", HTTP_RANGE=asked)
    body = b"".join(answer.streaming_content)
    assert answer.status_code == status
    assert body == LINES[start:end]
    if status == 206:
        first = start % len(LINES)
        assert answer.headers["Content-Range"] == (
            f"bytes {first}-{first + len(body) - 1}/{len(LINES)}"
        )


@pytest.mark.parametrize("asked", ["bytes=99999999-", "bytes=-0"])
def test_a_range_behind_the_end_is_416(client: APIClient, done: Done, asked: str) -> None:
    answer = client.get(f"{done.url}/result", HTTP_RANGE=asked)
    assert answer.status_code == 416
    assert answer.headers["Content-Range"] == f"bytes */{len(LINES)}"


def test_a_range_of_an_older_file_gets_the_whole(client: APIClient, done: Done) -> None:
    answer = client.get(f"{done.url}/result", HTTP_RANGE="bytes=0-1", HTTP_IF_RANGE='"other"')
    assert (answer.status_code, b"".join(answer.streaming_content)) == (200, LINES)


def test_a_file_that_the_storage_lost_is_told(
    client: APIClient, people: People, capacity: None
) -> None:
    flow = factories.workflow(people.lab, [factories.job("a")])
    job = factories.jobs_of(flow)["a"]
    file = stored(job, "x.json", "segmentation", b"{}", main=True)
    finish(job, [file])
    default_storage.delete(file.path)
    answer = client.get(f"/api/jobs/{job.uuid}/result")
    assert answer.status_code == 404
    assert "retry" in answer.json()["detail"]


def test_visualization_names_what_a_viewer_needs(client: APIClient, done: Done) -> None:
    found = client.get(f"/api/visualization/{done.job.uuid}/visualization").json()
    assert found["job"]["id"] == str(done.job.uuid)
    assert found["slide"] is None, "a probe has none"
    assert found["bounds"] == [0, 0, 508, 704]
    assert found["cells"]["count"] == 5
    assert found["cells"]["document"].endswith("w_cells_segmentation.json")
