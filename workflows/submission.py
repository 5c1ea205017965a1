"""The one way in: from a checked spec to rows, in one transaction, or nothing at all."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
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
from workflows import idempotency, progress, shapes, spec
from workflows.idempotency import Once
from workflows.models import Workflow
from workflows.spec import JobSpec, SpecError, TypeFacts, WorkflowSpec

BATCH = 500


class Conflict(Exception):
    """The workflow is in a state that does not allow this; nothing was written."""


class TooManyPending(Exception):
    """The tenant has MAX_PENDING_JOBS waiting; nothing was written."""


@dataclass(frozen=True)
class Submitted:
    """A workflow as it was accepted.

    jobs   its rows; None when an earlier submission is answered
    edges  pairs of them, upstream and downstream
    """

    workflow: Workflow
    jobs: list[Job] | None = None
    edges: tuple[tuple[Job, Job], ...] = ()


def checker() -> Callable[[str, Mapping[str, Any]], TypeFacts]:
    """`check_type` for one submission: its jobs mostly have the same params, looked at once."""
    known: dict[tuple[str, str], TypeFacts] = {}

    def check(name: str, params: Mapping[str, Any]) -> TypeFacts:
        asked = (name, json.dumps(params, sort_keys=True))
        if asked not in known:
            known[asked] = check_type(name, params)
        return known[asked]

    return check


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
    return accept(tenant, body, user=user).workflow


def accept(
    tenant: Tenant, body: object, *, user: User | None = None, once: Once | None = None
) -> Submitted:
    """`submit`; the same submission again is answered with the workflow of the first, as it is now.

    Raises SpecError, TooManyPending or KeyReused.
    """
    if (earlier := _workflow_before(tenant, once)) is not None:
        return Submitted(earlier)
    wanted = spec.parse_workflow(body, checker())
    with transaction.atomic():
        tenant = _locked(tenant)
        if (earlier := _workflow_before(tenant, once)) is not None:
            return Submitted(earlier)
        _check_cap(tenant, len(wanted.jobs))
        workflow = Workflow.objects.create(
            tenant=tenant,
            name=wanted.name,
            on_failure=wanted.on_failure,
            created_by=user,
            created_at=timezone.now(),
        )
        slides = _slides(tenant, enumerate(wanted.jobs))
        rows, edges = _insert(workflow, wanted, slides, user)
        lanes.raise_heads(tenant.pk, {row.branch_id for row in rows})
        _note_heads(workflow, rows)
        idempotency.keep(tenant, once, workflow.pk)
        events.record(tenant.pk, "workflow", [(workflow.pk, shapes.workflow_state(workflow))])
        events.nudge(tenant.pk)
    return Submitted(workflow, rows, tuple(edges))


def add_job(
    tenant: Tenant,
    workflow: Workflow,
    body: object,
    *,
    user: User | None = None,
    once: Once | None = None,
) -> Job:
    """Add one job to a workflow; the same submission again is answered with the first one's job.

    Raises SpecError, Conflict, TooManyPending or KeyReused.
    """
    if (earlier := _job_before(tenant, once)) is not None:
        return earlier
    wanted = spec.parse_job(body, check_type)
    with transaction.atomic():
        tenant = _locked(tenant)
        if (earlier := _job_before(tenant, once)) is not None:
            return earlier
        _check_cap(tenant, 1)
        progress.apply(workflow)
        if workflow.state == Workflow.State.CANCELLED:
            raise Conflict(f"{workflow.name} was cancelled: submit a new workflow instead.")
        jobs = Job.objects.for_tenant(tenant).filter(workflow=workflow)
        if jobs.filter(key=wanted.key).exists():
            raise SpecError({"job_id": [f"{wanted.key} is used in this workflow already."]})
        upstream = _existing(jobs, wanted)
        whole = WorkflowSpec(workflow.name, workflow.on_failure, (wanted,), (0,))
        slides = _slides(tenant, [(None, wanted)])
        last = jobs.order_by("-position").values_list("position", flat=True).first()
        place = 0 if last is None else last + 1
        (row,), _ = _insert(workflow, whole, slides, user, place=place, upstream=upstream)
        lanes.raise_heads(tenant.pk, {row.branch_id})
        idempotency.keep(tenant, once, row.uuid)
        events.jobs_changed(tenant.pk, [row.pk])
        events.nudge(tenant.pk, {workflow.pk})
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


def _workflow_before(tenant: Tenant, once: Once | None) -> Workflow | None:
    made = idempotency.made_before(tenant, once)
    found = made and Workflow.objects.for_tenant(tenant).filter(pk=made).first()
    return progress.apply(found) if found else None


def _job_before(tenant: Tenant, once: Once | None) -> Job | None:
    made = idempotency.made_before(tenant, once)
    return Job.objects.for_tenant(tenant).filter(uuid=made).first() if made else None


def _locked(tenant: Tenant) -> Tenant:
    """The tenant's locked row, made by its first accepted write."""
    if tenant._state.adding:
        tenant, _ = Tenant.objects.get_or_create(key=tenant.key)
    return events.lock(tenant.pk)


