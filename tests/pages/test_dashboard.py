"""The dashboard: empty with one button, full with cards and rows, and the same cost at any size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from jobs.models import Job, Worker
from tests import factories
from tests.pages.conftest import Lab, People
from workflows.models import Workflow

BUTTON = "Run tissue + cells on the demo slide"


def page(people: People, name: str = "mel", path: str = "/") -> str:
    return people.client(name).get(path).content.decode()


def test_the_empty_dashboard_has_one_green_button_that_submits(
    people: People, demo_slide: Path
) -> None:
    shown = page(people)
    assert shown.count(BUTTON) == 1
    assert shown.count('class="go big"') == 1
    assert "disabled" not in shown
    answer = people.client("mel").post("/run-demo/")
    workflow = Workflow.objects.for_tenant(people.lab).get()
    assert answer["Location"] == f"/workflows/{workflow.pk}/"
    jobs = factories.jobs_of(workflow)
    assert {key: job.job_type for key, job in jobs.items()} == {
        "tissue": "tissue_mask",
        "cells": "cell_segmentation",
    }
    assert {job.created_by.username for job in Job.objects.for_tenant(people.lab)} == {"mel"}
    assert factories.states(workflow) == {"tissue": "PENDING", "cells": "PENDING"}


def test_the_button_says_why_it_does_not_work(people: People) -> None:
    shown = page(people)
    assert "disabled" in shown
    assert "is not in the slide folder: run bin/setup" in shown
    answer = people.client("mel").post("/run-demo/", follow=True)
    assert "The demo could not be submitted" in answer.content.decode()
    assert not Workflow.objects.for_tenant(people.lab).exists()


def test_the_demo_makes_a_tenant_of_a_new_id(
    people: People, demo_slide: Path, settings: Any
) -> None:
    settings.TRUST_USER_HEADER = True
    client = people.client("ann", tenant="brand-new")
    answer = client.post("/run-demo/", follow=True)
    assert answer.status_code == 200
    assert "Tissue and cells on the demo slide" in answer.content.decode()


def test_cards_and_rows_tell_names_states_and_downloads(people: People, lab: Lab) -> None:
    shown = page(people)
    assert "Every &lt;state&gt; &amp; more" in shown
    assert "Every <state>" not in shown
    assert "6 jobs · 1 done · 1 running · 2 waiting · 1 failed · 1 cancelled" in shown
    assert "The slide is &lt;damaged&gt;." in shown
    assert "1,522 cells · 0.63 mm² of tissue" in shown
    assert "Waits for running." in shown
    done = lab.jobs["done"].uuid
    assert f'href="/api/jobs/{done}/artifacts/cells.geojson.gz" download' in shown
    for key, state in factories.states(lab.workflow).items():
        assert f'data-job="{lab.jobs[key].uuid}" data-state="{state}"' in shown


@pytest.mark.parametrize("word", ["Done", "Failed", "Cancelled", "Running", "Waiting"])
def test_every_state_has_a_word(people: People, lab: Lab, word: str) -> None:
    assert f"<span>{word}</span>" in page(people)


def test_other_tenants_are_counted_but_not_named(people: People, lab: Lab) -> None:
    shown = page(people, "bob")
    assert "Every" not in shown
    assert '<span data-figure="active_users">1</span>' in shown
    assert '<span data-figure="total">4</span>' in shown


def test_no_worker_is_told_with_what_to_do(people: People) -> None:
    Worker.objects.all().delete()
    assert "No worker is ready yet. Start one with bin/serve." in page(people)


@pytest.mark.parametrize("number", ["0", "-1", "x", "99999999999999999999", "²", ""])
def test_a_nonsense_page_number_is_no_fault(people: People, lab: Lab, number: str) -> None:
    client = people.client("mel")
    for name in ("jobs", "workflows"):
        assert client.get("/", {name: number}).status_code == 200


def test_long_lists_are_paged(people: People) -> None:
    for number in range(11):
        jobs = [factories.job(f"j{n}") for n in range(6)]
        factories.workflow(people.lab, jobs, name=f"flow-{number:02}")
    first, second = page(people), page(people, path="/?workflows=2")
    assert "flow-10" in first
    assert "flow-00" not in first
    assert "?workflows=2" in first
    assert "flow-00" in second
    assert first.count("data-job=") == 50
    assert page(people, path="/?jobs=2").count("data-job=") == 16


def queries(people: People, path: str) -> int:
    client = people.client("mel")
    client.get(path)
    with CaptureQueriesContext(
        connection,
    ) as seen:
        assert client.get(path).status_code == 200
    return len(seen)


def test_the_number_of_queries_does_not_grow_with_rows(people: People, lab: Lab) -> None:
    few = queries(people, "/"), queries(people, lab.url)
    for number in range(8):
        jobs = [factories.job(f"j{n}", f"b{n % 3}") for n in range(9)]
        last = factories.workflow(people.lab, jobs, name=f"more {number}")
    many = queries(people, "/"), queries(people, f"/workflows/{last.pk}/")
    assert many[0] <= few[0]
    assert many[1] <= few[1]
    assert few[0] <= 18
    assert few[1] <= 20
