"""The one way in: from a checked spec to rows, in one transaction, or nothing at all."""

from __future__ import annotations

import datetime as dt
import json
import time
import uuid
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from django.conf import settings
from django.db import transaction
from django.db.models import F
from django.db.models.functions import Now
from django.utils import timezone

from jobs import events, retrying, services, types
from jobs.models import Branch, Edge, Job, Slide
from jobs.scheduling import lanes
from jobs.slides import roots
from jobs.states import JobState, Reason
from tenants.models import Tenant, User
from workflows import idempotency, progress, shapes, spec
from workflows.idempotency import Once
from workflows.models import Workflow
from workflows.spec import JobSpec, SpecError, TypeFacts, WorkflowSpec

BATCH = 500
FULL_FOR_S = 1.0
"""How long a count that was too high answers further submissions, while little moves."""
_full: dict[int, tuple[float, Tenant, int]] = {}
"""Of a tenant: when that was, its row then, and how many jobs were live."""


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


def _pinner() -> Callable[[JobSpec], dict[str, Any]]:
    """The params that a job is kept with; of equal ones looked up once."""
    known: dict[tuple[str, str], Mapping[str, Any]] = {}

    def pin(job: JobSpec) -> dict[str, Any]:
        look_up = types.get(job.job_type).pin
        if look_up is None:
            return dict(job.params)
        asked = (job.job_type, json.dumps(job.params, sort_keys=True))
        if asked not in known:
            known[asked] = look_up(job.params)
        return dict(known[asked])

    return pin


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
    if not tenant._state.adding:
        return _accept(tenant, wanted, user=user, once=once)
    with transaction.atomic():  # its first write, which makes it: a refused one does not
        tenant, _ = Tenant.objects.get_or_create(key=tenant.key)
        return _accept(tenant, wanted, user=user, once=once)


def _accept(
    tenant: Tenant, wanted: WorkflowSpec, *, user: User | None, once: Once | None
) -> Submitted:
    """Write what was checked. Whatever can be made without the tenant's row is made before it is
    taken: until the commit nothing of the tenant starts or ends."""
    _refuse_if_full(tenant, len(wanted.jobs))
    workflow = Workflow(
        tenant=tenant,
        name=wanted.name,
        on_failure=wanted.on_failure,
        created_by=user,
        created_at=timezone.now(),
    )
    rows = _rows(workflow, wanted, _slides(tenant, enumerate(wanted.jobs)), user)
    with transaction.atomic():
        _make_own_lanes(rows)
        tenant = events.lock(tenant.pk)
        if (earlier := _workflow_before(tenant, once)) is not None:
            transaction.set_rollback(True)
            return Submitted(earlier)
        _check_cap(tenant, len(rows))
        workflow.save(force_insert=True)
        edges = _insert(tenant, wanted, rows)
        lanes.raise_heads(tenant.pk, {row.branch_id for row in rows if not row.own_branch})
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
    _refuse_if_full(tenant, 1)
    slides = _slides(tenant, [(None, wanted)])
    with transaction.atomic():
        tenant = events.lock(tenant.pk)
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
        last = jobs.order_by("-position").values_list("position", flat=True).first()
        whole = WorkflowSpec(workflow.name, workflow.on_failure, (wanted,), (0,))
        rows = _rows(workflow, whole, slides, user, upstream=upstream)
        rows[0].position = 0 if last is None else last + 1
        _make_own_lanes(rows)
        _insert(tenant, whole, rows, upstream=upstream)
        (row,) = rows
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
    """Retry every failed job, and what those ended; where none failed, those with gaps.

    Raises Conflict when there is nothing to retry, or a job can not be retried now.
    """
    with transaction.atomic():
        events.lock(workflow.tenant_id)
        jobs = Job.objects.for_tenant(workflow.tenant).filter(workflow=workflow)
        failed = jobs.filter(state=JobState.FAILED.value)
        gapped = jobs.filter(state=JobState.SUCCEEDED.value, reason=Reason.GAPS.value)
        chosen = list(failed.order_by("sequence")) or list(gapped.order_by("sequence"))
        if not chosen:
            raise Conflict(f"Nothing in {workflow.name} failed, and no result of it has gaps.")
        try:
            for job in chosen:
                retrying.retry(job)
        except services.StaleTransition as error:
            raise Conflict(str(error)) from error
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


def _refuse_if_full(tenant: Tenant, jobs: int) -> None:
    """Raise TooManyPending where a count of a moment ago says so.

    A client that does not wait would else have all that is pending counted each time. Every job
    that ends is told in an event: after a thousandth of the cap of them it is worth a count.
    """
    counted_at, before, waiting = _full.get(tenant.pk, (0.0, tenant, 0))
    most = settings.MAX_PENDING_JOBS
    if not jobs or waiting + jobs <= most or time.monotonic() - counted_at > FULL_FOR_S:
        return
    now = Tenant.objects.get(pk=tenant.pk)
    ended = now.next_event - before.next_event  # at most, when nothing became live
    if now.next_sequence == before.next_sequence and 0 <= ended <= most // 1000:
        raise _too_many(waiting)


