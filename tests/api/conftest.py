"""The cast of the API tests, and jobs that ended with real files."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from django.core.files.base import ContentFile
from django.core.files.storage import default_storage
from rest_framework.test import APIClient

from jobs import services
from jobs.models import Job
from jobs.scheduling import promotion
from jobs.services import StoredArtifact
from tenants.identity import SESSION_KEY
from tenants.models import ApiToken, Membership, Tenant, User
from tests import factories
from workflows.models import Workflow

GONE = "00000000-0000-4000-8000-000000000000"


@pytest.fixture(autouse=True)
def house(settings: Any, tmp_path: Path) -> Path:
    """Probe jobs, a private data folder, slot rows; the header is trusted."""
    settings.LABSCHED_ENABLE_PROBE_JOBS = True
    settings.TRUST_USER_HEADER = True
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
def capacity(db: None) -> None:
    """Four cpu workers are there."""
    factories.capacity()


class People:
    """ann operates a lab, mel is its member, vic its viewer; bob belongs elsewhere; eve is new."""

    def __init__(self) -> None:
        self.lab = factories.tenant("lab")
        self.elsewhere = factories.tenant("elsewhere")
        for name, role in (("ann", "operator"), ("mel", "member"), ("vic", "viewer")):
            self._person(name, self.lab, role)
        self._person("bob", self.elsewhere, "member")
        self.token = ApiToken.issue(self.lab, "script")[1]
        self.foreign_token = ApiToken.issue(self.elsewhere, "script")[1]

    def _person(self, name: str, tenant: Tenant, role: str) -> None:
        user = User.objects.create_user(name)
        Membership.objects.create(user=user, tenant=tenant, role=role)

    def client(self, name: str) -> APIClient:
        """How `name` reaches the API."""
        ways: Mapping[str, Callable[[], APIClient]] = {
            "nobody": APIClient,
            "header": lambda: by_header("lab"),
            "eve": lambda: by_header("eve"),
            "token": lambda: APIClient(HTTP_AUTHORIZATION=f"Bearer {self.token}"),
            "foreign token": lambda: APIClient(HTTP_AUTHORIZATION=f"Bearer {self.foreign_token}"),
        }
        return ways[name]() if name in ways else signed_in(name)


def by_header(key: str) -> APIClient:
    return APIClient(HTTP_X_USER_ID=key)


def signed_in(name: str, tenant: str | None = None) -> APIClient:
    client = APIClient()
    client.force_login(User.objects.get(username=name))
    if tenant is not None:
        session = client.session
        session[SESSION_KEY] = tenant
        session.save()
    return client


@pytest.fixture
def people(db: None) -> People:
    return People()


@dataclass
class Done:
    """A finished job of the lab and what it is named in addresses."""

    workflow: Workflow
    job: Job

    @property
    def url(self) -> str:
        return f"/api/jobs/{self.job.uuid}"


CELLS: list[dict[str, Any]] = [
    {
        "cell_id": number,
        "label_id": number,
        "polygon": [[x, y], [x + 8, y], [x + 8, y + 4], [x, y + 4], [x, y]],
        "area": 32.0,
        "centroid": [x + 4, y + 2],
    }
    for number, (x, y) in enumerate(((0, 0), (100, 0), (0, 200), (100, 200), (500, 700)), 1)
]
CELLS[3]["near_gap"] = True
DOCUMENT = {
    "cells": [{**cell, "polygon": [point[::-1] for point in cell["polygon"]]} for cell in CELLS],
    "total_cells": len(CELLS),
    "tiles_processed": 4,
    "method": "tiled_parallel",
    "coordinate_order": {"polygon": "yx", "centroid": "xy"},
}
LINES = "".join(json.dumps(cell) + "\n" for cell in CELLS).encode()


def stored(job: Job, name: str, kind: str, content: bytes, *, main: bool = False) -> StoredArtifact:
    """A file in the storage, ready to be published."""
    path = default_storage.save(f"results/test/{job.uuid}/{name}", ContentFile(content))
    digest = hashlib.sha256(content).hexdigest()
    return StoredArtifact(name, kind, path, len(content), digest, main)


def finish(job: Job, files: list[StoredArtifact]) -> Job:
    """`job` promoted, run and ended with these files."""
    for pk, attempt in promotion.promote():
        assert services.start(pk, attempt, "worker") is not None
    job.refresh_from_db()
    assert services.succeed(job.pk, job.attempt, artifacts=files, summary={"cells": len(CELLS)})
    job.refresh_from_db()
    return job


@pytest.fixture
def done(people: People, capacity: None) -> Done:
    """A job of the lab that left cells."""
    flow = factories.workflow(people.lab, [factories.job("cells", "lane")])
    job = factories.jobs_of(flow)["cells"]
    files = [
        stored(job, f"{job.uuid}_cells.jsonl", "cells_jsonl", LINES, main=True),
        stored(job, "w_cells_segmentation.json", "segmentation", json.dumps(DOCUMENT).encode()),
    ]
    return Done(flow, finish(job, files))
