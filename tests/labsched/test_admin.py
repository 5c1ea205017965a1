"""The operators' pages: every model is seen, nothing is edited by hand, actions go through services."""

from __future__ import annotations

from typing import Any

import pytest
from django.apps import apps
from django.contrib import admin
from django.contrib.admin.models import LogEntry
from django.test import Client

from jobs.models import Branch, Job, Queue, Worker
from jobs.scheduling import promotion
from jobs.states import JobState
from tenants.models import ApiToken, Tenant, User
from tests import factories
from tests.factories import job, jobs_of, states, workflow

pytestmark = pytest.mark.django_db
OURS = [
    model
    for app in ("tenants", "workflows", "jobs")
    for model in apps.get_app_config(app).get_models()
]
EDITABLE = {"user", "membership", "segmentationmodel"}


@pytest.fixture(autouse=True)
def house(settings: Any) -> None:
    settings.LABSCHED_ENABLE_PROBE_JOBS = True
    settings.STORAGES = {
        **settings.STORAGES,
        "staticfiles": {"BACKEND": "django.contrib.staticfiles.storage.StaticFilesStorage"},
    }
    factories.capacity()


@pytest.fixture
def root(client: Client) -> Client:
    client.force_login(User.objects.create_superuser("root"))
    return client


def address(model: type[Any], what: str) -> str:
    return f"/admin/{model._meta.app_label}/{model._meta.model_name}/{what}"


def run(client: Client, model: type[Any], action: str, *rows: Any) -> str:
    """Run an admin action on rows. Returns the page that follows."""
    body = {"action": action, "_selected_action": [row.pk for row in rows]}
    response = client.post(address(model, ""), body, follow=True)
    assert response.status_code == 200
    return response.content.decode()


@pytest.mark.parametrize("model", OURS, ids=lambda model: model.__name__)
def test_every_model_is_listed_and_only_accounts_are_edited(root: Client, model: type[Any]) -> None:
    assert model in admin.site._registry
    workflow(factories.tenant(), [job("a"), job("b", after=["a"])])
    ApiToken.issue(Tenant.objects.first(), "script")  # type: ignore[arg-type]
    assert root.get(address(model, "")).status_code == 200
    allowed = model._meta.model_name in EDITABLE
    assert root.get(address(model, "add/")).status_code == (200 if allowed else 403)


def test_nobody_but_staff_sees_them(client: Client) -> None:
    client.force_login(User.objects.create_user("ann"))
    assert client.get(address(Job, "")).status_code == 302


def test_cancel_and_retry_are_actions_that_say_what_they_refuse(root: Client) -> None:
    flow = workflow(factories.tenant(), [job("a")])
    run(root, Job, "cancel", jobs_of(flow)["a"])
    assert states(flow) == {"a": "CANCELLED"}
    assert "is over already" in run(root, Job, "cancel", jobs_of(flow)["a"])
    run(root, Job, "retry", jobs_of(flow)["a"])
    assert states(flow) == {"a": "PENDING"}
    assert LogEntry.objects.filter(object_id=jobs_of(flow)["a"].pk).count() == 2


def test_a_workflow_is_cancelled_as_a_whole(root: Client) -> None:
    flow = workflow(factories.tenant(), [job("a"), job("b")])
    run(root, type(flow), "cancel", flow)
    assert set(states(flow).values()) == {"CANCELLED"}
    assert "is over already" in run(root, type(flow), "cancel", flow)


@pytest.mark.parametrize("kind", ["tenant", "branch", "queue"])
def test_pause_stops_new_jobs_and_resume_starts_them(root: Client, kind: str) -> None:
    flow = workflow(factories.tenant(), [job("a", "main"), job("b", "main")])
    row = {
        "tenant": flow.tenant,
        "branch": Branch.objects.for_tenant(flow.tenant).get(),
        "queue": Queue.objects.get(name="cpu"),
    }[kind]
    run(root, type(row), "pause", row)
    assert promotion.promote() == []
    run(root, type(row), "resume", row)
    assert len(promotion.promote()) == 1
    assert jobs_of(flow)["a"].status is JobState.QUEUED


def test_a_draining_worker_is_no_capacity(root: Client) -> None:
    worker = Worker.objects.get(name="cpu-0")
    run(root, Worker, "drain", worker)
    assert Worker.objects.live().count() == 3
    run(root, Worker, "undrain", worker)
    assert Worker.objects.live().count() == 4
