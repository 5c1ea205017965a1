"""A result that is there already is used again, and its bytes stay until nobody needs them."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from django.core.files.base import ContentFile
from django.core.files.storage import FileSystemStorage, default_storage
from django.db import connection, transaction

from jobs import blobs, services
from jobs.imaging.slide import open_slide
from jobs.models import Artifact, Blob, Job
from jobs.running import reuse, tasks
from jobs.running.artifacts import discard_attempt
from jobs.scheduling import promotion
from jobs.services import StoredArtifact
from tenants.models import Tenant
from tests import factories
from tests.imaging.slides import write_levels
from workflows.models import Workflow

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(autouse=True)
def lab(settings: Any, tmp_path: Path, sample_slide: Path) -> Path:
    """Slides and results in a folder of this test; two slides of one content."""
    settings.LABSCHED_ENABLE_PROBE_JOBS = True
    settings.LABSCHED_DATA = tmp_path
    settings.SLIDE_ROOT = tmp_path / "slides"
    settings.SLIDE_ROOT.mkdir()
    storage: dict[str, Any] = {"BACKEND": "django.core.files.storage.FileSystemStorage"}
    storage["OPTIONS"] = {"location": str(tmp_path)}
    settings.STORAGES = {**settings.STORAGES, "default": storage}
    for name in ("a.svs", "same.svs"):
        shutil.copyfile(sample_slide, tmp_path / "slides" / name)
    return tmp_path


@pytest.fixture
def ann() -> Tenant:
    return factories.tenant("ann")


def mask(key: str = "mask", **fields: Any) -> dict[str, Any]:
    return factories.job(key, **{"job_type": "tissue_mask", "image_path": "a.svs", **fields})


def promoted() -> list[tuple[int, int]]:
    """What may run now, whatever time went by."""
    factories.capacity(cpu=4, gpu=1)
    return promotion.promote()


def run(owner: Tenant, jobs: Iterable[dict[str, Any]], **fields: Any) -> Workflow:
    """A workflow whose jobs were run to their ends, in this process."""
    flow = factories.workflow(owner, jobs, **fields)
    while ready := promoted():
        for pk, attempt in ready:
            tasks.run_job(pk, attempt)
    left = {job.key: job.error for job in factories.jobs_of(flow).values() if job.error}
    assert not left
    return flow


def job_of(flow: Workflow, key: str = "mask") -> Job:
    return factories.jobs_of(flow)[key]


def reason(flow: Workflow, key: str = "mask") -> tuple[str, str]:
    job = job_of(flow, key)
    return job.status.public, job.reason


def files(job: Job) -> dict[str, Artifact]:
    rows = Artifact.objects.for_tenant(job.tenant).filter(job=job)
    return {row.kind: row for row in rows}


def contents(job: Job) -> dict[str, bytes]:
    found = {}
    for kind, row in files(job).items():
        with default_storage.open(row.path) as stream:
            found[kind] = stream.read()
    return found


def stored(lab: Path) -> set[str]:
    folder = lab / "results"
    return {path.relative_to(lab).as_posix() for path in folder.rglob("*") if path.is_file()}


def delete(flow: Workflow) -> None:
    Workflow.objects.for_tenant(flow.tenant).filter(pk=flow.pk).delete()


def live(owner: Tenant) -> Any:
    return Blob.objects.for_tenant(owner).filter(doomed_at__isnull=True)


def test_the_same_slide_in_another_workflow_reuses_the_bytes(lab: Path, ann: Tenant) -> None:
    first, second = run(ann, [mask()]), run(ann, [mask("again")])
    assert reason(first) == ("SUCCEEDED", "")
    assert reason(second, "again") == ("SUCCEEDED", "reused")
    old, new = job_of(first), job_of(second, "again")
    assert contents(old) == contents(new)
    assert [row.path for row in files(old).values()] == [row.path for row in files(new).values()]
    assert old.summary == new.summary
    assert old.result_key == new.result_key != ""
    assert len(stored(lab)) == len(files(old)) == live(ann).count()
    assert blobs.stored_bytes(ann) == sum(row.size for row in files(old).values())


def test_a_reused_file_carries_the_name_of_its_own_job(ann: Tenant) -> None:
    run(ann, [mask()])
    job = job_of(run(ann, [mask("again")]), "again")
    rows = files(job)
    assert rows["tissue_mask"].name == f"{job.uuid}_tissue_mask.png"
    assert rows["tissue_mask"].main
    assert rows["tissue_geojson"].name == "tissue.geojson"


def test_a_document_is_named_by_workflow_and_key(ann: Tenant) -> None:
    old, new = (job_of(factories.workflow(ann, [factories.job(k)]), k) for k in ("it", "at"))
    row = Artifact(name=f"{old.workflow_id}_it_segmentation.json", size=1)
    assert reuse._own(row, old, new).name == f"{new.workflow_id}_at_segmentation.json"


def test_what_is_equal_is_the_content_of_the_slide_not_its_name(ann: Tenant) -> None:
    run(ann, [mask()])
    assert reason(run(ann, [mask(image_path="same.svs")]))[1] == "reused"


def test_another_tenant_computes_for_itself(lab: Path, ann: Tenant) -> None:
    run(ann, [mask()])
    other = run(factories.tenant("bob"), [mask()])
    assert reason(other) == ("SUCCEEDED", "")
    assert len(stored(lab)) == 2 * len(files(job_of(other)))


def test_other_parameters_give_another_result(ann: Tenant) -> None:
    run(ann, [mask()])
    assert reason(run(ann, [mask(params={"min_area_um2": 9000})])) == ("SUCCEEDED", "")
    assert reason(run(ann, [mask(params={"timeout_s": 900, "min_area_um2": 4000.0})]))[1] == (
        "reused"
    )


@pytest.mark.parametrize(
    ("job", "flow"),
    [({"params": {"reuse": False}}, {}), ({"reuse": False}, {}), ({}, {"reuse": False})],
)
def test_who_asks_for_none_gets_none(
    lab: Path, ann: Tenant, job: dict[str, Any], flow: dict[str, Any]
) -> None:
    first = run(ann, [mask()])
    second = run(ann, [mask(**job)], **flow)
    assert reason(second) == ("SUCCEEDED", "")
    # equal bytes are kept once all the same
    blobs.collect()
    assert len(stored(lab)) == len(files(job_of(first)))
    assert contents(job_of(first)) == contents(job_of(second))


def test_a_job_may_reuse_where_its_workflow_does_not(ann: Tenant) -> None:
    run(ann, [mask()])
    assert reason(run(ann, [mask(reuse=True)], reuse=False))[1] == "reused"


def test_a_result_with_gaps_is_not_reused(ann: Tenant) -> None:
    first = job_of(run(ann, [mask()]))
    Job.objects.for_tenant(ann).filter(pk=first.pk).update(reason="gaps")
    assert reason(run(ann, [mask()])) == ("SUCCEEDED", "")


def test_a_failed_job_is_not_reused(ann: Tenant) -> None:
    first = job_of(run(ann, [mask()]))
    Job.objects.for_tenant(ann).filter(pk=first.pk).update(state=11)
    assert reason(run(ann, [mask()])) == ("SUCCEEDED", "")


def test_probes_run_every_time(ann: Tenant) -> None:
    run(ann, [factories.job("it")])
    again = run(ann, [factories.job("it")])
    assert reason(again, "it") == ("SUCCEEDED", "")
    assert job_of(again, "it").result_key == ""


def test_a_slide_that_was_replaced_is_another_slide(lab: Path, ann: Tenant, assets: Path) -> None:
    run(ann, [mask()])
    shutil.copyfile(assets / "slides" / "gc_valid_tiff.tif", lab / "slides" / "a.svs")
    assert reason(run(ann, [mask(params={"mpp": 0.5})])) == ("SUCCEEDED", "")


def test_the_second_is_readable_when_the_first_is_deleted(lab: Path, ann: Tenant) -> None:
    first, second = run(ann, [mask()]), run(ann, [mask()])
    before = contents(job_of(second))
    delete(first)
    assert blobs.collect() == 0
    assert contents(job_of(second)) == before
    assert reason(run(ann, [mask()]))[1] == "reused"


def test_the_bytes_go_with_the_last(lab: Path, ann: Tenant) -> None:
    first, second = run(ann, [mask()]), run(ann, [mask()])
    delete(first)
    delete(second)
    assert stored(lab)
    assert blobs.collect() == 4
    assert not list((lab / "results").rglob("*_tissue_mask.png"))
    assert stored(lab) == set()
    assert not Blob.objects.for_tenant(ann).exists()
    assert [path.name for path in (lab / "results").iterdir()] == [str(ann.pk)]
    assert reason(run(ann, [mask()])) == ("SUCCEEDED", "")


def test_clean_up_goes_on_where_it_died(lab: Path, ann: Tenant) -> None:
    delete(run(ann, [mask()]))
    blobs._doom(100)  # and then the process died
    (path := lab / sorted(stored(lab))[0]).unlink()  # with one file gone
    assert blobs.collect() == 4
    assert not path.exists()
    assert stored(lab) == set()


def test_discarding_an_attempt_spares_bytes_that_another_job_uses(lab: Path, ann: Tenant) -> None:
    first, second = job_of(run(ann, [mask()])), job_of(run(ann, [mask()]))
    Artifact.objects.for_tenant(ann).filter(job=first).delete()
    (lab / "results" / str(ann.pk) / str(first.workflow_id) / str(first.uuid) / "a1" / "x").touch()
    before = contents(second)
    discard_attempt(first.pk, 1)
    assert contents(second) == before
    assert len(stored(lab)) == 4


def test_lost_bytes_are_made_again_for_all_who_share_them(lab: Path, ann: Tenant) -> None:
    first = job_of(run(ann, [mask()]))
    before = contents(first)
    for path in stored(lab):
        (lab / path).unlink()
    second = run(ann, [mask()])
    assert reason(second) == ("SUCCEEDED", "")
    assert contents(first) == contents(job_of(second)) == before
    blobs.collect()
    assert contents(first) == before


def test_bytes_deleted_between_look_and_use_are_not_used(ann: Tenant) -> None:
    flow = run(ann, [mask()])
    waiting = factories.workflow(ann, [mask()])
    ((pk, attempt),) = promoted()
    job = services.start(pk, attempt, "w")
    assert job is not None

    def deleted_first(write: Any) -> bool:
        delete(flow)
        blobs._doom(100)
        return bool(write())

    assert reuse.take(job, job_of(flow).result_key, deleted_first) is None
    assert reason(waiting) == ("RUNNING", "")
    assert not files(job)


def test_a_cancelled_job_takes_no_bytes(ann: Tenant) -> None:
    run(ann, [mask()])
    waiting = factories.workflow(ann, [mask()])
    ((pk, attempt),) = promoted()

    class Cancelling(tasks.NobodyWatching):
        def say(self, kind: str, content: Any = None) -> None:
            services.cancel(job_of(waiting))

    tasks.run_attempt(pk, attempt, Cancelling())
    assert reason(waiting)[0] == "CANCELLED"
    assert not files(job_of(waiting))


def test_a_fenced_attempt_counts_no_bytes(ann: Tenant) -> None:
    job = job_of(factories.workflow(ann, [factories.job("it")]), "it")
    path = default_storage.save("results/x", ContentFile(b""))
    file = StoredArtifact("x", "x", path, 0, "0" * 64)
    assert reuse.publish(job, reuse.Result([file], {}, "", "k")) is False
    assert not Blob.objects.for_tenant(ann).exists()


def test_a_deletion_that_is_rolled_back_loses_nothing(ann: Tenant) -> None:
    flow = run(ann, [mask()])
    with transaction.atomic():
        delete(flow)
        transaction.set_rollback(True)
    assert blobs.collect() == 0
    assert len(contents(job_of(flow))) == 4


def test_two_equal_files_of_one_job_are_kept_once(lab: Path, ann: Tenant) -> None:
    flow = factories.workflow(ann, [factories.job("it")])
    ((pk, attempt),) = promoted()
    assert services.start(pk, attempt, "w") is not None
    made = []
    for name in ("x", "y"):
        with open(lab / name, "wb") as sink:
            sink.write(b"same")
        made.append(StoredArtifact(name, name, name, 4, "5" * 64))
    assert reuse.publish(job_of(flow, "it"), reuse.Result(made, {}, "", ""))
    assert {row.path for row in files(job_of(flow, "it")).values()} == {"x"}
    assert blobs.collect() == 1
    assert not (lab / "y").exists()
    assert contents(job_of(flow, "it")) == {"x": b"same", "y": b"same"}


class AskedOutside(FileSystemStorage):
    """A storage that is far: nobody may hold a row while asking it."""

    asked = 0

    def size(self, name: str) -> int:
        assert not connection.in_atomic_block, f"{name} was asked for in a transaction"
        AskedOutside.asked += 1
        return super().size(name)


def test_the_storage_is_asked_before_the_tenant_is_held(
    settings: Any, lab: Path, ann: Tenant
) -> None:
    storage = {"BACKEND": f"{__name__}.AskedOutside", "OPTIONS": {"location": str(lab)}}
    settings.STORAGES = {**settings.STORAGES, "default": storage}
    run(ann, [mask()])
    before = AskedOutside.asked
    run(ann, [mask(reuse=False)])
    assert AskedOutside.asked >= before + 4


def made(lab: Path, name: str) -> list[StoredArtifact]:
    (lab / name).write_bytes(b"same")
    return [StoredArtifact(name, name, name, 4, "5" * 64)]


def published(owner: Tenant, files: list[StoredArtifact]) -> Workflow:
    """A workflow whose job left these files."""
    flow = factories.workflow(owner, [factories.job("it")])
    ((pk, attempt),) = promoted()
    assert services.start(pk, attempt, "w") is not None
    assert reuse.publish(job_of(flow, "it"), reuse.Result(files, {}, "", ""))
    return flow


def shared(owner: Tenant, files: list[StoredArtifact], lost: set[str]) -> list[str]:
    with transaction.atomic():
        return [file.path for file in blobs.share(owner.pk, files, lost)]


def test_bytes_that_went_between_the_look_and_the_lock_are_not_shared(
    lab: Path, ann: Tenant
) -> None:
    flow, late = published(ann, made(lab, "x")), made(lab, "y")
    lost = blobs.lost(ann.pk, late)
    assert lost == set()
    delete(flow)
    blobs._doom(100)
    assert shared(ann, late, lost) == ["y"]


def test_bytes_that_another_replaced_meanwhile_are_shared(lab: Path, ann: Tenant) -> None:
    published(ann, made(lab, "x"))
    (lab / "x").unlink()
    late = made(lab, "y")
    lost = blobs.lost(ann.pk, late)
    assert lost == {"x"}
    published(ann, made(lab, "z"))
    assert shared(ann, late, lost) == ["z"]


def test_cells_are_reused_with_their_mask_and_their_ids(
    lab: Path, ann: Tenant, sample_slide: Path
) -> None:
    """The real model, once, on a piece of a slide; with another mask the cells are others."""
    with open_slide(sample_slide) as slide:
        piece = slide.read(0, 800, 800, (400, 400))
    write_levels(lab / "slides" / "a.svs", [piece], mpp=0.5)
    cells = {"job_type": "cell_segmentation", "image_path": "a.svs"}
    first = run(ann, [mask(), factories.job("cells", after=["mask"], **cells)])
    again = run(ann, [mask("m"), factories.job("c", after=["m"], params={"tissue": True}, **cells)])
    assert (reason(again, "m")[1], reason(again, "c")[1]) == ("reused", "reused")
    old, new = job_of(first, "cells"), job_of(again, "c")
    assert old.summary["cells"] > 10
    assert contents(old) == contents(new)
    assert files(new)["segmentation"].name == f"{new.workflow_id}_c_segmentation.json"
    assert files(new)["cells_jsonl"].name == f"{new.uuid}_cells.jsonl"
    other = factories.workflow(
        ann,
        [
            mask("m", params={"min_area_um2": 9000}),
            factories.job("c", after=["m"], **cells),
            factories.job("alone", **cells),
        ],
    )
    keys = {job_of(first, "cells").result_key} | _keys_without_running(other)
    assert len(keys) == 3


def _keys_without_running(flow: Workflow) -> set[str]:
    """The keys that two cell jobs would have, their mask being run."""
    for pk, attempt in promoted():
        if job_of(flow, "m").pk == pk:
            tasks.run_job(pk, attempt)
    jobs = [job_of(flow, key) for key in ("c", "alone")]
    return {tasks.source_of(job, tasks.type_of(job), lambda: None).key for job in jobs}
