"""The stored copy of a workflow's state and progress, refreshed from its jobs.

When a workflow begins, ends or is reopened its copy is refreshed at once, by the process that moved
the job. In between the sweep does it, at most once a second, and the less often the longer it takes.
A signal that was lost costs a few seconds: the sweep looks at the events.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import logging
import time
import uuid
from collections import OrderedDict
from collections.abc import Iterable

from django.db import transaction
from django.db.models import Count, Max, Q, Sum
from django.utils import timezone

from jobs import events, sql
from jobs.models import Event, Job
from jobs.signals import jobs_moved, swept
from jobs.states import FIRST_TERMINAL, JobState
from workflows import aggregate, shapes
from workflows.models import Workflow

REFRESH_EVERY_S = 1.0
SHARE_OF_TIME = (
    0.05  # a workflow of 100,000 jobs takes long to add up: most of the time is not spent on that
)
LOOK_BACK = dt.timedelta(seconds=15)  # events commit a moment after the time they carry
LIVE = Q(state__lt=int(FIRST_TERMINAL))
REMEMBERED = 10_000
A_QUERY = 800  # parameters a statement
log = logging.getLogger(__name__)


class Memory(OrderedDict[uuid.UUID, float]):
    """Until when (monotonic seconds) each of the latest workflows needs no refresh."""

    def rest(self, workflow_id: uuid.UUID, took_s: float) -> None:
        """Note a refresh that took so long."""
        self[workflow_id] = time.monotonic() + max(REFRESH_EVERY_S, took_s / SHARE_OF_TIME)
        self.move_to_end(workflow_id)
        while len(self) > REMEMBERED:
            self.popitem(last=False)

    def is_due(self, workflow_id: uuid.UUID) -> bool:
        return self.get(workflow_id, 0.0) <= time.monotonic()


_rested = Memory()
_begun = Memory()  # known to run: promoting another job of it changes nothing
_looked = {
    "at": dt.datetime(2000, 1, 1, tzinfo=dt.UTC)
}  # the first sweep looks at all that is kept
_told: dict[uuid.UUID, dt.datetime] = {}  # events that a later refresh has to cover


def connect() -> None:
    """Listen to moves of jobs and to the sweep."""
    jobs_moved.connect(_on_moved, dispatch_uid="workflows.progress")
    swept.connect(_on_swept, dispatch_uid="workflows.progress.swept")


def _on_moved(look_at: Iterable[uuid.UUID], work_may_start: bool, **_: object) -> None:
    for workflow_id in look_at:
        if work_may_start:
            _begun.pop(workflow_id, None)
            refresh(workflow_id)
        elif _begun.is_due(workflow_id):  # else another job of it was promoted a moment ago
            _begun.rest(workflow_id, took_s=0.5)
            _begin(workflow_id)


def _begin(workflow_id: uuid.UUID) -> None:
    """A job of it was promoted: RUNNING, if it was not. The rest of the copy follows by the sweep."""
    rows = Workflow.objects.across_tenants("the signal names it").filter(pk=workflow_id)
    found = rows.values_list("tenant_id", "state").first()
    if found is None or found[1] == Workflow.State.RUNNING:
        return
    tenant_id, state = found
    if state != Workflow.State.PENDING:
        refresh(workflow_id)
        return
    with contextlib.suppress(sql.RowHeld), sql.briefly():  # else the sweep finds it
        events.lock(tenant_id)
        if rows.filter(state=state).update(state=Workflow.State.RUNNING):
            workflow = rows.get()
            events.record(tenant_id, "workflow", [(workflow.pk, shapes.workflow_state(workflow))])
            events.nudge(tenant_id, work_may_start=False)


def _on_swept(**_: object) -> None:
    now = timezone.now()
    news = (
        Event.objects.across_tenants("the sweep serves all")
        .filter(kind="job", at__gte=_looked["at"] - LOOK_BACK)
        .values_list("workflow")
        .annotate(Max("at"))
    )
    _told.update(news)
    running = Job.objects.across_tenants("the sweep serves all").filter(leases__isnull=False)
    moving = set(running.values_list("workflow_id", flat=True))
    due = [pk for pk in {*_told, *moving} if _rested.is_due(pk)]
    for start in range(0, len(due), A_QUERY):
        _refresh_old(due[start : start + A_QUERY], moving)
    _looked["at"] = now


def _refresh_old(due: list[uuid.UUID], moving: set[uuid.UUID]) -> None:
    rows = Workflow.objects.across_tenants("the sweep serves all").filter(pk__in=due)
    fresh = timezone.now() - dt.timedelta(seconds=REFRESH_EVERY_S)
    held = set()
    for pk, at in rows.values_list("pk", "refreshed_at"):
        told = _told.get(pk)
        if at is None or (at < fresh and pk in moving) or (told is not None and at < told):
            try:
                with sql.briefly():
                    refresh(pk)
            except sql.RowHeld:
                held.add(pk)  # stays told: the next sweep tries again
    for pk in set(due) - held:
        _told.pop(pk, None)


def refresh(workflow_id: uuid.UUID) -> None:
    """Write the copy; a change of state is an event in the same transaction."""
    rows = Workflow.objects.across_tenants("one workflow by id")
    tenant_id = rows.filter(pk=workflow_id).values_list("tenant_id", flat=True).first()
    if tenant_id is None:
        return
    with transaction.atomic():
        events.lock(tenant_id)
        began_at = time.monotonic()  # waiting for the lock is no reason to rest
        workflow = rows.get(pk=workflow_id)
        before = workflow.state
        apply(workflow)
        workflow.refreshed_at = timezone.now()
        workflow.save(update_fields=["state", "progress", "finished_at", "refreshed_at"])
        if workflow.state != before:
            events.record(tenant_id, "workflow", [(workflow.pk, shapes.workflow_state(workflow))])
            events.nudge(tenant_id, work_may_start=False)
    _rested.rest(workflow_id, time.monotonic() - began_at)


def apply(workflow: Workflow) -> Workflow:
    """Set state, progress and finished_at of `workflow` from its jobs now, without saving."""
    jobs = Job.objects.across_tenants("the jobs of one workflow").filter(workflow=workflow.pk)
    found = jobs.aggregate(
        total=Count("pk"),
        live=Count("pk", filter=LIVE),
        succeeded=Count("pk", filter=Q(state=JobState.SUCCEEDED.value)),
        failed=Count("pk", filter=Q(state=JobState.FAILED.value)),
        cancelled=Count("pk", filter=Q(state=JobState.CANCELLED.value)),
        moved=Count("pk", filter=Q(attempt__gt=0) | ~LIVE),
        live_progress=Sum("progress_row__progress", filter=LIVE),
        ended=Max("finished_at"),
    )
    ended = found.pop("ended")
    counts = aggregate.Counts(**{**found, "live_progress": found["live_progress"] or 0.0})
    workflow.state = aggregate.state_of(counts, workflow.state)
    workflow.progress = aggregate.progress_of(counts)
    workflow.finished_at = ended if workflow.ended else None
    return workflow
