"""From a submission to rows: what is refused and why, what is written, what the jobs add up to."""

from __future__ import annotations

import datetime as dt
import threading
from pathlib import Path
from typing import Any

import pytest
from django.db import connection
from django.utils import timezone

from jobs import retrying, services
from jobs.models import Branch, Edge, Job, Slide
from jobs.scheduling import explain, promotion
from jobs.slides import roots
from tenants.models import Tenant
from tests import factories
from tests.factories import job, jobs_of, states, workflow
from workflows import progress, shapes, submission
from workflows.aggregate import Counts, progress_of, state_of
from workflows.models import Workflow
from workflows.spec import SpecError

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def small_house(settings: Any, tmp_path: Path) -> Path:
    """Probe jobs, and a slide root with two files of nobody's business inside and outside."""
    settings.LABSCHED_ENABLE_PROBE_JOBS = True
    settings.LABSCHED_DATA = tmp_path
    settings.SLIDE_ROOT = tmp_path / "slides"
    settings.SLIDE_ROOT.mkdir()
    (settings.SLIDE_ROOT / "one.svs").write_bytes(b"slide")
    (tmp_path / "secret.svs").write_bytes(b"not yours")
    factories.capacity()
    return tmp_path


def refusal(body: object, user: Tenant | None = None) -> dict[str, Any]:
    """The errors of a submission that is refused without a trace."""
    user = user or factories.tenant()
    with pytest.raises(SpecError) as caught:
        submission.submit(user, body)
    assert not Workflow.objects.for_tenant(user).exists()
    assert not Branch.objects.for_tenant(user).exists()
    return caught.value.errors


# --- what is refused ---------------------------------------------------------------------


@pytest.mark.parametrize("body", [None, [], "text", 3])
def test_a_body_that_is_no_object_is_refused(body: object) -> None:
    assert refusal(body) == {"detail": "Give a JSON object."}


@pytest.mark.parametrize("name", [None, "", "   ", "x" * 201, 7, "a\x00b"])
def test_a_name_is_1_to_200_characters(name: object) -> None:
    assert "name" in refusal({"name": name})


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"job_id": "-x"}, "job_id"),
        ({"job_id": "x" * 101}, "job_id"),
        ({"job_id": None}, "job_id"),
        ({"branch": ""}, "branch"),
        ({"branch": "x" * 101}, "branch"),
        ({"job_type": "fly"}, "job_type"),
        ({"job_type": None}, "job_type"),
        ({"depends_on": "a"}, "depends_on"),
        ({"params": []}, "params"),
        ({"params": {"seconds": "long"}}, "params"),
        ({"priority": 1.5}, "priority"),
        ({"priority": True}, "priority"),
        ({"slide_id": "nonsense"}, "slide_id"),
        ({"image_path": 5}, "image_path"),
        ({"job_type": "tissue_mask"}, "image_path"),
    ],
)
def test_a_bad_field_is_named_with_its_job(change: dict[str, Any], field: str) -> None:
    errors = refusal({"name": "n", "jobs": [job("good"), {**job("bad"), **change}]})
    assert list(errors["jobs"]) == ["1"]
    assert field in errors["jobs"]["1"]


def test_an_unknown_type_is_told_which_there_are() -> None:
    errors = refusal({"name": "n", "jobs": [{"job_id": "a", "job_type": "fly"}]})
    assert "cell_segmentation" in errors["jobs"]["0"]["job_type"][0]


@pytest.mark.parametrize(
    ("jobs", "culprit"),
    [
        ([job("a"), job("a")], "a"),
        ([job("a", after=["a"])], "itself"),
        ([job("a", after=["ghost"])], "ghost"),
        ([job("a", after=["b"]), job("b", after=["a"])], "a → b → a"),
    ],
)
def test_a_bad_graph_is_refused_with_its_culprits(jobs: list[Any], culprit: str) -> None:
    assert culprit in refusal({"name": "n", "jobs": jobs})["jobs"][0]


@pytest.mark.parametrize(
    "path",
    [
        "/etc/passwd", "/etc/nope", "../secret.svs", "nope.svs", "", "one.svs/..", "link.svs",
        "a/../../secret.svs", "x\x00.svs", "/dev/zero", "x" * 2000, ".", "folder",
    ],
)  # fmt: skip
def test_a_path_outside_and_a_path_to_nothing_get_the_same_answer(
    path: str, small_house: Path
) -> None:
    (small_house / "slides" / "link.svs").symlink_to(small_house / "secret.svs")
    (small_house / "slides" / "folder").mkdir()
    body = {"job_id": "a", "job_type": "tissue_mask", "image_path": path}
    errors = refusal({"name": "n", "jobs": [body]})["jobs"]["0"]
    assert list(errors) == ["image_path"]


