"""The migrations over rows: a database of the first tables, in full work, brought to the present."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from typing import Any

import pytest
from django.db import connection
from django.db.migrations.executor import MigrationExecutor
from django.utils import timezone

from jobs import services
from jobs.models import Artifact, Blob, Branch, Edge, Job, Lease, UserSlot
from jobs.scheduling import lanes, promotion
from jobs.signals import swept
from jobs.states import JobState
from realtime import feed
from tenants.models import Tenant
from tests import factories
from tests.proofs import picture
from workflows import progress, submission
from workflows.models import Workflow

pytestmark = pytest.mark.django_db(transaction=True)

FIRST = [("tenants", "0001_initial"), ("workflows", "0001_initial"), ("jobs", "0001_initial")]
NOW = timezone.now()
HASHES = {"mask": "a" * 64, "cells": "b" * 64}


def migrate(targets: list[tuple[str, str]]) -> Any:
    """Bring the database to these migrations; the models of that time."""
    MigrationExecutor(connection).migrate(targets)
    return MigrationExecutor(connection).loader.project_state(targets).apps


def latest() -> list[tuple[str, str]]:
    ends: list[tuple[str, str]] = MigrationExecutor(connection).loader.graph.leaf_nodes()
    return ends


@pytest.fixture(autouse=True)
def rules(settings: Any) -> None:
    settings.LABSCHED_ENABLE_PROBE_JOBS = True
    settings.MAX_WORKERS = 4
    settings.MAX_ACTIVE_USERS = 3
    settings.ACTIVE_USER_QUANTUM_S = 0


@pytest.fixture
def first() -> Iterator[Any]:
    """The models of the first tables; afterwards the tables are the present ones again."""
    try:
        yield migrate(FIRST)
    finally:
        migrate(latest())


class Old:
    """A database as the first release left it while it worked: two tenants active, one in line."""

    def __init__(self, apps: Any) -> None:
        self.apps = apps
        self.sequences: dict[int, int] = {}
        for number in range(1, 4):
            self.make("jobs.UserSlot", number=number)
        for number in range(1, 5):
            self.make("jobs.RunSlot", number=number)
        self.make("jobs.Queue", name="cpu")
        self.make("jobs.Queue", name="gpu")
        self.ann = self.make("tenants.User", username="ann")
        self.lab = self.tenant("lab", slot=1)
        self.clinic = self.tenant("clinic", slot=2)
        self.late = self.tenant("late", waiting_since=NOW - dt.timedelta(minutes=2))
        self.halted = self.tenant("halted", waiting_since=NOW - dt.timedelta(minutes=1))
        self.fill_lab()
        self.fill_others()
        for tenant, following in self.sequences.items():
            self.of("tenants.Tenant").filter(pk=tenant).update(next_sequence=following)

    def of(self, label: str) -> Any:
        return self.apps.get_model(label).objects

    def make(self, label: str, **fields: Any) -> Any:
        return self.of(label).create(**fields)

    def tenant(self, key: str, *, slot: int | None = None, **fields: Any) -> Any:
        made = self.make("tenants.Tenant", key=key, served_at=NOW, **fields)
        if slot is not None:
            self.of("jobs.UserSlot").filter(number=slot).update(holder=made, acquired_at=NOW)
        return made

    def workflow(self, tenant: Any, name: str, state: str, **fields: Any) -> Any:
        return self.make(
            "workflows.Workflow", tenant=tenant, name=name, state=state, created_at=NOW, **fields
        )

    def branch(self, tenant: Any, name: str, *, paused: bool = False) -> Any:
        return self.make("jobs.Branch", tenant=tenant, name=name, paused=paused)

    def job(self, flow: Any, key: str, branch: Any, state: JobState, **fields: Any) -> Any:
        tenant = flow.tenant
        sequence = self.sequences.get(tenant.pk, 1)
        self.sequences[tenant.pk] = sequence + 1
        holder = tenant.pk if state.active else None
        return self.make(
            "jobs.Job",
            tenant=tenant,
            workflow=flow,
            branch=branch,
            key=key,
            position=sequence,
            sequence=sequence,
            job_type="probe",
            queue="cpu",
            params={"seconds": 0},
            state=state.value,
            user_slot_id=holder,
            created_at=NOW,
            **fields,
        )

    def hold(self, job: Any, run_slot: int, worker: str) -> None:
        self.make(
            "jobs.Lease",
            tenant=job.tenant,
            run_slot_id=run_slot,
            job=job,
            queue=job.queue,
            attempt=job.attempt,
            worker=worker,
            user_slot_id=job.tenant_id,
            expires_at=timezone.now() + dt.timedelta(minutes=5),
        )

    def tell(self, tenant: Any, flow: Any, kind: str, data: dict[str, Any]) -> None:
        row = self.of("tenants.Tenant").get(pk=tenant.pk)
        self.make(
            "jobs.Event",
            tenant=tenant,
            seq=row.next_event,
            kind=kind,
            workflow=flow,
            at=timezone.now(),
            data=data,
        )
        self.of("tenants.Tenant").filter(pk=tenant.pk).update(next_event=row.next_event + 1)

    def fill_lab(self) -> None:
        """A workflow under way with jobs in every state, and one that ended just now."""
        flow = self.workflow(self.lab, "slides", "RUNNING", created_by=self.ann, refreshed_at=NOW)
        main, paused = self.branch(self.lab, "main"), self.branch(self.lab, "held", paused=True)
        ended = {"attempt": 1, "created_by": self.ann, "finished_at": NOW}
        done = self.job(flow, "done", main, JobState.SUCCEEDED, summary={"cells": 7}, **ended)
        self.job(flow, "failed", main, JobState.FAILED, reason="error", error="It broke.", **ended)
        running = self.job(
            flow, "running", main, JobState.RUNNING, attempt=2, created_by=self.ann, started_at=NOW
        )
        self.hold(running, 1, "cpu-0")
        self.make("jobs.JobProgress", job=running, tenant=self.lab, attempt=2, progress=0.4)
        following = self.job(flow, "next", main, JobState.PENDING, upstream_left=1)
        for upstream in (done, running):
            self.make("jobs.Edge", tenant=self.lab, upstream=upstream, downstream=following)
        self.job(flow, "ready", self.branch(self.lab, "b2"), JobState.READY)
        # a lane that was paused kept its head READY then
        self.job(flow, "held", paused, JobState.READY, ready_at=NOW)
        self.store(done)
        self.tell(self.lab, flow, "workflow", {"name": "slides"})
        self.tell(self.lab, flow, "job", {"job_id": "running", "state": "RUNNING"})
        # its last job ended the moment before the servers were stopped: only its event says so
        over = self.workflow(
            self.lab, "over", "RUNNING", stale=True, refreshed_at=NOW - dt.timedelta(seconds=5)
        )
        self.job(over, "last", main, JobState.SUCCEEDED, **ended)
        self.tell(self.lab, over, "job", {"job_id": "last", "state": "SUCCEEDED"})

    def store(self, job: Any) -> None:
        """Two files of equal content, and one of another."""
        for name, content in (("1.png", "mask"), ("2.png", "mask"), ("cells", "cells")):
            self.make(
                "jobs.Artifact",
                tenant=job.tenant,
                job=job,
                attempt=1,
                name=name,
                kind="file",
                path=f"results/{name}",
                size=10,
                sha256=HASHES[content],
            )

    def fill_others(self) -> None:
        flow = self.workflow(self.clinic, "queued", "RUNNING")
        queued = self.job(
            flow, "queued", self.branch(self.clinic, "main"), JobState.QUEUED, attempt=1
        )
        self.of("jobs.Job").filter(pk=queued.pk).update(queued_at=NOW, dispatched_at=NOW)
        self.hold(queued, 2, "")
        back_off = self.branch(self.clinic, "retry")
        soon = NOW + dt.timedelta(minutes=10)
        self.job(flow, "retry", back_off, JobState.RETRY_WAIT, attempt=1, failures=1, retry_at=soon)
        self.tell(self.clinic, flow, "job", {"job_id": "queued", "state": "QUEUED"})
        flow = self.workflow(self.late, "waits", "PENDING")
        self.job(flow, "first", self.branch(self.late, "main"), JobState.READY)
        lane = self.branch(self.halted, "main", paused=True)
        self.job(self.workflow(self.halted, "halts", "PENDING"), "only", lane, JobState.READY)

    def counts(self) -> dict[str, int]:
        named = ["tenants.Tenant", "workflows.Workflow"]
        named += [
            f"jobs.{name}"
            for name in ["Job", "Branch", "Edge", "Lease", "Event", "Artifact", "JobProgress"]
        ]
        return {name: self.of(name).count() for name in named}


def rows_of(model: Any) -> Any:
    return model.objects.across_tenants("test")


def states() -> dict[str, str]:
    return {row.key: row.status.name for row in rows_of(Job)}


@pytest.fixture
def old(first: Any) -> Old:
    """The present tables over the rows of a first release at work."""
    made = Old(first)
    before = made.counts()
    migrate(latest())
    made.apps = MigrationExecutor(connection).loader.project_state(latest()).apps
    assert made.counts() == before
    return made


def check_rows() -> None:
    assert states() == {
        "done": "SUCCEEDED",
        "failed": "FAILED",
        "running": "RUNNING",
        "next": "PENDING",
        "ready": "READY",
        "held": "PENDING",  # a paused lane has no ready job
        "last": "SUCCEEDED",
        "queued": "QUEUED",
        "retry": "RETRY_WAIT",
        "first": "READY",
        "only": "PENDING",
    }
    done = rows_of(Job).get(key="done")
    assert (done.summary, done.params, done.result_key) == ({"cells": 7}, {"seconds": 0}, "")
    assert rows_of(Job).get(key="failed").error == "It broke."
    assert rows_of(Edge).count() == 2
    assert rows_of(Job).get(key="running").progress_row.progress == 0.4


def check_derived(old: Old) -> None:
    assert set(
        rows_of(Job).filter(key__in=["done", "running"]).values_list("member", flat=True)
    ) == {old.ann.pk}
    assert rows_of(Job).get(key="queued").member == 0
    held = dict(rows_of(Lease).values_list("job__key", "member"))
    assert held == {"running": old.ann.pk, "queued": 0}
    assert all(lease.pushed_at is not None for lease in rows_of(Lease))
    waiting = set(Tenant.objects.filter(waiting_since__isnull=False).values_list("key", flat=True))
    assert waiting == {"late"}  # who has nothing to start is not in line
    for tenant in Tenant.objects.all():
        live = Job.objects.for_tenant(tenant).live().count()
        assert tenant.live_counted + tenant.next_sequence - tenant.live_counted_at >= live


def check_blobs() -> None:
    """Equal contents became one blob; the other copy is doomed."""
    live = rows_of(Blob).filter(doomed_at=None)
    assert dict(live.values_list("sha256", "path")) == {
        HASHES["mask"]: "results/1.png",
        HASHES["cells"]: "results/cells",
    }
    assert [blob.path for blob in rows_of(Blob).exclude(doomed_at=None)] == ["results/2.png"]
    assert dict(rows_of(Artifact).values_list("name", "path")) == {
        "1.png": "results/1.png",
        "2.png": "results/1.png",
        "cells": "results/cells",
    }


def check_feed() -> None:
    """Who listened before goes on where it was."""
    lab = Tenant.objects.get(key="lab")
    assert feed.still_kept(lab, 1)
    reached, told = feed.events_after(lab, None, 1)
    assert reached == 3
    assert [(each["seq"], each["data"]["job_id"]) for each in told] == [(2, "running"), (3, "last")]


def test_nothing_is_lost_and_what_is_derived_holds(old: Old) -> None:
    check_rows()
    check_derived(old)
    check_blobs()
    check_feed()


@pytest.mark.usefixtures("old")
def test_the_scheduler_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    factories.capacity()
    # a scheduler that has just started looks at all that is kept
    monkeypatch.setitem(progress._looked, "at", dt.datetime(2000, 1, 1, tzinfo=dt.UTC))
    swept.send(sender=None)
    assert rows_of(Workflow).get(name="over").state == "SUCCEEDED"  # it had ended unseen
    assert rows_of(Workflow).get(name="slides").state == "RUNNING"
    before = picture.take()
    promoted = [pk for pk, _ in promotion.promote()]
    assert {rows_of(Job).get(pk=pk).key for pk in promoted} == {"ready", "first"}
    assert picture.pass_faults(before, picture.take()) == []
    assert UserSlot.objects.filter(holder__key="late").exists()
    running = rows_of(Job).get(key="running")
    assert services.succeed(running.pk, running.attempt, artifacts=[], summary={})
    assert states()["next"] == "READY"
    lanes.set_paused(rows_of(Branch).get(name="held"), False)
    assert states()["held"] == "READY"
    queued = rows_of(Job).get(key="queued")
    assert services.start(queued.pk, queued.attempt, "cpu-1") is not None
    promotion.promote()
    assert (states()["next"], states()["held"]) == ("QUEUED", "READY")  # the one free run slot
    submission.submit(Tenant.objects.get(key="lab"), {"name": "new", "jobs": [factories.job("x")]})


def test_the_way_back_keeps_every_row_but_the_events_of_today(old: Old) -> None:
    factories.capacity()
    promotion.promote()  # new leases, and events in today's form
    kept = states()
    before = migrate(FIRST)
    then = {job.key: JobState(job.state).name for job in before.get_model("jobs.Job").objects.all()}
    assert then == kept
    assert before.get_model("jobs.Lease").objects.count() == 4
    assert before.get_model("jobs.Artifact").objects.count() == 3
    assert {event.kind for event in before.get_model("jobs.Event").objects.all()} == {
        "job",
        "workflow",
    }
    migrate(latest())
    assert states() == kept
    assert rows_of(Job).get(key="running").member == old.ann.pk
