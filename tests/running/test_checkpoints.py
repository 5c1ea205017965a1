"""Finished blocks: who keeps them, who reads them, and when they go."""

from __future__ import annotations

import datetime as dt
import hashlib
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from django.core.files.base import ContentFile
from django.core.files.storage import default_storage
from django.utils import timezone

from jobs import blobs, blocks, retrying, services
from jobs.imaging.blocks import BlockFacts
from jobs.models import Artifact, Block, Job, JobProgress, Lease
from jobs.running import artifacts, reuse
from jobs.running.checkpoints import JobBlocks, NoPlan
from jobs.running.progress import Reporter, Stopped
from jobs.scheduling import promotion
from jobs.services import StoredArtifact
from jobs.signals import cells_found
from jobs.states import Reason
from jobs.types import probe
from tests import factories
from workflows import submission
from workflows.models import Workflow

pytestmark = pytest.mark.django_db(transaction=True)

WHOLE = BlockFacts(3, 0, (1.0, 2.0, 30.0, 40.5), "cpu bf16")
GAPPED = BlockFacts(2, 1, (1.0, 2.0, 3.0, 4.0), "cpu bf16")
EMPTY = BlockFacts(0, 0, None, "cpu bf16")
STORAGES = {"disk": "FileSystemStorage", "memory": "InMemoryStorage"}


