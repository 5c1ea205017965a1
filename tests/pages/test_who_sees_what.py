"""Every page for every role and tenant: 200, 404, 403 or the way to the sign-in page."""

from __future__ import annotations

import re
import uuid

import pytest

from tests.pages.conftest import Lab, People

READ = ("ann", "mel", "vic")


def pages_of(lab: Lab) -> list[str]:
    """Every page that shows rows of the lab."""
    done, waiting = lab.job_url("done"), lab.job_url("waiting")
    return [lab.url, done, waiting, f"{done}viewer/", f"{waiting}viewer/"]


def posts_of(lab: Lab) -> list[str]:
    """Every form that changes rows of the lab."""
    return [
        f"{lab.url}cancel/",
        f"{lab.url}retry/",
        lab.job_url("waiting", "cancel/"),
        lab.job_url("failed", "retry/"),
    ]


@pytest.mark.parametrize("name", READ)
def test_members_of_every_role_read_their_pages(people: People, lab: Lab, name: str) -> None:
    client = people.client(name)
    assert [client.get(url).status_code for url in ["/", *pages_of(lab)]] == [200] * 6


def test_rows_of_another_tenant_are_not_there(people: People, lab: Lab) -> None:
    client = people.client("bob")
    assert client.get("/").status_code == 200
    found = [client.get(url).status_code for url in pages_of(lab)]
    found += [client.post(url).status_code for url in posts_of(lab)]
    assert set(found) == {404}
    assert lab.jobs["waiting"].status.public == "PENDING"


def test_a_foreign_page_says_the_same_as_one_that_never_was(people: People, lab: Lab) -> None:
    client = people.client("bob")
    unknown = f"/workflows/{uuid.uuid4()}/"
    foreign, never = client.get(lab.url), client.get(unknown)
    assert without_token(foreign.content) == without_token(never.content)


def without_token(page: bytes) -> bytes:
    """The page without its CSRF token, which differs from one answer to the next."""
    return re.sub(rb'name="csrfmiddlewaretoken" value="\w+"', b"", page)


@pytest.mark.parametrize("path", ["/workflows/x/", "/jobs/1/", "/jobs/..%2f..%2fetc/", "/nowhere/"])
def test_garbled_addresses_are_404(people: People, path: str) -> None:
    answer = people.client("mel").get(path)
    assert answer.status_code == 404
    assert b"Traceback" not in answer.content


def test_strangers_are_sent_to_the_sign_in_page_and_come_back(people: People, lab: Lab) -> None:
    client = people.client("nobody")
    for url in ["/", *pages_of(lab)]:
        answer = client.get(url)
        assert answer.status_code == 302
        assert answer["Location"].startswith("/sign-in/?next=")
    for url in [*posts_of(lab), "/run-demo/", "/tenant/"]:
        assert client.post(url)["Location"] == "/sign-in/?next=%2F"


def test_viewers_may_not_write_and_see_no_buttons_for_it(people: People, lab: Lab) -> None:
    client = people.client("vic")
    for url in [*posts_of(lab), "/run-demo/"]:
        answer = client.post(url)
        assert answer.status_code == 403
        assert "viewer of lab" in answer.content.decode()
    for url in [lab.url, lab.job_url("waiting")]:
        assert "/cancel/" not in client.get(url).content.decode()
    assert lab.jobs["waiting"].status.public == "PENDING"


def test_forms_change_rows_by_post_alone(people: People, lab: Lab) -> None:
    client = people.client("mel")
    assert {client.get(url).status_code for url in [*posts_of(lab), "/run-demo/"]} == {405}


def test_forms_without_a_csrf_token_are_refused(people: People, lab: Lab) -> None:
    client = people.client("mel")
    client.handler.enforce_csrf_checks = True
    answer = client.post(lab.job_url("waiting", "cancel/"))
    assert answer.status_code == 403
    assert "form was too old" in answer.content.decode()
    assert lab.jobs["waiting"].status.public == "PENDING"


def test_an_account_without_a_lab_is_told_what_to_do(people: People) -> None:
    answer = people.client("lou").get("/")
    assert answer.status_code == 403
    assert "ask an operator" in answer.content.decode()


def test_a_trusted_header_names_the_tenant(people: People, lab: Lab, settings: object) -> None:
    client = people.client("nobody")
    header = {"HTTP_X_USER_ID": "lab"}
    assert client.get(lab.url, **header).status_code == 302
    settings.TRUST_USER_HEADER = True  # type: ignore[attr-defined]
    page = client.get(lab.url, **header)
    assert page.status_code == 200
    assert 'data-feed="/api/progress/ws?user_id=lab"' in page.content.decode()
    assert client.get(lab.url, HTTP_X_USER_ID="elsewhere").status_code == 404


def test_pages_are_never_kept_by_caches(people: People, lab: Lab) -> None:
    client = people.client("mel")
    for url in ["/", *pages_of(lab)]:
        assert "no-store" in client.get(url)["Cache-Control"]
