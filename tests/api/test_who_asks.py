"""Tokens, the trusted header and sessions: what names a tenant, and what does not."""

from __future__ import annotations

import datetime as dt
from typing import Any

import pytest
from django.utils import timezone
from rest_framework.test import APIClient

from tenants.models import ApiToken, Membership, Tenant, User
from tests import factories
from tests.api.conftest import People, by_header, signed_in

pytestmark = pytest.mark.django_db
LIST = "/api/workflows"
BAD_IDS = [
    "",
    " ",
    "../../etc",
    "a/b",
    "a b",
    "-a",
    ".a",
    "x" * 65,
    "x" * 10_000,
    "a;b",
    "é",
    "a\n",
]


@pytest.mark.parametrize("key", BAD_IDS)
def test_a_bad_user_id_is_refused_with_a_sentence(key: str) -> None:
    answer = by_header(key).get(LIST)
    assert answer.status_code == 400
    assert "user id" in answer.json()["detail"]
    assert not Tenant.objects.exists()


@pytest.mark.parametrize("key", ["a", "0", "x" * 64, "ann@lab.org", "a.b_c:d-e"])
def test_a_good_user_id_is_an_empty_tenant_that_no_row_is_made_for(key: str) -> None:
    assert by_header(key).get(LIST).json() == {"next": None, "previous": None, "results": []}
    assert not Tenant.objects.exists()


def test_the_first_accepted_write_makes_the_tenant() -> None:
    client = by_header("new")
    assert client.post(LIST, {"name": ""}).status_code == 400
    assert not Tenant.objects.exists()
    assert client.post(LIST, {"name": "first"}).status_code == 201
    assert Tenant.objects.get().key == "new"


def test_the_header_says_nothing_where_it_is_not_trusted(settings: Any) -> None:
    settings.TRUST_USER_HEADER = False
    answer = by_header("ann").get(LIST)
    assert answer.status_code == 401
    assert "X-User-ID" not in answer.json()["detail"]
    assert answer.headers["WWW-Authenticate"].startswith("Bearer")


@pytest.mark.parametrize(
    "text", ["Bearer", "Bearer a b", "Bearer wrong", "bearer é", "Bearer ../x"]
)
def test_a_wrong_token_is_refused(text: str) -> None:
    answer = APIClient(HTTP_AUTHORIZATION=text).get(LIST)
    assert answer.status_code == 401
    assert answer.json()["detail"]


def test_tokens_end(people: People) -> None:
    client = people.client("token")
    assert client.get(LIST).status_code == 200
    ApiToken.objects.update(expires_at=timezone.now() - dt.timedelta(seconds=1))
    assert client.get(LIST).status_code == 401
    ApiToken.objects.update(expires_at=None, revoked_at=timezone.now())
    assert client.get(LIST).status_code == 401


def test_a_persons_token_has_the_persons_role_and_ends_with_the_membership(people: People) -> None:
    user = User.objects.get(username="vic")
    text = ApiToken.issue(people.lab, "mine", user=user)[1]
    client = APIClient(HTTP_AUTHORIZATION=f"Bearer {text}")
    assert client.get(LIST).status_code == 200
    assert client.post(LIST, {"name": "n"}).status_code == 403
    Membership.objects.filter(user=user).delete()
    assert client.get(LIST).status_code == 401


def test_a_session_acts_for_the_membership_that_was_chosen(people: People) -> None:
    Membership.objects.create(user=User.objects.get(username="ann"), tenant=people.elsewhere)
    factories.workflow(people.elsewhere, [])
    assert signed_in("ann").get(LIST).json()["results"] == []
    assert len(signed_in("ann", "elsewhere").get(LIST).json()["results"]) == 1


def test_a_session_chooses_any_tenant_only_where_ids_are_trusted(
    people: People, settings: Any
) -> None:
    factories.workflow(people.elsewhere, [])
    assert len(signed_in("ann", "elsewhere").get(LIST).json()["results"]) == 1
    settings.TRUST_USER_HEADER = False
    assert signed_in("ann", "elsewhere").get(LIST).json()["results"] == []


def test_an_account_without_a_lab_is_told_so(db: None) -> None:
    User.objects.create_user("new")
    answer = signed_in("new").get(LIST)
    assert answer.status_code == 403
    assert "operator" in answer.json()["detail"]


def test_sessions_need_the_csrf_token_and_programs_do_not(people: People) -> None:
    strict = APIClient(enforce_csrf_checks=True)
    strict.force_login(User.objects.get(username="ann"))
    for path in (LIST, "/workflows"):
        assert strict.post(path, {"name": "n"}).status_code == 403
    script = APIClient(enforce_csrf_checks=True, HTTP_AUTHORIZATION=f"Bearer {people.token}")
    assert script.post(LIST, {"name": "n"}).status_code == 201
    by_id = APIClient(enforce_csrf_checks=True, HTTP_X_USER_ID="lab")
    assert by_id.post("/workflows", {"name": "n"}).status_code == 201
