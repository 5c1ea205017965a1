"""What a submission does while it holds its tenant's row, and what is done before."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from jobs import services
from jobs.models import Branch, Job, Slide
from jobs.scheduling import promotion
from jobs.slides import roots
from tenants.models import Tenant
from tests import factories
from workflows import submission
from workflows.submission import TooManyPending

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def house(settings: Any, tmp_path: Path) -> None:
    """Probes may run; a root with a few slides."""
    settings.LABSCHED_ENABLE_PROBE_JOBS = True
    settings.LABSCHED_DATA = tmp_path
    settings.SLIDE_ROOT = tmp_path / "slides"
    settings.SLIDE_ROOT.mkdir()
    for number in range(4):
        (tmp_path / "slides" / f"{number}.svs").touch()
    factories.capacity()


def under_the_lock(owner: Tenant, jobs: list[dict[str, Any]]) -> list[str]:
    """The statements of a submission from the tenant's row on."""
    with CaptureQueriesContext(connection) as seen:
        factories.workflow(owner, jobs)
    statements = [each["sql"] for each in seen]
    locked = itertools.dropwhile(lambda text: not _takes_the_row(text), statements)
    found = [text for text in locked if not text.startswith(("SAVEPOINT", "RELEASE"))]
    assert found, statements
    return found


def _takes_the_row(text: str) -> bool:
    on_postgres = connection.vendor == "postgresql"
    word = "FOR NO KEY UPDATE" if on_postgres else "LIMIT 21"  # Django's `get`
    return text.startswith('SELECT "tenants_tenant"."id"') and word in text


def _named(statements: list[str], *words: str) -> list[str]:
    return [text for text in statements if all(word in text for word in words)]


def test_slides_and_own_lanes_are_made_before_the_tenants_row_is_taken() -> None:
    owner = factories.tenant()
    jobs = [factories.job(f"j{n}", image_path=f"{n % 4}.svs") for n in range(12)]
    held = under_the_lock(owner, jobs)
    assert Slide.objects.for_tenant(owner).count() == 4
    assert Branch.objects.for_tenant(owner).count() == 12
    assert not _named(held, "jobs_slide")
    assert not _named(held, "jobs_branch")
    assert not _named(held, "UPDATE jobs_job"), "alone in a lane a job is its head from the start"
    assert _named(held, "INSERT", "jobs_job")
    assert len(promotion.promote()) == 4


def test_what_waits_in_a_lane_of_its_own_is_no_head() -> None:
    flow = factories.workflow(
        factories.tenant(), [factories.job("a"), factories.job("b", after=["a"])]
    )
    rows = factories.jobs_of(flow)
    assert {key: (row.status.name, bool(row.ready_at)) for key, row in rows.items()} == {
        "a": ("READY", True),
        "b": ("PENDING", False),
    }
    late = submission.add_job(flow.tenant, flow, factories.job("c", after=["b"]))
    free = submission.add_job(flow.tenant, flow, factories.job("d"))
    assert (late.status.name, free.status.name) == ("PENDING", "READY")


def test_many_slides_cost_a_few_statements() -> None:
    owner = factories.tenant()
    jobs = [factories.job(f"j{n}", image_path=f"{n}.svs") for n in range(4)]
    with CaptureQueriesContext(connection) as first:
        factories.workflow(owner, jobs)
    with CaptureQueriesContext(connection) as again:
        factories.workflow(owner, jobs)
    slides = [len(_named([each["sql"] for each in seen], "jobs_slide")) for seen in (first, again)]
    assert slides == [3, 1]


def test_a_slide_named_in_two_ways_is_one(tmp_path: Path) -> None:
    owner = factories.tenant()
    names = ["1.svs", str(tmp_path / "slides" / "1.svs"), "./1.svs"]
    flow = factories.workflow(
        owner, [factories.job(f"j{n}", image_path=name) for n, name in enumerate(names)]
    )
    slide = Slide.objects.for_tenant(owner).get()
    assert {row.slide_id for row in factories.jobs_of(flow).values()} == {slide.pk}
    assert slide.uuid == roots.slide_id(owner, "shared", "1.svs")


def test_a_first_submission_that_is_refused_leaves_nothing(settings: Any) -> None:
    settings.MAX_PENDING_JOBS = 1
    jobs = [factories.job("a", image_path="1.svs"), factories.job("b")]
    with pytest.raises(TooManyPending):
        factories.workflow(Tenant(key="new"), jobs)
    why = "a check of the tests"
    assert not Tenant.objects.filter(key="new").exists()
    assert not Slide.objects.across_tenants(why).exists()
    assert not Branch.objects.across_tenants(why).exists()
    assert not Job.objects.across_tenants(why).exists()


def test_a_submission_that_is_refused_leaves_no_lanes(settings: Any) -> None:
    settings.MAX_PENDING_JOBS = 1
    owner = factories.tenant()
    with pytest.raises(TooManyPending):
        factories.workflow(owner, [factories.job("a"), factories.job("b")])
    assert not Branch.objects.for_tenant(owner).exists()


# --- at the cap --------------------------------------------------------------------------


@pytest.fixture
def slow_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """A count is kept as long as a test takes, however slow the machine."""
    monkeypatch.setattr(submission, "FULL_FOR_S", 60.0)


def counts(owner: Tenant) -> int:
    """How often a submission of one job, which is refused, counts what is pending."""
    with CaptureQueriesContext(connection) as seen, pytest.raises(TooManyPending):
        factories.workflow(owner, [factories.job("late")])
    return len(_named([each["sql"] for each in seen], "COUNT(", "jobs_job"))


@pytest.mark.usefixtures("slow_clock")
def test_at_the_cap_who_does_not_wait_has_nothing_counted(settings: Any) -> None:
    settings.MAX_PENDING_JOBS = 3
    owner = factories.tenant()
    flow = factories.workflow(owner, [factories.job(f"j{n}") for n in range(3)])
    assert [counts(owner) for _ in range(4)] == [1, 0, 0, 0]
    with pytest.raises(TooManyPending, match="3 jobs of yours wait already"):
        submission.add_job(owner, flow, factories.job("late"))
    factories.workflow(owner, [])  # an empty one adds nothing
    factories.workflow(factories.tenant(), [factories.job("a")])
    submission.cancel(flow)
    factories.workflow(owner, [factories.job("room")])


@pytest.mark.usefixtures("slow_clock")
def test_the_count_is_kept_while_little_moves_and_for_a_short_while(
    settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.MAX_PENDING_JOBS = 1000
    owner = factories.tenant()
    flow = factories.workflow(owner, [factories.job(f"j{n}") for n in range(1000)])
    jobs = list(factories.jobs_of(flow).values())
    assert counts(owner) == 1
    services.cancel(jobs[0])
    assert counts(owner) == 0, "one of a thousand is no reason to count again"
    services.cancel(jobs[1])
    factories.workflow(owner, [factories.job("a"), factories.job("b")])
    assert [counts(owner), counts(owner)] == [1, 0]
    monkeypatch.setattr(submission, "FULL_FOR_S", 0.0)
    assert counts(owner) == 1
