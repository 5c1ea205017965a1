"""The door: who is counted, as what, and what a refusal looks like; over HTTP and websocket."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from ipaddress import ip_network
from typing import Any

import pytest
from django.core.exceptions import ImproperlyConfigured
from environ import Env
from rest_framework.test import APIClient

from labsched.environment import optional_networks
from labsched.ratelimit import RateLimit, client_address
from tenants.limiter import CHARGED, Limiter, limiter
from tenants.models import ApiToken, Membership, User
from tests import factories

Headers = list[tuple[bytes, bytes]]
NO_REDIS = "redis://127.0.0.1:1/0"


@pytest.fixture(autouse=True)
def fresh_limiter(settings: Any) -> Iterator[Limiter]:
    """A limiter of this test alone, without Redis; the header is trusted."""
    settings.REDIS_URL = NO_REDIS
    settings.TRUST_USER_HEADER = True
    settings.RATE_LIMIT_PER_S = 2.0
    settings.RATE_LIMIT_ADDRESS_PER_S = 100.0
    limiter.cache_clear()
    yield limiter()
    limiter().close()
    limiter.cache_clear()


def scope_of(
    path: str = "/api/jobs", headers: Headers | None = None, **fields: Any
) -> dict[str, Any]:
    client = ("10.0.0.1", 40000)
    return {"type": "http", "path": path, "headers": headers or [], "client": client, **fields}


def user(name: bytes) -> Headers:
    return [(b"x-user-id", name)]


def ask(*scopes: dict[str, Any]) -> list[list[dict[str, Any]]]:
    """What each request was answered; an empty list where it reached the application."""

    async def application(scope: Any, receive: Any, send: Any) -> None:
        return

    async def receive() -> dict[str, Any]:
        return {"type": "websocket.connect"}

    async def ask_all() -> list[list[dict[str, Any]]]:
        door, answers = RateLimit(application), []
        for scope in scopes:
            sent: list[dict[str, Any]] = []

            async def send(message: dict[str, Any], sent: list[dict[str, Any]] = sent) -> None:
                sent.append(message)

            await door(scope, receive, send)
            answers.append(sent)
        await limiter().close_async()
        return answers

    return asyncio.run(ask_all())


def refused(answers: list[list[dict[str, Any]]]) -> list[bool]:
    return [bool(answer) for answer in answers]


def test_a_tenant_that_asks_too_fast_is_told_when_to_come_back() -> None:
    answers = ask(*(scope_of(headers=user(b"ann")) for _ in range(6)))
    assert refused(answers) == [False] * 4 + [True] * 2
    start, body = answers[-1]
    assert start["status"] == 429
    assert dict(start["headers"])[b"retry-after"] == b"1"
    detail = json.loads(body["body"])["detail"]
    assert detail == "You send more than 2 requests a second: try again in 1 s."
    assert refused(ask(scope_of(headers=user(b"bob")))) == [False]


def test_an_address_is_counted_whoever_it_says_it_is(settings: Any) -> None:
    settings.RATE_LIMIT_ADDRESS_PER_S = 5.0
    headers = [user(b"id-%d" % n) for n in range(5)] + [[]] * 3 + [user(b"../x")] * 4
    answers = ask(*(scope_of(headers=each) for each in headers))
    assert refused(answers) == [False] * 10 + [True] * 2
    assert b"Your address" in answers[-1][1]["body"]
    assert refused(ask(scope_of(client=("10.0.0.2", 1)))) == [False]


@pytest.mark.parametrize("path", ["/static/app.css", "/health", "/health/live", "/metrics"])
def test_static_files_and_health_never_count(path: str) -> None:
    assert not any(refused(ask(*(scope_of(path, user(b"ann")) for _ in range(50)))))
    assert refused(ask(*(scope_of(headers=user(b"ann")) for _ in range(5)))).count(True) == 1


def test_what_only_looks_like_health_counts() -> None:
    for path in ("/api/metrics/dashboard", "/healthy", "/metricsx"):
        limiter.cache_clear()
        assert any(refused(ask(*(scope_of(path, user(b"ann")) for _ in range(5)))))


def test_zero_turns_a_limit_off(settings: Any) -> None:
    settings.RATE_LIMIT_PER_S = settings.RATE_LIMIT_ADDRESS_PER_S = 0.0
    assert not any(refused(ask(*(scope_of(headers=user(b"ann")) for _ in range(500)))))


def test_a_websocket_is_refused_before_it_opens(settings: Any) -> None:
    settings.RATE_LIMIT_ADDRESS_PER_S = 1.0
    can_say = {"websocket.http.response": {}}
    socket = {"type": "websocket", "path": "/api/progress/ws"}
    first, second, third, fourth = ask(
        *(scope_of(**socket) for _ in range(3)), scope_of(**socket, extensions=can_say)
    )
    assert (first, second) == ([], [])
    assert third == [{"type": "websocket.close", "code": 1013}]
    assert [message["type"] for message in fourth] == [
        "websocket.http.response.start",
        "websocket.http.response.body",
    ]
    assert fourth[0]["status"] == 429


def test_a_header_that_is_not_trusted_names_nobody(settings: Any) -> None:
    settings.TRUST_USER_HEADER = False
    scope = scope_of(headers=user(b"ann"))
    assert not any(refused(ask(*(scope_of(headers=user(b"ann")) for _ in range(20)), scope)))
    assert CHARGED not in scope


@pytest.mark.parametrize(
    "headers",
    [
        [*user(b"ann"), (b"authorization", b"Bearer x")],
        [*user(b"ann"), *user(b"bob")],
        user(b"../../etc"),
        user(b"\xff"),
        [],
    ],
)
def test_who_is_not_named_by_one_good_header_is_counted_later(headers: Headers) -> None:
    scope = scope_of(headers=headers)
    ask(scope)
    assert CHARGED not in scope


@pytest.mark.parametrize(
    ("proxies", "client", "forwarded", "address"),
    [
        ("", "10.0.0.9", b"1.2.3.4", "10.0.0.9"),
        ("10.0.0.0/8", "192.168.0.1", b"1.2.3.4", "192.168.0.1"),
        ("10.0.0.0/8", "10.0.0.9", b"1.2.3.4", "1.2.3.4"),
        ("10.0.0.0/8", "10.0.0.9", b"6.6.6.6, 1.2.3.4", "1.2.3.4"),
        ("10.0.0.0/8", "10.0.0.9", b"6.6.6.6, 1.2.3.4, 10.0.0.8", "1.2.3.4"),
        ("10.0.0.0/8", "10.0.0.9", b"", "10.0.0.9"),
        ("::1", "::1", b"2001:db8::1", "2001:db8::1"),
    ],
)
def test_a_proxy_is_believed_as_far_as_it_is_trusted(
    settings: Any, proxies: str, client: str, forwarded: bytes, address: str
) -> None:
    settings.TRUSTED_PROXIES = tuple(ip_network(text) for text in proxies.split(",") if text)
    scope = scope_of(headers=[(b"x-forwarded-for", forwarded)], client=(client, 1))
    assert client_address(scope) == address
    assert client_address(scope_of(client=None)) == "unknown"


def test_a_proxy_that_is_no_address_stops_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRUSTED_PROXIES", "10.0.0.0/8, proxy.example")
    with pytest.raises(ImproperlyConfigured, match=r"proxy\.example"):
        optional_networks(Env(), "TRUSTED_PROXIES")
    monkeypatch.setenv("TRUSTED_PROXIES", "10.0.0.0/8, ::1")
    assert len(optional_networks(Env(), "TRUSTED_PROXIES")) == 2


@pytest.mark.django_db
def test_a_token_and_a_session_are_charged_to_their_tenant_together(settings: Any) -> None:
    plain = "django.contrib.staticfiles.storage.StaticFilesStorage"
    settings.STORAGES = {**settings.STORAGES, "staticfiles": {"BACKEND": plain}}
    lab = factories.tenant("lab")
    token = ApiToken.issue(lab, "script")[1]
    person = User.objects.create_user("mel")
    Membership.objects.create(user=person, tenant=lab, role="member")
    script, browser = APIClient(HTTP_AUTHORIZATION=f"Bearer {token}"), APIClient()
    browser.force_login(person)
    asked = [script.get("/api/jobs"), browser.get("/api/jobs"), browser.get("/")]
    asked += [script.get("/api/jobs") for _ in range(2)]
    assert [answer.status_code for answer in asked] == [200] * 4 + [429]
    assert int(asked[-1].headers["Retry-After"]) >= 1
    assert "more than 2 requests a second" in asked[-1].json()["detail"]
    page = browser.get("/")
    assert page.status_code == 429
    assert int(page.headers["Retry-After"]) >= 1
    assert APIClient(HTTP_X_USER_ID="bob").get("/api/jobs").status_code == 200
