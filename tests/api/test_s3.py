"""Results in a bucket: stored by a worker, read by ranges through the API, gone with their rows."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from typing import Any

import boto3
import environ
import pytest
from django.core.files.base import ContentFile
from django.core.files.storage import default_storage

from jobs import blobs
from jobs.models import Artifact, Job
from jobs.running import tasks
from jobs.scheduling import promotion
from labsched import environment
from tests import factories
from tests.api.conftest import LINES, People, finish, stored
from workflows.models import Workflow

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def bucket(
    s3_server: str, house: Path, settings: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Any:
    """A bucket that STORAGE_URL names; keys and endpoint are given by AWS's own variables."""
    for name, value in {
        "AWS_ENDPOINT_URL_S3": s3_server,
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_CONFIG_FILE": str(tmp_path / "none"),
        "STORAGE_URL": "s3://results/of/lab",
    }.items():
        monkeypatch.setenv(name, value)
    settings.STORAGES = environment.storages(environ.Env(), tmp_path, debug=True)
    made = boto3.resource("s3", region_name="us-east-1").create_bucket(Bucket="results")
    yield made
    made.objects.all().delete()
    made.delete()


@pytest.fixture
def done(bucket: Any, people: People) -> Job:
    """A job of the lab that left cells in the bucket."""
    factories.capacity()
    job = factories.jobs_of(factories.workflow(people.lab, [factories.job("it", "x")]))["it"]
    return finish(job, [stored(job, "it_cells.jsonl", "cells_jsonl", LINES, main=True)])


def body(answer: Any) -> bytes:
    return b"".join(answer.streaming_content)


def test_a_file_is_served_whole_and_by_ranges(people: People, done: Job) -> None:
    ann, url = people.client("ann"), f"/api/jobs/{done.uuid}/artifacts/it_cells.jsonl"
    whole = ann.get(url)
    assert (whole.status_code, body(whole)) == (200, LINES)
    part = ann.get(url, HTTP_RANGE="bytes=10-29")
    assert (part.status_code, body(part)) == (206, LINES[10:30])
    assert part["Content-Range"] == f"bytes 10-29/{len(LINES)}"
    assert body(ann.get(url, HTTP_RANGE="bytes=-7")) == LINES[-7:]


def test_cells_in_a_window_are_read_from_the_bucket(people: People, done: Job) -> None:
    answer = people.client("ann").get(f"/api/jobs/{done.uuid}/cells?bbox=90,190,200,300")
    assert [cell["cell_id"] for cell in answer.json()["cells"]] == [4]


def test_a_part_of_a_large_file_fetches_no_more_than_that(bucket: Any, done: Job) -> None:
    content = bytes(range(256)) * (20 << 12)  # 20 MB
    path = default_storage.save("results/large", ContentFile(content))
    with default_storage.open(path) as file:
        file.seek(5_000_001)
        assert file.read(10) == content[5_000_001:5_000_011]
        assert file.file.raw.tell() - 5_000_001 <= 1 << 20
        file.seek(-3, 2)
        assert file.read() == content[-3:]
        assert file.read() == b""


def test_a_file_that_the_bucket_lost_is_404_with_a_sentence(people: People, done: Job) -> None:
    default_storage.delete(Artifact.objects.for_tenant(people.lab).get(job=done).path)
    answer = people.client("ann").get(f"/api/jobs/{done.uuid}/artifacts/it_cells.jsonl")
    assert answer.status_code == 404
    assert "gone from the storage" in answer.json()["detail"]


def test_a_worker_stores_reuses_and_removes_in_the_bucket(
    bucket: Any, people: People, house: Path, sample_slide: Path
) -> None:
    shutil.copyfile(sample_slide, house / "slides" / "a.svs")
    flows = []
    for key in ("first", "second"):
        factories.capacity()
        body_ = {"job_type": "tissue_mask", "image_path": "a.svs"}
        flows.append(factories.workflow(people.lab, [factories.job(key, **body_)]))
        for pk, attempt in promotion.promote():
            tasks.run_job(pk, attempt)
    first, second = (next(iter(factories.jobs_of(flow).values())) for flow in flows)
    assert (first.status.public, first.error) == ("SUCCEEDED", "")
    assert second.reason == "reused"
    for row in Artifact.objects.for_tenant(people.lab).filter(job=second):
        with default_storage.open(row.path) as file:
            assert hashlib.sha256(file.read()).hexdigest() == row.sha256
    names = [each.key for each in bucket.objects.all()]
    assert len(names) == 4
    assert all(name.startswith(f"of/lab/results/{people.lab.pk}/") for name in names)
    assert not (house / "results").exists()
    Workflow.objects.for_tenant(people.lab).delete()
    assert blobs.collect() == 4
    assert not list(bucket.objects.all())
