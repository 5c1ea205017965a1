"""The queue page: every waiting job under the gate that holds it, at the same cost at any size."""

from __future__ import annotations

import re

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from jobs.models import Queue, Worker
from jobs.scheduling import promotion, slots
from tests import factories
from tests.pages.conftest import Lab, People


def shown(people: People, path: str = "/queue/", name: str = "mel") -> str:
    answer = people.client(name).get(path)
    assert answer.status_code == 200
    return str(answer.content.decode())


def groups(page: str) -> dict[str, list[str]]:
    """The keys of the jobs under each gate, in their order."""
    parts = re.split(r'<section class="section" data-key="(\w+)"', page)[1:]
    return {
        gate: re.findall(r'<th scope="row"><a href="[^"]+">([^<]+)</a>', body)
        for gate, body in zip(parts[::2], parts[1::2], strict=True)
    }


def test_every_waiting_job_stands_under_its_gate_behind_what_holds_it(
    people: People, lab: Lab
) -> None:
    page = shown(people)
    assert groups(page) == {"branch": ["waiting"], "dependency": ["joined"]}
    assert "2 of your jobs wait" in page
    assert "Jobs of branch c run one at a time, and 1 is before it." in page
    assert "It waits for running." in page
    assert page.count(f'<a href="{lab.job_url("running")}">running</a>') == 2
    assert "not known yet" in page, "no probe finished long enough ago to learn from"


def test_the_nearest_to_its_start_comes_first(people: People) -> None:
    jobs = [factories.job(f"j{n}", f"b{n}") for n in range(6)]
    late = [factories.job("late", "b0"), factories.job("last", after=["late"])]
    factories.workflow(people.lab, [*jobs, *late])
    promotion.promote()
    assert list(groups(shown(people)).items()) == [
        ("worker_limit", ["j4", "j5"]),
        ("branch", ["late"]),
        ("dependency", ["last"]),
    ]


def test_the_gates_of_the_house_are_told_with_their_values(people: People) -> None:
    page = shown(people)
    assert "None of your jobs waits." in page
    assert "one is free for you" in page
    assert "busy in queue cpu" in page
    assert "4 live workers" in page
    factories.workflow(people.lab, [factories.job("j")])
    Queue.objects.filter(name="cpu").update(paused=True)
    assert "paused by an operator" in shown(people)
    assert groups(shown(people)) == {"paused": ["j"]}
    assert "when it is resumed" in shown(people)
    Queue.objects.update(paused=False)
    Worker.objects.all().delete()
    assert groups(shown(people)) == {"no_worker": ["j"]}


def test_maintenance_is_told_with_its_note(people: People) -> None:
    factories.workflow(people.lab, [factories.job("j")])
    slots.set_maintenance(True, "New disks <until noon>")
    page = shown(people)
    assert groups(page) == {"maintenance": ["j"]}
    assert "New disks &lt;until noon&gt;" in page
    assert "when maintenance ends" in page
    slots.set_maintenance(False)
    assert groups(shown(people)) == {"next": ["j"]}


def test_other_tenants_are_counted_but_not_named(people: People, settings: object) -> None:
    settings.MAX_ACTIVE_USERS = 1  # type: ignore[attr-defined]
    slots.seed()
    factories.workflow(people.elsewhere, [factories.job("secret")])
    promotion.promote()
    factories.workflow(people.lab, [factories.job("mine")])
    page = shown(people)
    assert groups(page) == {"user_limit": ["mine"]}
    assert "0 users before you" in page
    assert "secret" not in page
    assert "elsewhere" not in page


def test_it_is_linked_from_every_page_and_from_a_waiting_job(people: People, lab: Lab) -> None:
    assert '<a href="/queue/">Queue</a>' in shown(people, "/")
    assert '<a href="/queue/" aria-current="page">Queue</a>' in shown(people)
    assert '<a href="/queue/">All that waits</a>' in shown(people, lab.job_url("waiting"))


@pytest.mark.parametrize("name", ["ann", "mel", "vic"])
def test_every_role_may_look(people: People, lab: Lab, name: str) -> None:
    assert groups(shown(people, name=name))


def test_bob_sees_nothing_of_the_lab_and_strangers_are_sent_away(people: People, lab: Lab) -> None:
    assert groups(shown(people, name="bob")) == {}
    answer = people.client("nobody").get("/queue/")
    assert answer["Location"] == "/sign-in/?next=%2Fqueue%2F"


def test_a_tenant_that_never_wrote_has_an_empty_queue(people: People, settings: object) -> None:
    settings.TRUST_USER_HEADER = True  # type: ignore[attr-defined]
    page = people.client("ann", tenant="brand-new").get("/queue/")
    assert page.status_code == 200
    assert "Nothing waits" in page.content.decode()


@pytest.mark.parametrize("number", ["0", "-1", "x", "99999999999999999999", ""])
def test_a_nonsense_page_number_is_no_fault(people: People, lab: Lab, number: str) -> None:
    assert people.client("mel").get("/queue/", {"jobs": number}).status_code == 200


def queries(people: People) -> int:
    client = people.client("mel")
    client.get("/queue/")
    with CaptureQueriesContext(connection) as seen:
        client.get("/queue/")
    return len(seen)


def test_long_lists_are_paged_and_the_queries_do_not_grow(people: People, lab: Lab) -> None:
    few = queries(people)
    jobs = [factories.job(f"m{n}", f"b{n % 7}") for n in range(80)]
    factories.workflow(people.lab, [*jobs, factories.job("end", after=["m79"])])
    page = shown(people)
    assert sum(map(len, groups(page).values())) == 50
    assert "?jobs=2" in page
    assert sum(map(len, groups(shown(people, "/queue/?jobs=2")).values())) == 33
    assert queries(people) <= few + 1
    assert few <= 24
