"""The page of a workflow: its picture, its rows, cancel and retry."""

from __future__ import annotations

import re

import pytest

from tests import factories
from tests.pages.conftest import Lab, People
from workflows import pages


def test_the_picture_has_a_box_for_each_job_and_an_arrow_for_each_edge(
    people: People, lab: Lab
) -> None:
    shown = people.client("vic").get(lab.url).content.decode()
    for key, job in lab.jobs.items():
        state = job.status.public
        assert f'data-node="{job.uuid}" data-state="{state}" aria-label="{key}, Probe: ' in shown
    assert shown.count('class="edge"') == 3
    assert shown.count('class="order"') == 1  # running, then waiting
    names = re.findall(r'class="lane-name"[^>]*>([^<]+)<', shown)
    assert names == ["a", "b", "c", "a lane of its own"]


def test_the_page_tells_progress_in_its_title(people: People, lab: Lab) -> None:
    shown = people.client("mel").get(lab.url).content.decode()
    assert "<title>50 % · Every &lt;state&gt; &amp; more · labsched</title>" in shown
    assert f'data-workflow="{lab.workflow.pk}"' in shown
    assert 'data-total="6" data-state="RUNNING"' in shown


def test_cancel_ends_what_waits_and_asks_what_runs_to_stop(people: People, lab: Lab) -> None:
    client = people.client("mel")
    shown = client.post(f"{lab.url}cancel/", follow=True).content.decode()
    states = factories.states(lab.workflow)
    assert states["waiting"] == states["joined"] == "CANCELLED"
    assert states["running"] == "RUNNING"
    assert lab.jobs["running"].cancel_requested_at is not None
    assert "Cancelling" in shown
    assert "Every job that was not over is being cancelled." in shown


def test_cancelling_what_can_not_be_cancelled_says_why(people: People) -> None:
    client = people.client("mel")
    empty = factories.workflow(people.lab, [])
    answer = client.post(f"/workflows/{empty.pk}/cancel/", follow=True)
    assert "has no jobs to cancel" in answer.content.decode()
    waiting = factories.workflow(people.lab, [factories.job("one")])
    client.post(f"/workflows/{waiting.pk}/cancel/")
    answer = client.post(f"/workflows/{waiting.pk}/cancel/", follow=True)
    assert "is over already" in answer.content.decode()


def test_retry_puts_the_failed_jobs_in_line_again(people: People, lab: Lab) -> None:
    client = people.client("mel")
    assert "Retry what failed" in client.get(lab.url).content.decode()
    shown = client.post(f"{lab.url}retry/", follow=True).content.decode()
    assert factories.states(lab.workflow)["failed"] == "PENDING"
    assert "Retry what failed" not in shown
    again = client.post(f"{lab.url}retry/", follow=True).content.decode()
    assert "Nothing in" in again


def test_an_empty_workflow_says_how_to_fill_it(people: People) -> None:
    flow = factories.workflow(people.lab, [], name="empty")
    shown = people.client("mel").get(f"/workflows/{flow.pk}/").content.decode()
    assert "This workflow has no jobs yet" in shown
    assert "<svg width" not in shown


def test_a_large_workflow_is_drawn_in_part_and_listed_in_pages(
    people: People, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pages, "DRAWN", 10)
    monkeypatch.setattr(pages, "DRAWN_BEFORE", 2)
    jobs = [factories.job(f"j{n}", "one") for n in range(60)]
    flow = factories.workflow(people.lab, jobs)
    client = people.client("mel")
    first = client.get(f"/workflows/{flow.pk}/").content.decode()
    assert "10 of 60 jobs are drawn" in first
    assert first.count("data-node=") == 10
    assert first.count("data-job=") == 50
    second = client.get(f"/workflows/{flow.pk}/?jobs=2").content.decode()
    assert second.count("data-job=") == 10