def slide_of(user: Tenant) -> Slide:
    place = roots.locate(user, "one.svs")
    return roots.rows_of(user, [place])[place]


def test_one_tenants_slide_id_is_nothing_to_another() -> None:
    ann, bob = factories.tenant(), factories.tenant()
    slide = slide_of(ann)
    body = {"job_id": "a", "job_type": "tissue_mask", "slide_id": str(slide.uuid)}
    assert "slide_id" in refusal({"name": "n", "jobs": [body]}, bob)["jobs"]["0"]
    assert submission.submit(ann, {"name": "n", "jobs": [body]}).pk


def test_too_many_waiting_jobs_are_refused(settings: Any) -> None:
    settings.MAX_PENDING_JOBS = 3
    user = factories.tenant()
    workflow(user, [job("a"), job("b")])
    with pytest.raises(submission.TooManyPending, match="2 jobs of yours wait already"):
        workflow(user, [job("c"), job("d")])


# --- what is written ---------------------------------------------------------------------


def test_the_first_accepted_write_makes_the_tenant() -> None:
    flow = submission.submit(Tenant(key="new"), {"name": "n"})
    assert Tenant.objects.get(key="new") == flow.tenant
    assert shapes.workflow_detail(flow)["jobs"] == []


def test_a_refused_write_makes_no_tenant() -> None:
    with pytest.raises(SpecError):
        submission.submit(Tenant(key="new"), {"name": ""})
    assert not Tenant.objects.filter(key="new").exists()


def test_jobs_come_back_in_submitted_order_with_their_edges() -> None:
    flow = workflow(
        factories.tenant(), [job("z", after=["a", "m"]), job("a"), job("m", after=["a"])]
    )
    detail = shapes.workflow_detail(flow)
    assert [each["job_id"] for each in detail["jobs"]] == ["z", "a", "m"]
    assert [each["depends_on"] for each in detail["jobs"]] == [["a", "m"], [], ["a"]]
    assert sorted(detail["edges"]) == [["a", "m"], ["a", "z"], ["m", "z"]]


def test_every_lane_and_every_edge_goes_up_in_one_order() -> None:
    flow = workflow(factories.tenant(), [job("z", "l", after=["a"]), job("a", "l"), job("m", "l")])
    rows = jobs_of(flow)
    assert sorted(rows, key=lambda key: rows[key].sequence) == ["a", "z", "m"]
    for edge in Edge.objects.across_tenants("test").select_related("upstream", "downstream"):
        assert edge.upstream.sequence < edge.downstream.sequence


def test_an_absolute_path_inside_a_root_is_stored_relative(small_house: Path) -> None:
    user = factories.tenant()
    body = {"job_type": "tissue_mask", "image_path": str(small_house / "slides" / "one.svs")}
    workflow(user, [{"job_id": "a", **body}])
    slide = Slide.objects.for_tenant(user).get()
    assert (slide.root, slide.path) == ("shared", "one.svs")
    assert roots.real_path(slide) == small_house / "slides" / "one.svs"


def test_a_slide_that_became_a_link_outside_is_refused_when_it_is_opened(small_house: Path) -> None:
    slide = slide_of(factories.tenant())
    file = small_house / "slides" / "one.svs"
    file.unlink()
    file.symlink_to(small_house / "secret.svs")
    with pytest.raises(roots.BadPath):
        roots.real_path(slide)


@pytest.mark.parametrize("direction", [1, -1])
def test_a_chain_of_5000_is_accepted_either_way_round(direction: int) -> None:
    chain = [job(f"j{n}", "main", after=[f"j{n - 1}"] if n else []) for n in range(5000)]
    flow = workflow(factories.tenant(), chain[::direction])
    ((first, _),) = promotion.promote()
    assert jobs_of(flow)["j0"].pk == first


