"""The one way in: from a checked spec to rows, in one transaction, or nothing at all."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping
from typing import Any

from django.conf import settings
from django.db import transaction
from django.db.models import F
from django.utils import timezone

from jobs import events, retrying, services, types
from jobs.models import Branch, Edge, Job, Slide
from jobs.scheduling import lanes
from jobs.slides import roots
from jobs.states import JobState
from tenants.models import Tenant, User
from workflows import progress, shapes, spec
from workflows.models import Workflow
from workflows.spec import JobSpec, SpecError, TypeFacts, WorkflowSpec

BATCH = 500


class Conflict(Exception):
    """The workflow is in a state that does not allow this; nothing was written."""


class TooManyPending(Exception):
    """The tenant has MAX_PENDING_JOBS waiting; nothing was written."""


def check_type(name: str, params: Mapping[str, Any]) -> TypeFacts:
    """What the registry says of a job type with these params."""
    try:
        kind = types.get(name)
    except types.UnknownType:
        return TypeFacts(known=False, choices=tuple(types.names()))
    problems = tuple(types.check_params(kind, params))
    return TypeFacts(known=True, needs_slide=kind.needs_slide, problems=problems)


def submit(tenant: Tenant, body: object, *, user: User | None = None) -> Workflow:
    """Create the workflow in `body` (DESIGN §6). Raises SpecError or TooManyPending."""
    wanted = spec.parse_workflow(body, check_type)
    with transaction.atomic():
        tenant = _admitted(tenant, len(wanted.jobs))
        workflow = Workflow.objects.create(
            tenant=tenant,
            name=wanted.name,
            on_failure=wanted.on_failure,
            created_by=user,
            created_at=timezone.now(),
        )
        slides = _slides(tenant, enumerate(wanted.jobs))
        rows = _insert(workflow, wanted, slides, user)
        lanes.raise_heads(tenant.pk, {row.branch_id for row in rows})
        events.record(tenant.pk, "workflow", [(workflow.pk, shapes.workflow_state(workflow))])
        events.nudge(tenant.pk, {workflow.pk})
    return workflow


def add_job(tenant: Tenant, workflow: Workflow, body: object, *, user: User | None = None) -> Job:
    """Add one job to a workflow. Raises SpecError, Conflict or TooManyPending."""
    wanted = spec.parse_job(body, check_type)
    with transaction.atomic():
        tenant = _admitted(tenant, 1)
        progress.apply(workflow)
        if workflow.state == Workflow.State.CANCELLED:
            raise Conflict(f"{workflow.name} was cancelled: submit a new workflow instead.")
        jobs = Job.objects.for_tenant(tenant).filter(workflow=workflow)
        if jobs.filter(key=wanted.key).exists():
            raise SpecError({"job_id": [f"{wanted.key} is used in this workflow already."]})
        upstream = _existing(jobs, wanted)
        whole = WorkflowSpec(workflow.name, workflow.on_failure, (wanted,), (0,))
        slides = _slides(tenant, [(None, wanted)])
        (row,) = _insert(workflow, whole, slides, user, place=jobs.count(), upstream=upstream)
        lanes.raise_heads(tenant.pk, {row.branch_id})
        events.jobs_changed(tenant.pk, [row.pk])
    row.refresh_from_db()
    return row


def cancel(workflow: Workflow) -> Workflow:
    """Cancel every job that is not over. Raises Conflict when the workflow is over already."""
    if not services.cancel_all(workflow.tenant_id, workflow.pk):
        empty = not Job.objects.for_tenant(workflow.tenant).filter(workflow=workflow).exists()
        state = "has no jobs to cancel" if empty else "is over already"
        raise Conflict(f"{workflow.name} {state}.")
    return refreshed(workflow)


def retry(workflow: Workflow) -> Workflow:
    """Retry every failed job, and what those ended. Raises Conflict when nothing failed."""
    with transaction.atomic():
        events.lock(workflow.tenant_id)
        jobs = Job.objects.for_tenant(workflow.tenant).filter(workflow=workflow)
        failed = list(jobs.filter(state=JobState.FAILED.value).order_by("sequence"))
        if not failed:
            raise Conflict(f"Nothing in {workflow.name} failed.")
        for job in failed:
            retrying.retry(job)
    return refreshed(workflow)


def refreshed(workflow: Workflow) -> Workflow:
    """The workflow with its state and progress as of now."""
    workflow.refresh_from_db()
    return progress.apply(workflow)


def _admitted(tenant: Tenant, jobs: int) -> Tenant:
    """The tenant's locked row, made by its first accepted write; its pending cap is checked."""
    if tenant._state.adding:
        tenant, _ = Tenant.objects.get_or_create(key=tenant.key)
    locked = events.lock(tenant.pk)
    waiting = Job.objects.for_tenant(locked).live().count() if jobs else 0
    if waiting + jobs > settings.MAX_PENDING_JOBS:
        raise TooManyPending(
            f"{waiting} jobs of yours wait already, {settings.MAX_PENDING_JOBS} may: try again "
            "when some have ended."
        )
    return locked


