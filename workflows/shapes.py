"""The public shape of a workflow (DESIGN §6), the same in answers, events and pages."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from jobs.models import Artifact, Edge, Job
from jobs.shapes import job_detail, moment
from workflows.models import Workflow

PROGRESS_ROW = Job._meta.get_field("progress_row")


def workflow_state(workflow: Workflow) -> dict[str, Any]:
    """The shape without its lists."""
    return {
        "id": str(workflow.pk),
        "name": workflow.name,
        "state": str(workflow.state),
        "progress": workflow.progress,
        "on_failure": workflow.on_failure,
        "created_at": moment(workflow.created_at),
        "finished_at": moment(workflow.finished_at),
    }


def workflow_detail(workflow: Workflow) -> dict[str, Any]:
    """The whole shape: jobs in submitted order, edges as [upstream key, downstream key]."""
    jobs = list(
        Job.objects.for_tenant(workflow.tenant)
        .filter(workflow=workflow)
        .select_related("branch", "progress_row")
        .order_by("position")
    )
    files: dict[int, list[Artifact]] = {}
    artifacts = Artifact.objects.for_tenant(workflow.tenant).filter(job__workflow=workflow)
    for artifact in artifacts.order_by("pk"):
        files.setdefault(artifact.job_id, []).append(artifact)
    return _with_lists(workflow, jobs, edges_of(workflow), files)


def workflow_accepted(
    workflow: Workflow, rows: Iterable[Job], edges: Iterable[tuple[Job, Job]]
) -> dict[str, Any]:
    """The whole shape of a workflow that was just written: no queries, its rows are at hand."""
    jobs = sorted(rows, key=lambda job: job.position)
    for job in jobs:
        PROGRESS_ROW.set_cached_value(job, None)  # else each job would ask for its row
    pairs = sorted(edges, key=lambda pair: (pair[1].position, pair[0].position))
    return _with_lists(workflow, jobs, [(above.pk, below.pk) for above, below in pairs], {})


def _with_lists(
    workflow: Workflow,
    jobs: list[Job],
    pairs: list[tuple[int, int]],
    files: Mapping[int, list[Artifact]],
) -> dict[str, Any]:
    key = {job.pk: job.key for job in jobs}
    needs: dict[int, list[str]] = {}
    for upstream, downstream in pairs:
        needs.setdefault(downstream, []).append(key[upstream])
    return {
        **workflow_state(workflow),
        "jobs": [job_detail(job, needs.get(job.pk, []), files.get(job.pk, [])) for job in jobs],
        "edges": [[key[upstream], key[downstream]] for upstream, downstream in pairs],
    }


def edges_of(workflow: Workflow) -> list[tuple[int, int]]:
    """(upstream, downstream) job pks of a workflow."""
    edges = Edge.objects.for_tenant(workflow.tenant).filter(downstream__workflow=workflow)
    return list(
        edges.order_by("downstream__position", "upstream__position").values_list(
            "upstream_id", "downstream_id"
        )
    )
