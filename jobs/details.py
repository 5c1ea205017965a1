"""The whole public shape of a job (DESIGN §6): its state, and the lists that events leave out."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

from django.db.models import Prefetch

from jobs.models import Artifact, Edge, Job
from jobs.models.jobs import JobQuerySet
from jobs.shapes import job_state, progress_row


def with_lists(jobs: JobQuerySet) -> JobQuerySet:
    """`jobs` with all that `job_detail` reads: three queries however many jobs there are."""
    edges = (
        Edge.objects.across_tenants("edges of jobs that came through a door")
        .select_related("upstream")
        .only("downstream_id", "upstream__key", "upstream__position")
        .order_by("upstream__position")
    )
    artifacts = Artifact.objects.across_tenants("artifacts of jobs that came through a door")
    return jobs.select_related("branch", "progress_row", "slide").prefetch_related(
        Prefetch("edges_up", queryset=edges),
        Prefetch("artifacts", queryset=artifacts.order_by("-main", "name")),
    )


def job_detail(job: Job) -> dict[str, Any]:
    """The shape of a job that came out of `with_lists`: no queries."""
    row = progress_row(job)
    return {
        **job_state(job),
        "slide_id": str(job.slide.uuid) if job.slide else None,
        "image_path": job.slide.path if job.slide else None,
        "phases": row.phases if row else [],
        "depends_on": [edge.upstream.key for edge in job.edges_up.all()],
        "artifacts": [artifact_shape(job, artifact) for artifact in job.artifacts.all()],
    }


def artifact_shape(job: Job, artifact: Artifact) -> dict[str, Any]:
    """One result file, with the address it is downloaded from."""
    return {
        "name": artifact.name,
        "kind": artifact.kind,
        "main": artifact.main,
        "size": artifact.size,
        "sha256": artifact.sha256,
        "url": f"/api/jobs/{job.uuid}/artifacts/{quote(artifact.name)}",
    }
