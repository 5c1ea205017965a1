"""No page asks another host for anything, and none needs more than `default-src 'self'`."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from django.template.loader import get_template

from tests.pages.conftest import Lab, People

ROOT = Path(__file__).resolve().parents[2]
OURS = [
    *(ROOT / "static" / "css").rglob("*"),
    *(ROOT / "static" / "js").rglob("*"),
    *(ROOT / "static" / "img").rglob("*"),
]
FILES = [path for path in OURS if path.is_file()]
TEMPLATES = sorted((ROOT / "templates").rglob("*.html"))
ABSOLUTE = re.compile(r"(?:https?:)?//[\w-]+(?:\.[\w-]+)+", re.IGNORECASE)
NAMESPACE = "http://www.w3.org/"  # names of XML, never fetched


class Page(HTMLParser):
    """What the policy would refuse, and what would be fetched."""

    def __init__(self) -> None:
        super().__init__()
        self.refused: list[str] = []
        self.fetched: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        named = dict(attrs)
        data = named.get("type") == "application/json"
        if tag == "style" or (tag == "script" and "src" not in named and not data):
            self.refused.append(f"<{tag}> in the page")
        self.refused += [f"{tag} {name}=" for name in named if name == "style" or name[:2] == "on"]
        links = ("src", "href", "action", "formaction", "srcset", "poster")
        self.fetched += [named[name] or "" for name in links if name in named]


def check(text: str) -> None:
    page = Page()
    page.feed(text)
    assert page.refused == []
    assert page.fetched
    inside = ("/", "#", "?")
    assert [link for link in page.fetched if not link.startswith(inside)] == []
    assert [link for link in page.fetched if link.startswith("//")] == []


def test_no_page_needs_inline_code_or_another_host(people: People, lab: Lab) -> None:
    client = people.client("ann")
    urls = ["/", lab.url, *(lab.job_url(key) for key in lab.jobs)]
    for url in [*urls, lab.job_url("done", "viewer/"), "/nowhere/"]:
        check(client.get(url).content.decode())
    check(people.client("nobody").get("/sign-in/").content.decode())
    check(people.client("lou").get("/").content.decode())


@pytest.mark.parametrize("name", ["400.html", "403.html", "403_csrf.html", "404.html", "500.html"])
def test_error_pages_stand_without_any_context(name: str) -> None:
    text = get_template(name).render({})
    check(text)
    assert "Go to the dashboard" in text


def test_the_policy_is_sent_with_every_page(people: People) -> None:
    policy = people.client("ann").get("/")["Content-Security-Policy"]
    assert "default-src 'self'" in policy
    assert "unsafe" not in policy


@pytest.mark.parametrize("path", FILES + TEMPLATES, ids=lambda path: path.name)
def test_no_file_of_ours_names_another_host(path: Path) -> None:
    text = path.read_text(encoding="utf-8").replace(NAMESPACE, "")
    assert ABSOLUTE.findall(text) == []


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.name)
def test_every_template_says_what_it_needs(path: Path) -> None:
    text = path.read_text(encoding="utf-8")[:300]
    assert "{% comment %}" in text or "{# " in text


def test_every_module_that_is_imported_is_there() -> None:
    for path in (ROOT / "static" / "js").rglob("*.js"):
        for wanted in re.findall(r'from "(\.[^"]+)"', path.read_text(encoding="utf-8")):
            assert (path.parent / wanted).is_file(), f"{path.name} imports {wanted}"
