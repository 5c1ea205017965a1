"""One attempt from its message to its end, on a real database, in this process."""

from __future__ import annotations

import hashlib
import json
import shutil
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from django.core.files.storage import default_storage
from django.db import connection

from jobs import blobs, services
from jobs.models import Artifact, Job, JobProgress
from jobs.running import artifacts, tasks
from jobs.scheduling import promotion
from tests import factories

pytestmark = pytest.mark.django_db(transaction=True)


class Noting:
    """A worker's side that notes what it is told."""

    worker = "cpu-0"

    def __init__(self) -> None:
        self.beats = 0
        self.said: list[tuple[str, Any]] = []

    def beat(self) -> None:
        self.beats += 1

    def say(self, kind: str, content: Any = None) -> None:
        self.said.append((kind, content))


@pytest.fixture(autouse=True)
def lab(settings: Any, tmp_path: Path) -> Path:
    """Probe jobs allowed; slides, results and the probe log in a folder of this test."""
    settings.LABSCHED_ENABLE_PROBE_JOBS = True
    settings.LABSCHED_PROBE_LOG = str(tmp_path / "probe.jsonl")
    settings.LABSCHED_DATA = tmp_path
    settings.SLIDE_ROOT = tmp_path / "slides"
    settings.SLIDE_ROOT.mkdir()
    storage: dict[str, Any] = {"BACKEND": "django.core.files.storage.FileSystemStorage"}
    storage["OPTIONS"] = {"location": str(tmp_path)}
    settings.STORAGES = {**settings.STORAGES, "default": storage}
    return tmp_path


def promoted(**body: Any) -> Job:
    """A job of a new tenant that was promoted: its attempt 1 may start."""
    factories.capacity()
    flow = factories.workflow(factories.tenant(), [factories.job("it", "x", **body)])
    promotion.promote()
    return factories.jobs_of(flow)["it"]


def fresh(job: Job) -> Job:
    return Job.objects.across_tenants("a test looks").get(pk=job.pk)


def log_of(lab: Path) -> list[dict[str, Any]]:
    file = lab / "probe.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def results_of(lab: Path) -> list[Path]:
    return [path for path in (lab / "results").rglob("*") if path.is_file()]


def later(seconds: float, action: Any) -> threading.Timer:
    def act() -> None:
        try:
            action()
        finally:
            connection.close()  # this thread's own

    timer = threading.Timer(seconds, act)
    timer.start()
    return timer


def test_a_probe_succeeds_and_its_worker_is_told_its_bounds(lab: Path) -> None:
    job = promoted(params={"seconds": 0.1, "stall_s": 300, "timeout_s": 60})
    worker = Noting()
    assert tasks.run_attempt(job.pk, 1, worker) is True
    assert fresh(job).status.public == "SUCCEEDED"
    assert worker.said == [("started", {"stall_s": 300.0, "timeout_s": 60.0})]
    assert worker.beats > 1
    start, end = log_of(lab)
    assert (start["event"], end["event"], end["ok"]) == ("start", "end", True)
    assert start["tenant"] == job.tenant.key
    assert (start["job"], start["job_id"], start["branch"]) == (str(job.uuid), "it", "x")


def test_a_message_delivered_twice_runs_once(lab: Path) -> None:
    job = promoted()
    tasks.run_job(job.pk, 1)
    tasks.run_job(job.pk, 1)
    assert len(log_of(lab)) == 2


def test_a_message_of_an_old_attempt_runs_nothing(lab: Path) -> None:
    job = promoted()
    services.hand_back(job.pk, 1)
    promotion.promote()
    tasks.run_job(job.pk, 1)
    assert log_of(lab) == []
    assert (fresh(job).status.public, fresh(job).attempt) == ("QUEUED", 2)


def test_a_cancel_stops_the_body_and_ends_the_job(lab: Path) -> None:
    job = promoted(params={"seconds": 60})
    timer = later(0.5, lambda: services.cancel(fresh(job)))
    began = time.monotonic()
    tasks.run_attempt(job.pk, 1, Noting())
    timer.join()
    assert time.monotonic() - began < 6
    assert fresh(job).status.public == "CANCELLED"
    assert log_of(lab)[-1]["ok"] is False


def test_a_body_that_lost_its_job_stops_and_writes_nothing(lab: Path) -> None:
    job = promoted(params={"seconds": 60})
    timer = later(0.5, lambda: services.hand_back(job.pk, 1))
    began = time.monotonic()
    tasks.run_attempt(job.pk, 1, Noting())
    timer.join()
    assert time.monotonic() - began < 6
    seen = fresh(job)
    assert (seen.status.public, seen.reason, seen.failures) == ("PENDING", "withdrawn", 0)


def test_memory_that_ran_out_asks_for_a_fresh_process() -> None:
    job = promoted(params={"fail": "oom"})
    assert tasks.run_attempt(job.pk, 1, Noting()) is False
    assert fresh(job).reason == "retry_wait"


def test_progress_is_kept_by_attempt_and_never_falls() -> None:
    job = promoted(params={"seconds": 0.5, "ticks": 10})
    rows = JobProgress.objects.across_tenants("a test looks")
    rows.create(job=job, tenant=job.tenant, attempt=1, progress=0.8)
    tasks.run_attempt(job.pk, 1, Noting())
    row = rows.get(job=job)
    assert (row.attempt, row.progress, row.phase) == (1, 1.0, "run")
    assert (row.tiles_done, row.tiles_total) == (10, 10)
    assert [phase["name"] for phase in row.phases] == ["run"]