def _check_cap(tenant: Tenant, jobs: int) -> None:
    """Raise TooManyPending when these jobs would be too many. The caller holds the tenant's row.

    Counting costs what is pending. Every job that became live since the last count took a number
    of the tenant's, so a bound is known without counting, and mostly it is low enough.
    """
    most = settings.MAX_PENDING_JOBS
    at_most = tenant.live_counted + tenant.next_sequence - tenant.live_counted_at
    if not jobs or at_most + jobs <= most:
        return
    waiting = Job.objects.for_tenant(tenant).live().count()
    if waiting + jobs > most:
        raise TooManyPending(
            f"{waiting} jobs of yours wait already, {most} may: try again when some have ended."
        )
    Tenant.objects.filter(pk=tenant.pk).update(
        live_counted=waiting, live_counted_at=tenant.next_sequence
    )


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
) -> tuple[list[Job], list[tuple[Job, Job]]]:
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
    return rows, _insert_edges(workflow.tenant_id, rows, wanted, upstream or {})


def _row(job: JobSpec, workflow: Workflow, user: User | None, upstream: Mapping[str, Job]) -> Job:
    done = sum(row.status is JobState.SUCCEEDED for row in upstream.values())
    # ids, not objects: of 10,000 rows that is a third of the time
    return Job(
        tenant_id=workflow.tenant_id,
        workflow_id=workflow.pk,
        key=job.key,
        job_type=job.job_type,
        queue=types.get(job.job_type).queue_for(job.params),
        params=dict(job.params),
        priority=job.priority,
        on_failure=workflow.on_failure,
        max_attempts=settings.MAX_ATTEMPTS,
        upstream_left=len(job.depends_on) - done,
        created_by_id=user.pk if user else None,
        member=user.pk if user else 0,
        created_at=timezone.now(),
    )


def _take_sequences(tenant: Tenant, count: int) -> int:
    """Allocate `count` places in the tenant's total order (R2). Returns the first."""
    Tenant.objects.filter(pk=tenant.pk).update(next_sequence=F("next_sequence") + count)
    return Tenant.objects.values_list("next_sequence", flat=True).get(pk=tenant.pk) - count


def _set_branches(tenant: Tenant, rows: list[tuple[Job, JobSpec]]) -> None:
    """Give every row its lane, making those that are new. No branch named: a lane of its own."""
    named = {job.branch for _, job in rows if job.branch is not None}
    lane_of = _lanes_named(tenant, sorted(named))
    own: list[Branch] = []
    lanes_of_rows: list[Branch] = []
    for row, job in rows:
        row.own_branch = job.branch is None
        if job.branch is None:
            own.append(Branch(tenant=tenant, name=f"job:{row.uuid}"))
        lanes_of_rows.append(own[-1] if job.branch is None else lane_of[job.branch])
    Branch.objects.bulk_create(own, batch_size=BATCH)
    for (row, _), lane in zip(rows, lanes_of_rows, strict=True):
        row.branch = lane


def _lanes_named(tenant: Tenant, names: list[str]) -> dict[str, Branch]:
    """The tenant's lanes with these names, made where they are new. The caller holds its row."""
    branches = Branch.objects.for_tenant(tenant)
    found: dict[str, Branch] = {}
    for start in range(0, len(names), BATCH):
        found |= {
            each.name: each for each in branches.filter(name__in=names[start : start + BATCH])
        }
    new = [Branch(tenant=tenant, name=name) for name in names if name not in found]
    Branch.objects.bulk_create(new, batch_size=BATCH)
    return found | {each.name: each for each in new}


def _insert_edges(
    tenant_id: int, rows: list[Job], wanted: WorkflowSpec, upstream: Mapping[str, Job]
) -> list[tuple[Job, Job]]:
    by_key = {**upstream, **{row.key: row for row in rows}}
    pairs = [(by_key[key], by_key[job.key]) for job in wanted.jobs for key in job.depends_on]
    Edge.objects.bulk_create(
        [
            Edge(tenant_id=tenant_id, upstream_id=above.pk, downstream_id=below.pk)
            for above, below in pairs
        ],
        batch_size=BATCH,
    )
    return pairs


def _note_heads(workflow: Workflow, rows: list[Job]) -> None:
    """Set on the rows in memory what raising the heads changed in the database."""
    ready = set(
        Job.objects.for_tenant(workflow.tenant)
        .filter(workflow=workflow, state=JobState.READY.value)
        .values_list("pk", flat=True)
    )
    for row in rows:
        if row.pk in ready:
            row.state = JobState.READY.value
