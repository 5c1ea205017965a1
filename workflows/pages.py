"""The dashboard and the page of one workflow, with the demo button, cancel and retry."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from typing import Any

from django.conf import settings
from django.contrib import messages
from django.db.models import Q
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect
from django.urls import reverse

from jobs import words
from jobs.models import Job
from jobs.rows import loaded
from jobs.rows import rows_of as lines_of
from jobs.services import StaleTransition
from jobs.slides.bucket import SlideAway
from jobs.states import FIRST_TERMINAL, JobState, Reason
from tenants.identity import Identity
from tenants.pages import for_tenant, for_writer, one_of, rows_of, show
from workflows import cards, figures, submission
from workflows.models import Workflow
from workflows.spec import SpecError

DEMO_SLIDE = "CMU-1-Small-Region.svs"
CARDS_A_PAGE = 9
ROWS_A_PAGE = 50
DRAWN = 200
DRAWN_BEFORE = 20
FAILED_OR_GAPS = Q(state=JobState.FAILED.value) | Q(
    state=JobState.SUCCEEDED.value, reason=Reason.GAPS.value
)


@dataclass(frozen=True)
class Slice:
    """One page of a list, and where the ones beside it are."""

    items: list[Any]
    newer: int | None
    older: int | None


def sliced(rows: Any, request: HttpRequest, name: str, size: int) -> Slice:
    """The page of `rows` that the query parameter `name` asks for; nonsense means the first."""
    text = request.GET.get(name, "1")
    page = min(max(int(text), 1), 10_000) if text.isascii() and text.isdigit() else 1
    found = list(rows[(page - 1) * size : page * size + 1])
    return Slice(
        items=found[:size],
        newer=page - 1 if page > 1 else None,
        older=page + 1 if len(found) > size else None,
    )


@for_tenant
def dashboard(request: HttpRequest, who: Identity) -> HttpResponse:
    """`/`: the system strip, workflow cards, the newest jobs; a demo button where all is empty."""
    workflows = sliced(
        rows_of(Workflow.objects, who).order_by("-created_at", "id"),
        request,
        "workflows",
        CARDS_A_PAGE,
    )
    jobs = sliced(loaded(rows_of(Job.objects, who)).order_by("-id"), request, "jobs", ROWS_A_PAGE)
    context = {
        "phase_words": words.PHASES,
        "strip": figures.strip(who),
        "cards": cards.cards_of(who, workflows.items),
        "workflows": workflows,
        "jobs": jobs,
        "rows": lines_of(
            jobs.items, may_write=who.may_write, waits_for=cards.waits_for(who, jobs.items)
        ),
        "demo": demo_facts(who),
    }
    return show(request, who, "workflows/dashboard.html", context)


def demo_facts(who: Identity) -> dict[str, Any]:
    """Whether the demo button works, else why not."""
    reason = ""
    if not who.may_write:
        reason = f"You are a viewer of {who.tenant}: only its members submit jobs."
    elif not (settings.SLIDE_ROOT / DEMO_SLIDE).is_file():
        reason = f"{DEMO_SLIDE} is not in the slide folder: run bin/setup, which fetches it."
    return {"slide": DEMO_SLIDE, "reason": reason}


@for_writer
def run_demo(request: HttpRequest, who: Identity) -> HttpResponse:
    """Submit tissue and cells on the demo slide, as a client would."""
    body = {
        "name": "Tissue and cells on the demo slide",
        "jobs": [
            {
                "job_id": "tissue",
                "job_type": "tissue_mask",
                "branch": "tissue",
                "image_path": DEMO_SLIDE,
            },
            {
                "job_id": "cells",
                "job_type": "cell_segmentation",
                "branch": "cells",
                "image_path": DEMO_SLIDE,
                "depends_on": ["tissue"],
            },
        ],
    }
    try:
        workflow = submission.submit(who.tenant, body, user=who.user)
    except SpecError as error:
        messages.error(request, f"The demo could not be submitted. {sentences(error.errors)}")
    except (submission.TooManyPending, SlideAway) as error:
        messages.error(request, str(error))
    else:
        return redirect(reverse("workflow-page", args=[workflow.pk]))
    return redirect(reverse("dashboard"))


def sentences(errors: Any) -> str:
    """The sentences of a nested error, one after the other, each once."""
    if isinstance(errors, dict):
        errors = list(errors.values())
    if isinstance(errors, list):
        return " ".join(dict.fromkeys(sentences(each) for each in errors))
    return str(errors)


@for_tenant
def workflow_page(request: HttpRequest, who: Identity, workflow_id: uuid.UUID) -> HttpResponse:
    """`/workflows/<id>/`: its lanes as a picture, its jobs as rows, cancel and retry."""
    workflow: Workflow = one_of(rows_of(Workflow.objects, who), pk=workflow_id)
    (card,) = cards.cards_of(who, [workflow])
    jobs = rows_of(Job.objects, who).filter(workflow=workflow)
    listed = sliced(loaded(jobs).order_by("position", "id"), request, "jobs", ROWS_A_PAGE)
    context = {
        "phase_words": words.PHASES,
        "workflow": workflow,
        "card": card,
        "jobs": listed,
        "rows": lines_of(
            listed.items, may_write=who.may_write, waits_for=cards.waits_for(who, listed.items)
        ),
        "may_cancel": who.may_write and card.live > 0,
        "may_retry": who.may_write and jobs.filter(FAILED_OR_GAPS).exists(),
        **picture_facts(who, jobs, may_write=who.may_write),
    }
    return show(request, who, "workflows/workflow.html", context)


def picture_facts(who: Identity, jobs: Any, *, may_write: bool) -> dict[str, Any]:
    """The picture of up to DRAWN jobs: of larger workflows the stretch round the first live one."""
    ordered = jobs.select_related("branch", "progress_row", "slide").order_by("sequence")
    total = jobs.count()
    start = 0
    if total > DRAWN:
        live = jobs.filter(state__lt=int(FIRST_TERMINAL)).order_by("sequence")
        first = live.values_list("sequence", flat=True).first()
        before = jobs.filter(sequence__lt=first).count() if first is not None else total
        start = min(max(before - DRAWN_BEFORE, 0), total - DRAWN)
    drawn = list(loaded(ordered)[start : start + DRAWN])
    lines = lines_of(drawn, may_write=may_write)
    picture, nodes = cards.picture_of(drawn, lines, cards.edges_of(who, [job.pk for job in drawn]))
    return {"picture": picture, "nodes": nodes, "drawn": len(drawn), "total": total}


@for_writer
def cancel_workflow(request: HttpRequest, who: Identity, workflow_id: uuid.UUID) -> HttpResponse:
    """Cancel every job that is not over."""
    workflow = one_of(rows_of(Workflow.objects, who), pk=workflow_id)
    try:
        submission.cancel(workflow)
    except submission.Conflict as error:
        messages.error(request, str(error))
    else:
        messages.success(request, "Every job that was not over is being cancelled.")
    return redirect(reverse("workflow-page", args=[workflow_id]))


@for_writer
def retry_workflow(request: HttpRequest, who: Identity, workflow_id: uuid.UUID) -> HttpResponse:
    """Retry what failed, and what that ended; else what has gaps."""
    workflow = one_of(rows_of(Workflow.objects, who), pk=workflow_id)
    try:
        submission.retry(workflow)
    except (submission.Conflict, StaleTransition) as error:
        messages.error(request, str(error))
    else:
        messages.success(request, "What failed is in line again, and what waits for it.")
    return redirect(reverse("workflow-page", args=[workflow_id]))