def _existing(jobs: Any, wanted: JobSpec) -> dict[str, Job]:
    """The jobs that a new one waits for, by key. Raises SpecError or Conflict."""
    found = {job.key: job for job in jobs.filter(key__in=wanted.depends_on)}
    unknown = [key for key in wanted.depends_on if key not in found]
    if unknown:
        raise SpecError({"depends_on": [f"No such job in this workflow: {', '.join(unknown)}."]})
    if len(set(wanted.depends_on)) < len(wanted.depends_on):
        raise SpecError({"depends_on": ["A job is named twice."]})
    dead = [key for key, job in found.items() if job.status > JobState.SUCCEEDED]
    if dead:
        raise Conflict(f"{', '.join(dead)} did not succeed: retry that first.")
    return found


def _slides(
    tenant: Tenant, jobs: Iterable[tuple[int | None, JobSpec]]
) -> dict[str | uuid.UUID, Slide]:
    """The slide of every path and id that the jobs name. Raises SpecError for the bad ones."""
    slides: dict[str | uuid.UUID, Slide] = {}
    faults: dict[str, Any] = {}
    for place, job in jobs:
        wanted = job.image_path or job.slide_id
        if wanted is None or wanted in slides:
            continue
        try:
            slides[wanted] = _slide(tenant, job)
        except SpecError as error:
            faults[str(place)] = error.errors
    if "None" in faults:
        raise SpecError(faults["None"])
    if faults:
        raise SpecError({"jobs": faults})
    return slides


def _slide(tenant: Tenant, job: JobSpec) -> Slide:
    if job.image_path:
        try:
            return roots.resolve(tenant, job.image_path)
        except roots.BadPath as error:
            raise SpecError({"image_path": [str(error)]}) from error
    slide = roots.by_id(tenant, job.slide_id) if job.slide_id else None
    if slide is None:
        raise SpecError({"slide_id": ["No slide of yours has this id: see GET /api/slides."]})
    return slide


def _insert(
    workflow: Workflow,
    wanted: WorkflowSpec,
    slides: Mapping[str | uuid.UUID, Slide],
    user: User | None,
    *,
    place: int = 0,
    upstream: Mapping[str, Job] | None = None,
) -> list[Job]:
    """Write branches, jobs in one total order, and edges. The caller holds the tenant's row.

    place     position of the first job in the workflow
    upstream  jobs of the workflow that exist already, by key
    """
    first = _take_sequences(workflow.tenant, len(wanted.jobs))
    rows = []
    for sequence, position in enumerate(wanted.order, first):
        job = wanted.jobs[position]
        row = _row(job, workflow, user, upstream or {})
        row.sequence = sequence
        row.position = place + position
        row.slide = slides.get(job.image_path or job.slide_id or "")
        rows.append(row)
    _set_branches(workflow.tenant, [(row, wanted.jobs[row.position - place]) for row in rows])
    Job.objects.bulk_create(rows, batch_size=BATCH)
    _insert_edges(rows, wanted, upstream or {})
    return rows


def _row(job: JobSpec, workflow: Workflow, user: User | None, upstream: Mapping[str, Job]) -> Job:
    done = sum(row.status is JobState.SUCCEEDED for row in upstream.values())
    return Job(
        tenant=workflow.tenant,
        workflow=workflow,
        key=job.key,
        job_type=job.job_type,
        queue=types.get(job.job_type).queue_for(job.params),
        params=dict(job.params),
        priority=job.priority,
        on_failure=workflow.on_failure,
        max_attempts=settings.MAX_ATTEMPTS,
        upstream_left=len(job.depends_on) - done,
        created_by=user,
        created_at=timezone.now(),
    )


def _take_sequences(tenant: Tenant, count: int) -> int:
    """Allocate `count` places in the tenant's total order (R2). Returns the first."""
    Tenant.objects.filter(pk=tenant.pk).update(next_sequence=F("next_sequence") + count)
    return Tenant.objects.values_list("next_sequence", flat=True).get(pk=tenant.pk) - count


def _set_branches(tenant: Tenant, rows: list[tuple[Job, JobSpec]]) -> None:
    """Give every row its lane, making those that are new. No branch named: a lane of its own."""
    names: dict[str, list[Job]] = {}
    for row, job in rows:
        row.own_branch = job.branch is None
        names.setdefault(job.branch or f"job:{row.uuid}", []).append(row)
    branches = Branch.objects.for_tenant(tenant)
    missing = set(names)
    for start in range(0, len(names), BATCH):
        found = branches.filter(name__in=list(names)[start : start + BATCH])
        missing -= set(found.values_list("name", flat=True))
    Branch.objects.bulk_create([Branch(tenant=tenant, name=name) for name in sorted(missing)])
    for start in range(0, len(names), BATCH):
        for branch in branches.filter(name__in=list(names)[start : start + BATCH]):
            for row in names[branch.name]:
                row.branch = branch


def _insert_edges(rows: list[Job], wanted: WorkflowSpec, upstream: Mapping[str, Job]) -> None:
    by_key = {**upstream, **{row.key: row for row in rows}}
    edges = [
        Edge(tenant_id=rows[0].tenant_id, upstream=by_key[key], downstream=by_key[job.key])
        for job in wanted.jobs
        for key in job.depends_on
    ]
    Edge.objects.bulk_create(edges, batch_size=BATCH)
