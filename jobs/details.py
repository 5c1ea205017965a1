"""A job with its lists and its surroundings, as `GET /api/jobs` answers it."""

from __future__ import annotations

from typing import Any

from django.db.models import Prefetch

from jobs.models import Artifact, Edge, Job
from jobs.shapes import job_detail, progress_row
from tenants.scoping import TenantQuerySet


def with_lists(jobs: TenantQuerySet) -> TenantQuerySet:
    """`jobs` with all that `whole` reads: three queries however many jobs there are."""
    edges = (
        Edge.objects.across_tenants("edges of jobs that came through a door")
        .select_related("upstream")
        .only("downstream_id", "upstream__key", "upstream__position")
        .order_by("upstream__position")
    )
    artifacts = Artifact.objects.across_tenants("artifacts of jobs that came through a door")
    return jobs.select_related("branch", "progress_row", "slide").prefetch_related(
        Prefetch("edges_up", queryset=edges),
        Prefetch("artifacts", queryset=artifacts.order_by("pk")),
    )


def whole(job: Job) -> dict[str, Any]:
    """The whole shape of a job that came out of `with_lists`: no queries."""
    row = progress_row(job)
    needs = [edge.upstream.key for edge in job.edges_up.all()]
    return {
        **job_detail(job, needs, list(job.artifacts.all())),
        "phases": row.phases if row else [],
        "slide_id": str(job.slide.uuid) if job.slide else None,
        "image_path": job.slide.path if job.slide else None,
    }