def test_a_late_attempt_does_not_touch_a_newer_ones_row() -> None:
    job = promoted(params={"seconds": 0.5})
    rows = JobProgress.objects.across_tenants("a test looks")
    rows.create(job=job, tenant=job.tenant, attempt=7, progress=0.3, phase="newer")
    tasks.run_attempt(job.pk, 1, Noting())
    row = rows.get(job=job)
    assert (row.attempt, row.progress, row.phase) == (7, 0.3, "newer")


def test_artifacts_of_a_real_mask_are_stored_measured_and_named(
    lab: Path, sample_slide: Path
) -> None:
    shutil.copyfile(sample_slide, lab / "slides" / "a.svs")
    job = promoted(job_type="tissue_mask", image_path="a.svs")
    tasks.run_attempt(job.pk, 1, Noting())
    assert fresh(job).status.public == "SUCCEEDED", fresh(job).error
    rows = list(Artifact.objects.for_tenant(job.tenant).filter(job=job))
    folder = f"results/{job.tenant_id}/{job.workflow_id}/{job.uuid}/a1/"
    assert [row.kind for row in rows if row.main] == ["tissue_mask"]
    for row in rows:
        assert row.path.startswith(folder)
        with default_storage.open(row.path) as stream:
            content = stream.read()
        assert (row.size, row.sha256) == (len(content), hashlib.sha256(content).hexdigest())
    assert len(results_of(lab)) == len(rows)
    assert fresh(job).summary["tissue_mm2"] > 0


def test_a_file_that_is_no_slide_fails_for_good_and_leaves_nothing(lab: Path) -> None:
    (lab / "slides" / "a.svs").write_bytes(b"not a slide at all")
    job = promoted(job_type="tissue_mask", image_path="a.svs")
    tasks.run_attempt(job.pk, 1, Noting())
    seen = fresh(job)
    assert (seen.status.public, seen.reason) == ("FAILED", "bad_input")
    assert seen.error.endswith(".")
    assert not (lab / "results").exists() or results_of(lab) == []


def test_a_slide_that_went_away_since_submission_is_refused_like_any_other(lab: Path) -> None:
    slide = lab / "slides" / "a.svs"
    slide.write_bytes(b"x")
    job = promoted(job_type="tissue_mask", image_path="a.svs")
    slide.unlink()
    tasks.run_attempt(job.pk, 1, Noting())
    assert fresh(job).reason == "bad_input"


def test_a_cancelled_mask_publishes_nothing(lab: Path, sample_slide: Path) -> None:
    shutil.copyfile(sample_slide, lab / "slides" / "a.svs")
    job = promoted(job_type="tissue_mask", image_path="a.svs")

    class Cancelling(Noting):
        def say(self, kind: str, content: Any = None) -> None:
            services.cancel(fresh(job))

    tasks.run_attempt(job.pk, 1, Cancelling())
    assert fresh(job).status.public == "CANCELLED"
    assert results_of(lab) == []
    assert not Artifact.objects.for_tenant(job.tenant).exists()


def test_files_that_rows_name_are_never_discarded(lab: Path, sample_slide: Path) -> None:
    shutil.copyfile(sample_slide, lab / "slides" / "a.svs")
    job = promoted(job_type="tissue_mask", image_path="a.svs")
    tasks.run_attempt(job.pk, 1, Noting())
    kept = results_of(lab)
    artifacts.discard_attempt(job.pk, 1)
    assert results_of(lab) == kept
    Artifact.objects.for_tenant(job.tenant).delete()
    blobs.collect()
    assert results_of(lab) == []


def test_storage_that_is_not_a_disk_gets_the_same_files(
    settings: Any, lab: Path, sample_slide: Path
) -> None:
    memory = {"BACKEND": "django.core.files.storage.InMemoryStorage"}
    settings.STORAGES = {**settings.STORAGES, "default": memory}
    shutil.copyfile(sample_slide, lab / "slides" / "a.svs")
    job = promoted(job_type="tissue_mask", image_path="a.svs")
    tasks.run_attempt(job.pk, 1, Noting())
    rows = list(Artifact.objects.for_tenant(job.tenant).filter(job=job))
    assert len(rows) == 4
    assert all(default_storage.size(row.path) == row.size for row in rows)
    Artifact.objects.for_tenant(job.tenant).delete()
    blobs.collect()
    assert not any(default_storage.exists(row.path) for row in rows)
    assert not (lab / "results").exists()


def test_the_mask_of_an_upstream_job_on_the_same_slide_is_handed_on(
    lab: Path, sample_slide: Path
) -> None:
    for name in ("a.svs", "b.svs"):
        shutil.copyfile(sample_slide, lab / "slides" / name)
    factories.capacity(cpu=2, gpu=1)
    mask = {"job_type": "tissue_mask"}
    flow = factories.workflow(
        factories.tenant(),
        [
            factories.job("mine", image_path="a.svs", **mask),
            factories.job("other", image_path="b.svs", **mask),
            factories.job(
                "cells", after=["mine", "other"], job_type="cell_segmentation", image_path="a.svs"
            ),
        ],
    )
    promotion.promote()
    jobs = factories.jobs_of(flow)
    for key in ("mine", "other"):
        tasks.run_attempt(jobs[key].pk, 1, Noting())
    given = artifacts.upstream_artifacts(jobs["cells"])
    assert {artifact.job.key for artifact in given} == {"mine"}
    assert {"tissue_mask", "tissue_json"} <= {artifact.kind for artifact in given}