def _too_many(waiting: int) -> TooManyPending:
    most = settings.MAX_PENDING_JOBS
    return TooManyPending(
        f"{waiting} jobs of yours wait already, {most} may: try again when some have ended."
    )


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
        if len(_full) >= 1000:
            _full.clear()
        _full[tenant.pk] = (time.monotonic(), tenant, waiting)
        raise _too_many(waiting)
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
    places: dict[str | uuid.UUID, roots.Place] = {}
    faults: dict[str, Any] = {}
    for number, job in jobs:
        wanted = job.image_path or job.slide_id
        if wanted is None or wanted in slides or wanted in places:
            continue
        try:
            if job.image_path:
                places[wanted] = _place(tenant, job.image_path)
            else:
                slides[wanted] = _slide(tenant, job.slide_id)
        except SpecError as error:
            faults[str(number)] = error.errors
    if "None" in faults:
        raise SpecError(faults["None"])
    if faults:
        raise SpecError({"jobs": faults})
    rows = roots.rows_of(tenant, places.values())
    return slides | {path: rows[place] for path, place in places.items()}


def _place(tenant: Tenant, image_path: str) -> roots.Place:
    try:
        return roots.locate(tenant, image_path)
    except roots.BadPath as error:
        raise SpecError({"image_path": [str(error)]}) from error


def _slide(tenant: Tenant, slide_id: uuid.UUID | None) -> Slide:
    slide = roots.by_id(tenant, slide_id) if slide_id else None
    if slide is None:
        raise SpecError({"slide_id": ["No slide of yours has this id: see GET /api/slides."]})
    return slide


def _rows(
    workflow: Workflow,
    wanted: WorkflowSpec,
    slides: Mapping[str | uuid.UUID, Slide],
    user: User | None,
    *,
    upstream: Mapping[str, Job] | None = None,
) -> list[Job]:
    """The jobs in their total order (R2), but for lane and number.

    upstream  jobs of the workflow that exist already, by key
    """
    rows = []
    pin = _pinner()
    for position in wanted.order:
        job = wanted.jobs[position]
        row = _row(job, workflow, user, upstream or {})
        row.params = pin(job)
        row.position = position
        row.slide = slides.get(job.image_path or job.slide_id or "")
        rows.append(row)
    return rows


def _row(job: JobSpec, workflow: Workflow, user: User | None, upstream: Mapping[str, Job]) -> Job:
    left = len(job.depends_on) - sum(r.status is JobState.SUCCEEDED for r in upstream.values())
    # alone in its lane it is the head, whatever else happens
    ready = job.branch is None and not left
    # ids, not objects: of 10,000 rows that is a third of the time
    return Job(
        tenant_id=workflow.tenant_id,
        workflow_id=workflow.pk,
        key=job.key,
        own_branch=job.branch is None,
        job_type=job.job_type,
        queue=types.get(job.job_type).queue_for(job.params),
        priority=job.priority,
        on_failure=workflow.on_failure,
        max_attempts=settings.MAX_ATTEMPTS,
        state=JobState.READY.value if ready else JobState.PENDING.value,
        upstream_left=left,
        created_by_id=user.pk if user else None,
        member=user.pk if user else 0,
        created_at=timezone.now(),
    )


def _make_own_lanes(rows: list[Job]) -> None:
    """A lane for each job that names none: nobody else knows it, so it needs no lock."""
    alone = [row for row in rows if row.own_branch]
    own = [Branch(tenant_id=row.tenant_id, name=f"job:{row.uuid}") for row in alone]
    Branch.objects.bulk_create(own, batch_size=BATCH)
    for row, lane in zip(alone, own, strict=True):
        row.branch = lane


def _insert(
    tenant: Tenant,
    wanted: WorkflowSpec,
    rows: list[Job],
    *,
    upstream: Mapping[str, Job] | None = None,
) -> list[tuple[Job, Job]]:
    """Write named lanes, jobs and edges. The caller holds the tenant's row."""
    named = {job.branch for job in wanted.jobs if job.branch is not None}
    lane_of = _lanes_named(tenant, sorted(named))
    first, now = _take_sequences(tenant, len(rows))
    for row, position in zip(rows, wanted.order, strict=True):
        row.sequence = first
        first += 1
        if row.state == JobState.READY:
            row.ready_at = now
        if (branch := wanted.jobs[position].branch) is not None:
            row.branch = lane_of[branch]
    Job.objects.bulk_create(rows, batch_size=BATCH)
    return _insert_edges(tenant.pk, rows, wanted, upstream or {})


def _take_sequences(tenant: Tenant, count: int) -> tuple[int, dt.datetime]:
    """Allocate `count` places in the tenant's total order (R2). Returns the first, and the
    database's moment: promotions are timed by its clock, not by this machine's."""
    own = Tenant.objects.filter(pk=tenant.pk)
    own.update(next_sequence=F("next_sequence") + count)
    end, now = own.values_list("next_sequence", Now()).get()
    return end - count, now


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
