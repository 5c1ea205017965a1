"""Through the door: by link, by name and password, out again, and from tenant to tenant."""

from __future__ import annotations

from typing import Any

import pytest
from django.test import Client

from tenants import signin
from tenants.identity import SESSION_KEY
from tenants.models import User
from tests import factories
from tests.pages.conftest import PASSWORD, People

OUTSIDE = ["https://evil.example/", "//evil.example/", "javascript:alert(1)", "http:evil"]


def test_the_link_signs_in_once(people: People) -> None:
    link = signin.link(User.objects.get(username="ann"))
    first, second = Client(), Client()
    assert first.get(link)["Location"] == "/"
    assert first.get("/").status_code == 200
    again = second.get(link)
    assert again.status_code == 400
    assert "used already or is too old" in again.content.decode()
    assert first.get(link)["Location"] == "/"  # who it signed in may follow it again


@pytest.mark.parametrize("token", ["", "x", "a:b:c", "é" * 50, "1" * 5000])
def test_a_wrong_link_signs_nobody_in(people: People, token: str) -> None:
    client = Client()
    client.get("/sign-in/", {"token": token})
    assert client.get("/").status_code == 302


def test_a_link_of_a_closed_account_is_refused(people: People) -> None:
    user = User.objects.get(username="ann")
    link = signin.link(user)
    User.objects.filter(pk=user.pk).update(is_active=False)
    assert Client().get(link).status_code == 400


def test_name_and_password_lead_back_to_the_page(people: People) -> None:
    client = Client()
    form = {"username": "mel", "password": PASSWORD, "next": "/?jobs=2"}
    assert client.get("/sign-in/?next=/?jobs=2").status_code == 200
    assert client.post("/sign-in/", form)["Location"] == "/?jobs=2"
    assert client.get("/").status_code == 200


@pytest.mark.parametrize("wanted", OUTSIDE)
def test_no_sign_in_leads_to_another_host(people: People, wanted: str) -> None:
    form = {"username": "mel", "password": PASSWORD, "next": wanted}
    assert Client().post("/sign-in/", form)["Location"] == "/"


def test_a_wrong_password_says_so_and_keeps_the_name(people: People) -> None:
    answer = Client().post("/sign-in/", {"username": "mel", "password": "wrong"})
    assert answer.status_code == 400
    page = answer.content.decode()
    assert "No account has this name and password" in page
    assert 'value="mel"' in page
    assert "wrong" not in page


def test_signing_out_ends_the_session(people: People) -> None:
    client = people.client("mel")
    assert client.get("/sign-out/").status_code == 405
    assert client.post("/sign-out/")["Location"] == "/sign-in/"
    assert client.get("/").status_code == 302


def test_a_person_switches_between_memberships_alone(people: People) -> None:
    people.add("mel", people.elsewhere, "member")
    factories.tenant("third")
    client = people.client("mel")
    page = client.get("/").content.decode()
    assert '<option value="elsewhere">' in page
    client.post("/tenant/", {"tenant": "elsewhere"})
    assert client.session[SESSION_KEY] == "elsewhere"
    for refused in ("third", "", "../lab", "x" * 200):
        answer = client.post("/tenant/", {"tenant": refused}, follow=True)
        assert "You do not belong to" in answer.content.decode()
        assert client.session[SESSION_KEY] == "elsewhere"


def test_any_id_may_be_chosen_where_the_header_is_trusted(people: People, settings: Any) -> None:
    settings.TRUST_USER_HEADER = True
    client = people.client("ann")
    page = client.post("/tenant/", {"tenant": "brand-new:id"}, follow=True).content.decode()
    assert "Workflows of <strong>brand-new:id</strong>" in page
    assert "Nothing here yet" in page
    refused = client.post("/tenant/", {"tenant": "../../etc"}, follow=True).content.decode()
    assert "can not switch" in refused
    assert client.session[SESSION_KEY] == "brand-new:id"
