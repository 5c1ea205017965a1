"""The stored copy of a workflow's state and progress, refreshed from its jobs.

The copy is refreshed by the sweep at most once a second while it runs, at once when it begins and
when its last job ended. A signal that was lost costs a few seconds: the sweep compares with the events.
"""

from __future__ import annotations

import datetime as dt
import logging
import uuid
from collections.abc import Iterable

from django.db import transaction
from django.db.models import Count, Max, Q, Sum
from django.utils import timezone

from jobs import events
from jobs.models import Event, Job
from jobs.signals import jobs_moved, swept
from jobs.states import FIRST_TERMINAL, JobState
from workflows import aggregate, shapes
from workflows.models import Workflow

REFRESH_EVERY = dt.timedelta(seconds=1)
REPAIR_EVERY = dt.timedelta(seconds=5)
A_SWEEP = 100
LIVE = Q(state__lt=int(FIRST_TERMINAL))
log = logging.getLogger(__name__)
_repair = {"at": dt.datetime(2000, 1, 1, tzinfo=dt.UTC)}  # when missed refreshes were looked for


def connect() -> None:
    """Listen to moves of jobs and to the sweep."""
    jobs_moved.connect(_on_moved, dispatch_uid="workflows.progress")
    swept.connect(_on_swept, dispatch_uid="workflows.progress.swept")


def _on_moved(workflow_ids: Iterable[uuid.UUID], **_: object) -> None:
    for workflow_id in workflow_ids:
        refresh_soon(workflow_id)


def _on_swept(**_: object) -> None:
    now = timezone.now()
    everyone = Workflow.objects.across_tenants("the sweep serves all")
    due = everyone.filter(Q(refreshed_at=None) | Q(refreshed_at__lt=now - REFRESH_EVERY))
    running = Job.objects.across_tenants("the sweep serves all").filter(
        state=JobState.RUNNING.value
    )
    moving = due.filter(Q(stale=True) | Q(pk__in=running.values("workflow")))
    for pk in {*moving.values_list("pk", flat=True)[:A_SWEEP], *_missed(now)}:
        refresh(pk)


def _missed(now: dt.datetime) -> list[uuid.UUID]:
    """Workflows with an event after their last refresh: the process that wrote it died too soon."""
    if now - _repair["at"] < REPAIR_EVERY:
        return []
    since = _repair["at"] - REPAIR_EVERY  # the first time: everything that is kept
    _repair["at"] = now
    told = (
        Event.objects.across_tenants("the sweep serves all")
        .filter(kind="job", at__gte=since)
        .values_list("workflow")
        .annotate(last=Max("at"))
    )
    last = dict(told)
    rows = Workflow.objects.across_tenants("the sweep serves all").filter(pk__in=last)
    return [
        pk
        for pk, refreshed_at in rows.values_list("pk", "refreshed_at")
        if refreshed_at is None or refreshed_at < last[pk]
    ]


def refresh_soon(workflow_id: uuid.UUID) -> None:
    """Refresh now if the workflow begins or is over; else leave it to the next sweep.

    Most callers are workers between two jobs: one narrow write is all they pay.
    """
    rows = Workflow.objects.across_tenants("the signal names it").filter(pk=workflow_id)
    state = rows.values_list("state", flat=True).first()
    live = Job.objects.across_tenants("the signal names it").filter(LIVE, workflow=workflow_id)
    if state == Workflow.State.RUNNING and live.exists():
        rows.filter(stale=False).update(stale=True)
    elif state is not None:
        refresh(workflow_id)


def refresh(workflow_id: uuid.UUID) -> None:
    """Write the copy; a change of state is an event in the same transaction."""
    rows = Workflow.objects.across_tenants("one workflow by id")
    tenant_id = rows.filter(pk=workflow_id).values_list("tenant_id", flat=True).first()
    if tenant_id is None:
        return
    with transaction.atomic():
        events.lock(tenant_id)
        workflow = rows.get(pk=workflow_id)
        before = workflow.state
        apply(workflow)
        workflow.refreshed_at = timezone.now()
        workflow.stale = False
        workflow.save(update_fields=["state", "progress", "finished_at", "refreshed_at", "stale"])
        if workflow.state != before:
            events.record(tenant_id, "workflow", [(workflow.pk, shapes.workflow_state(workflow))])
            events.nudge(tenant_id, set())


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