@pytest.mark.django_db(transaction=True)
def test_concurrent_submissions_share_one_order() -> None:
    if connection.vendor == "sqlite":
        connection.close()
    user = factories.tenant()

    def submit(name: str) -> None:
        workflow(user, [job(f"{name}{n}", "main") for n in range(5)])
        connection.close()

    threads = [threading.Thread(target=submit, args=(name,)) for name in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    rows = Job.objects.for_tenant(user).order_by("sequence")
    assert [row.sequence for row in rows] == list(range(1, 21))


# --- adding, cancelling, retrying --------------------------------------------------------


def test_a_job_is_added_behind_its_upstream() -> None:
    flow = workflow(factories.tenant(), [job("a")])
    row = submission.add_job(flow.tenant, flow, {"job_type": "probe", "depends_on": ["a"]})
    assert (row.upstream_left, row.position) == (1, 1)
    assert row.key.startswith("job-")


def test_a_job_added_behind_a_finished_one_is_ready() -> None:
    flow = workflow(factories.tenant(), [job("a")])
    ((pk, attempt),) = promotion.promote()
    services.start(pk, attempt, "w")
    services.succeed(pk, attempt, artifacts=[], summary={})
    submission.add_job(flow.tenant, flow, job("b", after=["a"]))
    assert len(promotion.promote()) == 1


def test_adding_to_a_cancelled_workflow_is_a_conflict() -> None:
    flow = submission.cancel(workflow(factories.tenant(), [job("a")]))
    with pytest.raises(submission.Conflict, match="was cancelled"):
        submission.add_job(flow.tenant, flow, job("b"))


def test_a_key_is_used_once_in_a_workflow() -> None:
    flow = workflow(factories.tenant(), [job("a")])
    with pytest.raises(SpecError, match="used in this workflow already"):
        submission.add_job(flow.tenant, flow, job("a"))


def test_cancelling_a_workflow_ends_all_of_it_at_progress_1() -> None:
    flow = workflow(factories.tenant(), [job(f"j{n}", "main") for n in range(3)] + [job("x")])
    promotion.promote()
    flow = submission.cancel(flow)
    assert (flow.state, flow.progress) == ("CANCELLED", 1.0)
    assert set(states(flow).values()) == {"CANCELLED"}
    with pytest.raises(submission.Conflict):
        submission.cancel(flow)


# --- what the jobs add up to -------------------------------------------------------------


@pytest.mark.parametrize(
    ("counts", "state", "share"),
    [
        (Counts(), "PENDING", 0.0),
        (Counts(total=2, live=2), "PENDING", 0.0),
        (Counts(total=2, live=2, moved=1, live_progress=0.5), "RUNNING", 0.25),
        (Counts(total=2, live=1, succeeded=1, moved=1), "RUNNING", 0.5),
        (Counts(total=2, succeeded=2, moved=2), "SUCCEEDED", 1.0),
        (Counts(total=2, failed=1, cancelled=1, moved=2), "FAILED", 1.0),
        (Counts(total=2, succeeded=1, cancelled=1, moved=2), "CANCELLED", 1.0),
    ],
)
def test_a_workflow_is_a_function_of_its_jobs(counts: Counts, state: str, share: float) -> None:
    assert (state_of(counts), progress_of(counts)) == (state, share)


def test_a_workflow_once_running_is_never_pending_again() -> None:
    flow = workflow(factories.tenant(), [job("a", "main"), job("b", "main")])
    services.cancel(jobs_of(flow)["a"])
    progress.refresh(flow.pk)
    retrying.retry(jobs_of(flow)["a"])
    flow = submission.refreshed(flow)
    assert flow.state == "RUNNING"


def test_the_stored_copy_catches_up_by_the_sweep_when_every_signal_was_lost() -> None:
    flow = workflow(factories.tenant(), [job("a")])
    ((pk, attempt),) = promotion.promote()
    services.start(pk, attempt, "w")
    services.succeed(pk, attempt, artifacts=[], summary={})
    long_ago = timezone.now() - dt.timedelta(hours=1)
    progress._looked["at"] = long_ago
    progress._rested.clear()
    Workflow.objects.for_tenant(flow.tenant).update(state="RUNNING", refreshed_at=long_ago)
    progress._on_swept()
    flow.refresh_from_db()
    assert (flow.state, flow.progress) == ("SUCCEEDED", 1.0)


# --- why -------------------------------------------------------------------------------


def test_why_names_the_upstream_jobs_and_the_lane() -> None:
    flow = workflow(
        factories.tenant(), [job("a", "main"), job("b", "main"), job("c", after=["a", "b"])]
    )
    rows = jobs_of(flow)
    waits = explain.why(rows["c"])
    assert waits["reason"] == "dependency"
    assert [each["job_id"] for each in waits["blocking"]] == ["a", "b"]
    behind = explain.why(rows["b"])
    assert (behind["reason"], behind["position"]) == ("branch", 2)


def test_why_says_that_all_workers_are_busy() -> None:
    flow = workflow(factories.tenant(), [job(f"j{n}") for n in range(6)])
    promotion.promote()
    answer = explain.why(jobs_of(flow)["j5"])
    assert (answer["reason"], answer["position"]) == ("worker_limit", 2)
