"""The cast of the page tests, and workflows in the states that pages show."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from django.test import Client

from jobs import services
from jobs.models import Job
from jobs.scheduling import promotion
from jobs.services import StoredArtifact
from jobs.states import Reason
from tenants.identity import SESSION_KEY
from tenants.models import Membership, Tenant, User
from tests import factories
from tests.synthetic import write_slide
from workflows.models import Workflow
from workflows.pages import DEMO_SLIDE

PASSWORD = "correct horse battery"


@pytest.fixture(autouse=True)
def house(settings: Any, tmp_path: Path) -> Path:
    """Probe jobs, a data folder of our own, and static files that were never gathered."""
    settings.LABSCHED_ENABLE_PROBE_JOBS = True
    settings.TRUST_USER_HEADER = False
    # the slow ones cost seconds a test, and say nothing about pages
    settings.PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
    settings.LABSCHED_DATA = tmp_path
    settings.SLIDE_ROOT = tmp_path / "slides"
    settings.SLIDE_ROOT.mkdir()
    settings.STORAGES = {
        "default": {
            "BACKEND": "django.core.files.storage.FileSystemStorage",
            "OPTIONS": {"location": str(tmp_path)},
        },
        "staticfiles": {"BACKEND": "django.contrib.staticfiles.storage.StaticFilesStorage"},
    }
    return tmp_path


@pytest.fixture
def demo_slide(house: Path) -> Path:
    """A slide with the name of the demo's."""
    made = write_slide(house / "slides" / "demo.tif", size=512)
    return made.rename(made.with_name(DEMO_SLIDE))


class People:
    """ann operates a lab, mel is its member, vic its viewer; bob belongs elsewhere; lou nowhere."""

    def __init__(self) -> None:
        self.lab = factories.tenant("lab")
        self.elsewhere = factories.tenant("elsewhere")
        for name, tenant, role in (
            ("ann", self.lab, "operator"),
            ("mel", self.lab, "member"),
            ("vic", self.lab, "viewer"),
            ("bob", self.elsewhere, "member"),
        ):
            self.add(name, tenant, role)
        User.objects.create_user("lou", password=PASSWORD)

    def add(self, name: str, tenant: Tenant, role: str) -> User:
        user, made = User.objects.get_or_create(username=name)
        if made:
            user.set_password(PASSWORD)
            user.save()
        Membership.objects.create(user=user, tenant=tenant, role=role)
        return user

    def client(self, name: str, tenant: str | None = None) -> Client:
        """The browser of `name`; "nobody" is not signed in."""
        client = Client()
        if name == "nobody":
            return client
        client.force_login(User.objects.get(username=name))
        if tenant is not None:
            session = client.session
            session[SESSION_KEY] = tenant
            session.save()
        return client


@pytest.fixture
def people(db: None) -> People:
    factories.capacity()
    return People()


class Lab:
    """A workflow of the lab with a job in each state that a page tells apart."""

    def __init__(self, tenant: Tenant) -> None:
        self.workflow: Workflow = factories.workflow(
            tenant,
            [
                factories.job("done", "a"),
                factories.job("failed", "b"),
                factories.job("ended", "b", after=["failed"]),
                factories.job("running", "c"),
                factories.job("waiting", "c"),
                factories.job("joined", after=["running", "done"]),
            ],
            name="Every <state> & more",
        )
        promotion.promote()
        jobs = self.jobs
        for key in ("done", "failed", "running"):
            services.start(jobs[key].pk, jobs[key].attempt, "cpu-0")
        jobs = self.jobs
        files = [
            artifact("cells.geojson.gz", "geojson"),
            artifact("x_cells.jsonl", "cells_jsonl", main=True),
            artifact("manifest.json", "manifest"),
        ]
        summary = {"cells": 1522, "tissue_mm2": 0.629}
        services.succeed(jobs["done"].pk, jobs["done"].attempt, artifacts=files, summary=summary)
        services.fail(
            jobs["failed"].pk, jobs["failed"].attempt, Reason.BAD_INPUT, "The slide is <damaged>."
        )

    @property
    def jobs(self) -> dict[str, Job]:
        return factories.jobs_of(self.workflow)

    @property
    def url(self) -> str:
        return f"/workflows/{self.workflow.pk}/"

    def job_url(self, key: str, then: str = "") -> str:
        return f"/jobs/{self.jobs[key].uuid}/{then}"


def artifact(name: str, kind: str, *, main: bool = False) -> StoredArtifact:
    return StoredArtifact(name, kind, f"results/test/{name}", 2048, "ab" * 32, main)


@pytest.fixture
def lab(people: People) -> Lab:
    return Lab(people.lab)