@pytest.fixture(autouse=True, params=STORAGES)
def lab(settings: Any, tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """Probes are allowed; results go to a folder of this test, or to a storage that is no disk."""
    settings.LABSCHED_ENABLE_PROBE_JOBS = True
    settings.LABSCHED_DATA = tmp_path
    storage: dict[str, Any] = {"BACKEND": f"django.core.files.storage.{STORAGES[request.param]}"}
    if request.param == "disk":
        storage["OPTIONS"] = {"location": str(tmp_path)}
    settings.STORAGES = {**settings.STORAGES, "default": storage}
    return tmp_path


def begun(*more: dict[str, Any]) -> tuple[Workflow, Job]:
    """The job `it` of a new tenant, running its attempt 1."""
    flow = factories.workflow(factories.tenant(), [factories.job("it", "x"), *more])
    return flow, again(factories.jobs_of(flow)["it"])


def again(job: Job) -> Job:
    """The job, running its next attempt."""
    factories.capacity()
    promotion.promote()
    started = services.start(job.pk, fresh(job).attempt, "cpu-0")
    assert started is not None
    return started


def fresh(job: Job) -> Job:
    return Job.objects.across_tenants("a test looks").get(pk=job.pk)


def rows(job: Job) -> Any:
    return Block.objects.for_tenant(job.tenant).order_by("pk")


def stored(folder: str = "results") -> set[str]:
    """Every file of the storage."""
    return artifacts._files_in(folder) if default_storage.exists(folder) else set()


def end(job: Job, reason: str = "", content: bytes = b"done") -> bool:
    """End the running attempt with one artifact."""
    path = f"{artifacts.attempt_folder(job, job.attempt)}/it.json"
    default_storage.save(path, ContentFile(content))
    digest = hashlib.sha256(content).hexdigest()
    file = StoredArtifact("it.json", "segmentation", path, len(content), digest, main=True)
    return reuse.publish(job, reuse.Result([file], {"gaps": int(bool(reason))}, reason, ""))


def read(artifact: Artifact) -> bytes:
    with default_storage.open(artifact.path) as stream:
        return bytes(stream.read())


def files_of(job: Job) -> list[Artifact]:
    return list(Artifact.objects.for_tenant(job.tenant).filter(job=job.pk))


# --- keeping and finding -------------------------------------------------------------------


def test_a_block_is_kept_with_what_is_told_of_it() -> None:
    _, job = begun()
    told: list[Any] = []
    store = JobBlocks(job, told=lambda *each: told.append(each))
    assert store.finished("n") == {}
    store.put("n", (0, 1), b"cells", WHOLE)
    store.put("n", (2, 0), b"", EMPTY)
    assert store.finished("n") == {(0, 1): WHOLE, (2, 0): EMPTY}
    assert JobBlocks(job).finished("n") == {(0, 1): WHOLE, (2, 0): EMPTY}
    assert JobBlocks(job).finished("other") == {}
    assert (store.get("n", (0, 1)), JobBlocks(job).get("n", (2, 0))) == (b"cells", b"")
    assert told == [((0, 1), WHOLE), ((2, 0), EMPTY)]
    folder = f"results/{job.tenant_id}/{job.workflow_id}/{job.uuid}/a1/blocks/n/"
    assert {row.path for row in rows(job)} == stored()
    assert all(path.startswith(folder) for path in stored())


def test_the_first_block_stays_and_the_other_leaves_nothing() -> None:
    _, job = begun()
    one, two, told = JobBlocks(job), JobBlocks(job), []
    one.put("n", (0, 0), b"first", WHOLE)
    two._told = lambda *each: told.append(each)
    two.put("n", (0, 0), b"second", WHOLE)
    assert {store.get("n", (0, 0)) for store in (one, two, JobBlocks(job))} == {b"first"}
    assert (len(stored()), told) == (1, [])


def test_another_attempt_goes_on_from_the_finished_blocks() -> None:
    _, job = begun()
    JobBlocks(job).put("n", (0, 0), b"first", WHOLE)
    services.hand_back(job.pk, 1)
    store = JobBlocks(again(job))
    assert store.finished("n") == {(0, 0): WHOLE}
    assert store.get("n", (0, 0)) == b"first"


def test_a_block_with_gaps_is_finished_for_its_attempt_alone_and_then_replaced() -> None:
    _, job = begun()
    first = JobBlocks(job)
    first.put("n", (0, 0), b"part", GAPPED)
    assert first.finished("n") == {(0, 0): GAPPED}
    services.hand_back(job.pk, 1)
    second = JobBlocks(again(job))
    assert second.finished("n") == {}
    second.put("n", (0, 0), b"whole", WHOLE)
    assert second.finished("n") == {(0, 0): WHOLE}
    assert second.get("n", (0, 0)) == b"whole"
    assert blocks.collect() == 1
    assert len(stored()) == rows(job).count() == 1


def test_a_plan_is_made_once() -> None:
    _, job = begun()
    store = JobBlocks(job)
    assert store.plan("n", lambda: b"plan") == b"plan"
    assert store.plan("n", lambda: b"another") == b"plan"
    assert JobBlocks(job).plan("n", lambda: b"another") == b"plan"
    assert JobBlocks(job).plan("m", lambda: b"of m") == b"of m"
    assert store.finished("n") == {}


def test_a_helper_follows_the_plan_of_the_job_and_makes_none() -> None:
    _, job = begun()
    with pytest.raises(NoPlan):
        JobBlocks(job, helps=True).plan("n", lambda: b"another")
    JobBlocks(job).plan("n", lambda: b"plan")
    assert JobBlocks(job, helps=True).plan("n", lambda: b"another") == b"plan"
    services.hand_back(job.pk, 1)
    with pytest.raises(Stopped):
        JobBlocks(job, helps=True).plan("m", lambda: b"another")


def test_two_workers_that_plan_at_once_have_one_plan() -> None:
    _, job = begun()
    one, two = JobBlocks(job), JobBlocks(job)

    def made_meanwhile() -> bytes:
        two.plan("n", lambda: b"two's")
        return b"one's"

    assert one.plan("n", made_meanwhile) == two.plan("n", made_meanwhile) == b"two's"
    assert len(stored()) == 1


@pytest.mark.parametrize("over", ["handed back", "cancelled", "succeeded"])
def test_a_late_word_changes_nothing(over: str) -> None:
    _, job = begun()
    late = JobBlocks(job)
    late.put("n", (0, 0), b"in time", WHOLE)
    if over == "succeeded":
        end(job)
        blocks.collect()
    elif over == "cancelled":
        services.cancel(job)
        services.finish_cancel(job.pk, 1)
    else:
        services.hand_back(job.pk, 1)
    before, kept = stored(), list(rows(job))
    with pytest.raises(Stopped):
        late.put("n", (0, 1), b"late", WHOLE)
    with pytest.raises(Stopped):
        late.plan("n", lambda: b"late")
    assert (stored(), list(rows(job))) == (before, kept)


def test_a_block_is_put_again_when_the_answer_was_lost() -> None:
    _, job = begun()
    store = JobBlocks(job)
    block = store._block("n", (0, 0), "results/x", b"", WHOLE)
    assert store._insert(block).path == store._insert(block).path == "results/x"
    assert rows(job).count() == 1


def test_lost_bytes_are_told_and_made_again() -> None:
    _, job = begun()
    JobBlocks(job).put("n", (0, 0), b"first", WHOLE)
    default_storage.delete(rows(job).get().path)
    store = JobBlocks(job)
    assert store.finished("n") == {(0, 0): WHOLE}
    with pytest.raises(blocks.BlockLost, match="made again"):
        store.get("n", (0, 0))
    assert store.finished("n") == {}
    store.put("n", (0, 0), b"again", WHOLE)
    assert JobBlocks(job).get("n", (0, 0)) == b"again"
    with pytest.raises(blocks.BlockLost):
        store.get("n", (9, 9))


def test_a_storage_that_does_not_answer_loses_no_block(monkeypatch: pytest.MonkeyPatch) -> None:
    _, job = begun()
    JobBlocks(job).put("n", (0, 0), b"first", WHOLE)

    def away(*_: object) -> None:
        raise PermissionError("not now")

    with monkeypatch.context() as patched:
        patched.setattr(default_storage, "open", away)
        with pytest.raises(PermissionError):
            JobBlocks(job).get("n", (0, 0))
    assert JobBlocks(job).get("n", (0, 0)) == b"first"


def test_an_attempt_that_is_over_forgets_no_block() -> None:
    _, job = begun()
    late = JobBlocks(job)
    late.put("n", (0, 0), b"first", WHOLE)
    services.hand_back(job.pk, 1)
    again(job)
    default_storage.delete(rows(job).get().path)
    with pytest.raises(Stopped):
        late.get("n", (0, 0))
    assert rows(job).get().job_id == job.pk


def test_bytes_that_were_spoilt_are_not_taken_for_a_block() -> None:
    _, job = begun()
    JobBlocks(job).put("n", (0, 0), b"first", WHOLE)
    path = rows(job).get().path
    default_storage.delete(path)
    default_storage.save(path, ContentFile(b"torn"))
    with pytest.raises(blocks.BlockLost):
        JobBlocks(job).get("n", (0, 0))


def test_what_was_read_or_written_here_is_not_fetched_again(tmp_path: Path) -> None:
    _, job = begun()
    JobBlocks(job).put("n", (0, 0), b"theirs", WHOLE)
    store = JobBlocks(job, copies=tmp_path / "copies")
    store.put("n", (0, 1), b"ours", WHOLE)
    assert store.get("n", (0, 0)) == b"theirs"
    for path in stored():
        default_storage.delete(path)
    assert (store.get("n", (0, 0)), store.get("n", (0, 1))) == (b"theirs", b"ours")


def test_other_threads_may_put_and_keep_no_connection() -> None:
    _, job = begun()
    store = JobBlocks(job)
    workers = [
        threading.Thread(target=store.put, args=("n", (0, column), b"x", WHOLE))
        for column in range(4)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(store.finished("n")) == 4


def test_looking_for_finished_blocks_is_one_query(django_assert_num_queries: Any) -> None:
    _, job = begun()
    store = JobBlocks(job)
    for column in range(5):
        store.put("n", (0, column), b"x", WHOLE)
    with django_assert_num_queries(1):
        found = store.finished("n")
    with django_assert_num_queries(0):
        assert {store.get("n", key) for key in found} == {b"x"}


# --- when they go --------------------------------------------------------------------------


def test_clearing_an_attempt_spares_its_blocks_and_nothing_else() -> None:
    _, job = begun()
    JobBlocks(job).put("n", (0, 0), b"first", WHOLE)
    kept = stored()
    folder = artifacts.attempt_folder(job, 1)
    for name in ("half.json", ".writing-x/cells.jsonl", "blocks/n/0_1-lost.block"):
        default_storage.save(f"{folder}/{name}", ContentFile(b"x"))
    assert len(stored()) == 4
    artifacts.discard_attempt(job.pk, 1)
    assert stored() == kept
    services.hand_back(job.pk, 1)
    with artifacts.desk_of(again(job)):
        assert stored() == kept
    assert stored() == kept
    assert JobBlocks(fresh(job)).finished("n") == {(0, 0): WHOLE}


def test_a_block_that_a_helper_finishes_while_files_are_listed_stays(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _, job = begun()
    listed = artifacts._files_in

    def meanwhile(folder: str) -> set[str]:
        monkeypatch.setattr(artifacts, "_files_in", listed)
        JobBlocks(job, helps=True).put("n", (0, 0), b"theirs", WHOLE)
        return listed(folder)

    folder = artifacts.attempt_folder(job, 1)
    default_storage.save(f"{folder}/half.json", ContentFile(b"x"))
    monkeypatch.setattr(artifacts, "_files_in", meanwhile)
    artifacts.discard_attempt(job.pk, 1)
    assert JobBlocks(job).get("n", (0, 0)) == b"theirs"


def test_files_of_blocks_without_a_row_go_after_the_success() -> None:
    _, job = begun()
    JobBlocks(job).put("n", (0, 0), b"first", WHOLE)
    named = stored()
    folder = f"{artifacts.attempt_folder(job, 1)}/{blocks.FOLDER}"
    default_storage.save(f"{folder}/n/0_1-lost.block", ContentFile(b"x"))
    job.job_type = "cell_segmentation"
    artifacts.discard_unnamed_blocks(job)
    assert stored() == named


def test_storing_the_artifacts_spares_the_blocks(lab: Path) -> None:
    from jobs.imaging.contract import ArtifactFile, Outcome

    _, job = begun()
    with artifacts.desk_of(job) as desk:
        JobBlocks(job, copies=desk.copies).put("n", (0, 0), b"first", WHOLE)
        desk.out.mkdir(parents=True, exist_ok=True)
        (desk.out / "it.json").write_bytes(b"{}")
        outcome = Outcome([ArtifactFile("it.json", "json", desk.out / "it.json")], "it.json", {})
        desk.store(outcome, beat=lambda: None)
        assert JobBlocks(job).get("n", (0, 0)) == b"first"


def test_blocks_go_with_the_success_and_their_folders_too(lab: Path) -> None:
    _, job = begun()
    store = JobBlocks(job)
    store.plan("n", lambda: b"plan")
    store.put("n", (0, 0), b"first", WHOLE)
    assert end(job)
    assert JobBlocks(job).finished("n") == {}
    assert blocks.collect() == 2
    assert stored() == {files_of(job)[0].path}
    assert not rows(job).exists()
    assert not list(lab.rglob("blocks"))


def test_a_failure_keeps_the_blocks_for_a_week(settings: Any) -> None:
    _, job = begun()
    JobBlocks(job).put("n", (0, 0), b"first", WHOLE)
    services.fail(job.pk, 1, Reason.BAD_INPUT, "no")
    assert (blocks.forget_old(), blocks.collect()) == (0, 0)
    week_ago = timezone.now() - dt.timedelta(days=settings.BLOCK_RETENTION_DAYS, minutes=1)
    Job.objects.across_tenants("time goes by").filter(pk=job.pk).update(finished_at=week_ago)
    assert (blocks.forget_old(), blocks.collect()) == (1, 1)
    assert stored() == set()


def test_blocks_of_a_job_that_waits_are_kept_for_ever() -> None:
    _, job = begun()
    JobBlocks(job).put("n", (0, 0), b"first", WHOLE)
    services.hand_back(job.pk, 1)
    Job.objects.across_tenants("time goes by").filter(pk=job.pk).update(
        finished_at=timezone.now() - dt.timedelta(days=99)
    )
    assert blocks.forget_old() == 0


def test_blocks_go_with_a_deleted_workflow() -> None:
    flow, job = begun()
    JobBlocks(job).put("n", (0, 0), b"first", WHOLE)
    services.cancel(job)
    services.finish_cancel(job.pk, 1)
    Workflow.objects.for_tenant(flow.tenant).filter(pk=flow.pk).delete()
    assert blocks.collect() == 1
    assert stored() == set()


def test_clean_up_goes_on_where_it_died(settings: Any) -> None:
    _, job = begun()
    for column in range(3):
        JobBlocks(job).put("n", (0, column), b"x", WHOLE)
    blocks.release(job.pk)
    default_storage.delete(rows(job).first().path)  # and then the process died
    assert blocks.collect(most=2) == 2
    assert blocks.collect() == 1
    assert stored() == set()


# --- lost leases (R8) ----------------------------------------------------------------------


def lose(job: Job) -> Job:
    """The worker of the running attempt is gone, and the sweep saw it."""
    past = timezone.now() - dt.timedelta(minutes=5)
    Lease.objects.for_tenant(job.tenant).filter(job=job.pk).update(expires_at=past)
    assert services.expire(job.pk, fresh(job).attempt)
    return fresh(job)


def test_a_lost_lease_is_free_if_a_block_was_finished_since_the_last_one() -> None:
    _, job = begun()
    for number in range(5):
        JobBlocks(job).put("n", (0, number), b"x", WHOLE)
        lost = lose(job)
        assert (lost.status.public, lost.reason, lost.failures) == ("PENDING", "lost", 0)
        job = again(job)
    assert job.attempt == 6
    assert len(JobBlocks(job).finished("n")) == 5


def test_a_lost_lease_without_a_block_counts_as_a_failure() -> None:
    _, job = begun()
    assert lose(job).failures == 1
    job = again(job)
    JobBlocks(job).plan("n", lambda: b"a plan is no block")
    assert lose(job).failures == 2
    JobBlocks(again(job)).put("n", (0, 0), b"x", WHOLE)
    services.hand_back(job.pk, 3)
    again(job)
    assert lose(job).failures == 2  # the third attempt finished one since the last loss
    again(job)
    ended = lose(job)
    assert (ended.status.public, ended.reason, ended.failures) == ("FAILED", "lost", 3)


# --- gaps (I7) -----------------------------------------------------------------------------


def with_gaps() -> tuple[Workflow, Job]:
    flow, job = begun()
    store = JobBlocks(job)
    store.put("n", (0, 0), b"whole", WHOLE)
    store.put("n", (0, 1), b"part", GAPPED)
    assert end(job, Reason.GAPS.value, b"with gaps")
    return flow, job


def test_a_success_with_gaps_keeps_its_blocks_and_its_retry_does_those_alone() -> None:
    flow, job = with_gaps()
    assert JobBlocks(fresh(job)).finished("n").keys() == {(0, 0), (0, 1)}
    retrying.retry(fresh(job))
    flow.refresh_from_db()
    assert flow.state == "RUNNING"
    job = again(job)
    store = JobBlocks(job)
    with artifacts.desk_of(job):
        assert store.finished("n") == {(0, 0): WHOLE}
        assert [read(each) for each in files_of(job)] == [b"with gaps"]
        store.put("n", (0, 1), b"whole now", WHOLE)
        assert end(job, "", b"all of it")
    assert [read(each) for each in files_of(job)] == [b"all of it"]
    seen = fresh(job)
    assert (seen.status.public, seen.reason, seen.attempt) == ("SUCCEEDED", "", 2)
    blobs.collect()
    blocks.collect()
    assert stored() == {each.path for each in files_of(job)}


@pytest.mark.parametrize("how", ["failed", "cancelled"])
def test_a_retry_of_gaps_that_comes_to_nothing_loses_nothing(how: str) -> None:
    _, job = with_gaps()
    retrying.retry(fresh(job))
    job = again(job)
    with artifacts.desk_of(job):
        if how == "failed":
            services.fail(job.pk, 2, Reason.BAD_INPUT, "the slide is gone")
        else:
            services.cancel(job)
            services.finish_cancel(job.pk, 2)
    artifacts.discard_attempt(job.pk, 2)
    assert fresh(job).status.public == how.upper()
    assert [read(each) for each in files_of(job)] == [b"with gaps"]
    retrying.retry(fresh(job))
    assert JobBlocks(again(job)).finished("n") == {(0, 0): WHOLE}


def test_what_has_no_gaps_is_not_retried() -> None:
    _, job = begun()
    end(job)
    with pytest.raises(services.StaleTransition, match="gaps"):
        retrying.retry(fresh(job))


def test_gaps_are_not_retried_while_a_job_works_on_the_result() -> None:
    flow, job = begun(factories.job("below", after=["it"]))
    end(job, Reason.GAPS.value)
    with pytest.raises(retrying.StillNeeded, match="below depends on it"):
        retrying.retry(fresh(job))
    with pytest.raises(submission.Conflict):
        submission.retry(flow)
    services.cancel(factories.jobs_of(flow)["below"])
    retrying.retry(fresh(job))
    assert factories.states(flow) == {"it": "PENDING", "below": "CANCELLED"}
    retrying.retry(factories.jobs_of(flow)["below"])
    end(again(job))
    below = factories.jobs_of(flow)["below"]
    assert (below.upstream_left, below.sequence > fresh(job).sequence) == (0, True)


def test_a_workflow_retries_what_failed_and_else_what_has_gaps() -> None:
    flow, job = with_gaps()
    assert submission.retry(flow).state == "RUNNING"
    assert factories.states(flow) == {"it": "PENDING"}
    end(again(job))
    with pytest.raises(submission.Conflict):
        submission.retry(flow)


# --- told while it runs --------------------------------------------------------------------


def test_cells_are_told_in_few_ticks_that_leave_out_no_box() -> None:
    _, job = begun()
    heard: list[dict[str, Any]] = []

    def hear(data: dict[str, Any], **_: object) -> None:
        heard.append(data)

    cells_found.connect(hear)
    try:
        with Reporter(job, probe.TYPE, beat=lambda: None) as report:
            for key, facts in _growing(40):
                report.found(key, facts)
                threading.Event().wait(0.02)
            threading.Event().wait(0.5)
    finally:
        cells_found.disconnect(hear)
    assert 2 <= len(heard) <= 7
    assert sum(tick["count"] for tick in heard) == 80
    assert {tick["job"] for tick in heard} == {str(job.uuid)}
    assert heard[-1]["chunk"] == "0_39"
    assert min(tick["bbox"][0] for tick in heard) == 0
    assert max(tick["bbox"][2] for tick in heard) == 49


def _growing(count: int) -> Iterable[tuple[tuple[int, int], BlockFacts]]:
    for column in range(count):
        yield (0, column), BlockFacts(2, 0, (column, 0, column + 10, 5), "")
    yield (1, 0), EMPTY


def test_neither_progress_nor_tiles_fall_in_another_attempt() -> None:
    _, job = begun()
    progress = JobProgress.objects.for_tenant(job.tenant)
    progress.create(
        job=job, tenant=job.tenant, attempt=1, progress=0.6, tiles_done=60, tiles_total=100
    )
    services.hand_back(job.pk, 1)
    report = Reporter(again(job), probe.TYPE, beat=lambda: None)
    told = report._snapshot()
    assert (told["progress"], told["tiles_done"], told["tiles_total"]) == (0.6, 60, 100)
