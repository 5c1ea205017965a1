"""Pages of one job: how it went, what it left, its cells over the tissue, cancel and retry."""

from __future__ import annotations

import json
import uuid
from dataclasses import dataclass
from typing import Any

from django.contrib import messages
from django.contrib.staticfiles import finders
from django.contrib.staticfiles.storage import staticfiles_storage
from django.db.models import Q
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect
from django.urls import reverse
from django.utils.http import url_has_allowed_host_and_scheme

from jobs import retrying, services, types, words
from jobs.models import Artifact, Edge, Job
from jobs.rows import download_of, downloads_of, loaded, row_of
from jobs.scheduling import explain
from jobs.shapes import progress_row
from jobs.states import FIRST_ACTIVE
from tenants.identity import Identity
from tenants.pages import for_tenant, for_writer, one_of, rows_of, show

VIEWER_SCRIPT = "vendor/openseadragon/openseadragon.min.js"


@dataclass(frozen=True)
class PhaseLine:
    """One phase of a job: done with its seconds, running now, or still to come."""

    word: str
    took: str
    share: float
    now: bool
    done: bool


def find(who: Identity, job_id: uuid.UUID) -> Job:
    """The job of the asking tenant, or 404."""
    job: Job = one_of(loaded(rows_of(Job.objects, who)), uuid=job_id)
    return job


@for_tenant
def job_page(request: HttpRequest, who: Identity, job_id: uuid.UUID) -> HttpResponse:
    """`/jobs/<id>/`: phases, attempts, parameters, files, and why it waits or failed."""
    job = find(who, job_id)
    context = {
        "phase_words": words.PHASES,
        "job": job,
        "row": row_of(job, may_write=who.may_write),
        "why": explain.why(job) if job.status < FIRST_ACTIVE else None,
        "next_step": words.NEXT_STEPS.get(job.reason, "") if job.status.terminal else "",
        "phases": phases_of(job),
        "figures": words.figures(job.summary),
        "files": downloads_of(job),
        "params": json.dumps(job.params, indent=2, ensure_ascii=False, sort_keys=True),
        "upstream": neighbours(who, downstream=job),
        "downstream": neighbours(who, upstream=job),
    }
    return show(request, who, "jobs/job.html", context)


@for_tenant
def viewer_page(request: HttpRequest, who: Identity, job_id: uuid.UUID) -> HttpResponse:
    """`/jobs/<id>/viewer/`: the slide as deep zoom, the job's cells drawn over it."""
    job = find(who, job_id)
    context = {
        "phase_words": words.PHASES,
        "job": job,
        "row": row_of(job, may_write=who.may_write),
        "script": vendor_url(VIEWER_SCRIPT),
        "facts": {
            "job": str(job.uuid),
            "visualization": f"/api/visualization/{job.uuid}/visualization",
        },
        "outline": outline_of(who, job),
    }
    return show(request, who, "jobs/viewer.html", context)


@for_writer
def cancel_job(request: HttpRequest, who: Identity, job_id: uuid.UUID) -> HttpResponse:
    """Cancel one job."""
    job = find(who, job_id)
    try:
        services.cancel(job)
    except services.StaleTransition as error:
        messages.error(request, str(error))
    else:
        messages.success(request, f"{job.key} is being cancelled.")
    return back(request, job)


@for_writer
def retry_job(request: HttpRequest, who: Identity, job_id: uuid.UUID) -> HttpResponse:
    """Put an ended job back in line."""
    job = find(who, job_id)
    try:
        retrying.retry(job)
    except services.StaleTransition as error:
        messages.error(request, str(error))
    else:
        messages.success(request, f"{job.key} is in line again.")
    return back(request, job)


def back(request: HttpRequest, job: Job) -> HttpResponse:
    """To the page that the button stood on, else to the job's own."""
    wanted = request.POST.get("next", "")
    if wanted and url_has_allowed_host_and_scheme(wanted, allowed_hosts=None):
        return redirect(wanted)
    return redirect(reverse("job-page", args=[job.uuid]))


def vendor_url(name: str) -> str:
    """The address of a front-end library; empty where set-up could not fetch it."""
    if finders.find(name) is None:
        return ""
    try:
        return str(staticfiles_storage.url(name))
    except ValueError:  # it came after the static files were gathered
        return ""


def outline_of(who: Identity, job: Job) -> str:
    """The address of the tissue outline: the job's own, else that of the mask it uses; or empty."""
    used = Q(job=job) | Q(job__edges_down__downstream=job)
    outlines = rows_of(Artifact.objects, who).filter(used, kind="tissue_geojson")
    found = outlines.select_related("job").order_by("-pk").first()
    return download_of(found.job, found).url if found else ""


def neighbours(who: Identity, **end: Job) -> list[dict[str, Any]]:
    """The jobs across the edges of one job: what it waits for, or what waits for it."""
    other = "upstream" if "downstream" in end else "downstream"
    edges = rows_of(Edge.objects, who).filter(**end).select_related(other)
    found = [getattr(edge, other) for edge in edges.order_by(f"{other}__sequence")[:50]]
    return [
        {
            "id": each.uuid,
            "key": each.key,
            "state": each.status.public,
            "word": words.state(each.status.public, each.reason),
        }
        for each in found
    ]


def phases_of(job: Job) -> list[PhaseLine]:
    """The phases of the job's type with their durations, the present one marked."""
    ticks = progress_row(job)
    timed = {
        each["name"]: float(each.get("seconds", 0)) for each in (ticks.phases if ticks else [])
    }
    current = ticks.phase if ticks and job.status.active else ""
    longest = max(timed.values(), default=0.0) or 1.0
    return [
        PhaseLine(
            word=words.phase(name),
            took=words.span(timed[name]) if name in timed else "",
            share=round(timed.get(name, 0.0) / longest, 3),
            now=name == current,
            done=name in timed and name != current,
        )
        for name in phase_names(job, list(timed))
    ]


def phase_names(job: Job, timed: list[str]) -> list[str]:
    """The phases the type declares; those on record for a type that is gone."""
    try:
        declared = list(types.get(job.job_type).phases)
    except types.UnknownType:
        return timed
    return declared + [name for name in timed if name not in declared]
