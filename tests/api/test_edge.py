"""Bodies and addresses that nobody foresaw: a 4xx with a sentence, never a fault."""

from __future__ import annotations

import json
from typing import Any

import pytest
from channels.testing import ApplicationCommunicator
from rest_framework.test import APIClient

from labsched import body_limit, rest
from labsched.body_limit import BodyLimit
from tenants.models import Tenant
from tests.api.conftest import by_header

pytestmark = pytest.mark.django_db
BODIES = {
    "no JSON": b"{",
    "nothing": b"",
    "not UTF-8": b'{"name":"\xff"}',
    "a constant": b'{"name":NaN}',
    "NUL": b'{"name":"a\\u0000b"}',
    "NUL behind a backslash": b'{"name":"a\\\\\\u0000b"}',
    "NUL in a key": b'{"name":"n","jobs":[],"a\\u0000":1}',
    "half a surrogate": b'{"name":"\\ud800"}',
    "deep": b"[" * 100_000 + b"]" * 100_000,
    "a huge number": b'{"name":' + b"9" * 100_000 + b"}",
}


@pytest.mark.parametrize("what", BODIES)
@pytest.mark.parametrize("path", ["/api/workflows", "/api/jobs", "/workflows"])
def test_a_body_that_can_not_be_read_is_400(path: str, what: str) -> None:
    answer = by_header("ann").post(path, BODIES[what], content_type="application/json")
    assert answer.status_code == 400, answer.content
    assert answer.json()
    assert not Tenant.objects.exists()


def test_an_escaped_backslash_before_u0000_is_no_nul() -> None:
    body = b'{"name":"a\\\\u0000b"}'
    answer = by_header("ann").post("/api/workflows", body, content_type="application/json")
    assert answer.status_code == 201
    assert answer.json()["name"] == "a\\u0000b"


@pytest.mark.parametrize("kind", ["text/plain", "multipart/form-data; boundary=x", "a/b"])
def test_other_content_types_are_415(kind: str) -> None:
    answer = by_header("ann").post("/api/workflows", b"x=1", content_type=kind)
    assert answer.status_code == 415
    assert answer.json()["detail"]


def test_a_body_beyond_the_bound_is_413(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rest, "MAX_BODY", 1000)
    body = json.dumps({"name": "x" * 2000})
    answer = by_header("ann").post("/api/workflows", body, content_type="application/json")
    assert answer.status_code == 413
    assert answer.json()["detail"]


@pytest.mark.parametrize("accept", ["text/html", "application/xml", "*/*", "nonsense"])
def test_any_accept_header_gets_json(accept: str) -> None:
    answer = by_header("ann").get("/api/workflows", HTTP_ACCEPT=accept)
    assert answer.headers["Content-Type"] == "application/json"


@pytest.mark.parametrize(
    "path", ["/api/nothing", "/api/", "/api/jobs/a/b/c", "/api/slides/x_files/1", "/api/jobs/../x"]
)
def test_unknown_addresses_are_404_in_json(path: str) -> None:
    answer = by_header("ann").get(path)
    assert answer.status_code == 404
    assert answer.json()["detail"]


@pytest.mark.parametrize("method", ["put", "patch", "delete"])
def test_other_methods_are_405(method: str) -> None:
    answer = getattr(by_header("ann"), method)("/api/workflows")
    assert answer.status_code == 405
    assert answer.json()["detail"]


# --- without the prefix --------------------------------------------------------------------

GONE = "00000000-0000-4000-8000-000000000000"


@pytest.mark.parametrize(
    "headers",
    [
        {"HTTP_X_USER_ID": "ann"},
        {"HTTP_X_USER_ID": "ann", "HTTP_ACCEPT": "text/html"},
        {"HTTP_AUTHORIZATION": "Bearer wrong"},
        {"HTTP_ACCEPT": "application/json"},
    ],
)
def test_programs_are_answered_without_the_prefix(headers: dict[str, str]) -> None:
    for path in ("/workflows", "/jobs", f"/workflows/{GONE}", f"/jobs/{GONE}/result"):
        answer = APIClient(**headers).get(path)
        assert answer.status_code in (200, 401, 404)
        assert answer.headers["Content-Type"] == "application/json"


@pytest.mark.parametrize(
    ("path", "to"),
    [
        ("/workflows", "/"),
        ("/jobs?x=1", "/?x=1"),
        (f"/workflows/{GONE}", f"/workflows/{GONE}/"),
        (f"/jobs/{GONE}", f"/jobs/{GONE}/"),
        (f"/jobs/{GONE}/result", f"/api/jobs/{GONE}/result"),
        ("/metrics/dashboard", "/api/metrics/dashboard"),
    ],
)
def test_people_are_sent_to_the_page(path: str, to: str) -> None:
    answer = APIClient(HTTP_ACCEPT="text/html,application/xhtml+xml").get(path)
    assert (answer.status_code, answer.headers["Location"]) == (302, to)


# --- below Django ----------------------------------------------------------------------------


async def _sent(parts: list[bytes], headers: list[tuple[bytes, bytes]]) -> list[dict[str, Any]]:
    """What BodyLimit answers to a body that comes in these parts."""

    async def application(scope: Any, receive: Any, send: Any) -> None:
        while (await receive()).get("more_body"):
            pass
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    socket = ApplicationCommunicator(BodyLimit(application), {"type": "http", "headers": headers})
    for place, part in enumerate(parts):
        more = place < len(parts) - 1
        await socket.send_input({"type": "http.request", "body": part, "more_body": more})
    return [await socket.receive_output(), await socket.receive_output()]


async def test_the_server_bounds_every_body(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(body_limit, "MOST", 10)
    announced = [(b"content-length", b"11")]
    assert (await _sent([b"x" * 10], []))[0]["status"] == 200
    assert (await _sent([b"x" * 11], announced))[0]["status"] == 413
    start, body = await _sent([b"x" * 6, b"x" * 6, b"x"], [])
    assert start["status"] == 413
    assert json.loads(body["body"])["detail"]
