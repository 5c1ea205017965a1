"""The public shape of a job (DESIGN §6), the same in answers, events and pages."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from django.core.exceptions import ObjectDoesNotExist

from jobs.states import JobState, Reason

if TYPE_CHECKING:
    from jobs.models import Artifact, Event, Job


def job_state(job: Job) -> dict[str, Any]:
    """The shape of `job` without its lists: no queries when branch and progress_row are loaded."""
    row = progress_row(job)
    return {
        "id": str(job.uuid),
        "job_id": job.key,
        "workflow_id": str(job.workflow_id),
        "branch": job.branch.name,
        "job_type": job.job_type,
        "queue": job.queue,
        "state": job.status.public,
        "reason": reason_of(job),
        "progress": progress_of(job),
        "phase": row.phase if row else "",
        "tiles_done": row.tiles_done if row else 0,
        "tiles_total": row.tiles_total if row else 0,
        "attempt": job.attempt,
        "max_attempts": job.max_attempts,
        "params": job.params,
        "priority": job.priority,
        "error": job.error,
        "summary": job.summary,
        "created_at": moment(job.created_at),
        "queued_at": moment(job.queued_at),
        "started_at": moment(job.started_at),
        "finished_at": moment(job.finished_at),
    }


def job_event(job: Job, event: Event) -> dict[str, Any]:
    """The shape of `job` as it was at this event of it. No queries when its branch is loaded."""
    state = JobState(event.state or 0)
    return {
        "id": str(job.uuid),
        "job_id": job.key,
        "workflow_id": str(job.workflow_id),
        "branch": job.branch.name,
        "job_type": job.job_type,
        "queue": job.queue,
        "state": state.public,
        "reason": event.reason,
        "progress": round(event.progress, 4),
        "phase": event.phase,
        "tiles_done": event.tiles_done,
        "tiles_total": event.tiles_total,
        "attempt": event.attempt,
        "max_attempts": job.max_attempts,
        "params": job.params,
        "priority": job.priority,
        "error": event.error,
        "summary": job.summary if state.terminal else {},
        "created_at": moment(job.created_at),
        "queued_at": moment(event.queued_at),
        "started_at": moment(event.started_at),
        "finished_at": moment(event.finished_at),
    }


def job_detail(job: Job, depends_on: list[str], artifacts: list[Artifact]) -> dict[str, Any]:
    """The whole shape of a job."""
    return {
        **job_state(job),
        "depends_on": depends_on,
        "artifacts": [artifact_shape(job, artifact) for artifact in artifacts],
    }


def cells_tick(job: Job, chunk: str, count: int, box: Sequence[float]) -> dict[str, Any]:
    """`count` cells of a running job became readable in `box` (x0, y0, x1, y1, level-0 pixels).

    chunk  the block they belong to, `row_col`
    """
    return {"job": str(job.uuid), "chunk": chunk, "count": count, "bbox": [*map(float, box)]}


def merged_ticks(before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    """Two cells ticks of one job as one: the latest chunk, all cells, the box round both."""
    (left, top, right, bottom), (x0, y0, x1, y1) = before["bbox"], after["bbox"]
    box = [min(left, x0), min(top, y0), max(right, x1), max(bottom, y1)]
    return {**after, "count": before["count"] + after["count"], "bbox": box}


def artifact_shape(job: Job, artifact: Artifact) -> dict[str, Any]:
    """One stored file of a job and where to get it."""
    return {
        "name": artifact.name,
        "kind": artifact.kind,
        "size": artifact.size,
        "sha256": artifact.sha256,
        "url": f"/api/jobs/{job.uuid}/artifacts/{quote(artifact.name)}",
    }


def reason_of(job: Job) -> str:
    """Why the job stands where it stands; `/why` looks deeper."""
    if job.status is not JobState.PENDING:
        return job.reason
    return (Reason.DEPENDENCY if job.upstream_left else Reason.BRANCH).value


def progress_of(job: Job) -> float:
    """0-1; an ended job is at 1.0 whatever it ended as: nothing of it is left to do."""
    if job.status.terminal:
        return 1.0
    row = progress_row(job)
    return round(row.progress, 4) if row else 0.0


def progress_row(job: Job) -> Any:
    """The progress row of `job`, or None before its first tick."""
    try:
        return job.progress_row
    except ObjectDoesNotExist:
        return None


def moment(value: dt.datetime | None) -> str | None:
    """ISO 8601 in UTC, as the API writes it."""
    return None if value is None else value.astimezone(dt.UTC).isoformat().replace("+00:00", "Z")
