"""A job as pages show it: one line of a table, with words, downloads and what may be done."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from jobs import words
from jobs.models import Artifact, Job
from jobs.shapes import progress_of, progress_row
from jobs.states import JobState, may_be_retried


@dataclass(frozen=True)
class Download:
    """A result file as a link."""

    name: str
    label: str
    hint: str
    url: str
    size: int
    sha256: str
    in_rows: bool


@dataclass(frozen=True)
class JobRow:
    """What `_job_row.html` shows; `state` is the public name, `word` the one for people."""

    id: str
    key: str
    workflow_id: str
    type: str
    branch: str
    state: str
    word: str
    progress: float
    doing: str
    note: str
    result: str
    failed: bool
    took: str
    slide: str
    downloads: tuple[Download, ...]
    may_cancel: bool
    may_retry: bool
    has_viewer: bool

    @property
    def percent(self) -> int:
        """Whole percents, never 100 before the end."""
        return 100 if self.progress >= 1 else int(self.progress * 100)


def row_of(job: Job, *, may_write: bool, waits_for: Iterable[str] = ()) -> JobRow:
    """The line of `job`: no query when branch, progress_row, slide and artifacts are loaded."""
    state = job.status.public
    ticks = progress_row(job)
    phase = ticks.phase if ticks and job.status.active else ""
    return JobRow(
        id=str(job.uuid),
        key=job.key,
        workflow_id=str(job.workflow_id),
        type=words.job_type(job.job_type),
        branch="" if job.own_branch else job.branch.name,
        state=state,
        word=words.state(state, job.reason, phase),
        progress=progress_of(job),
        doing=words.doing(phase, ticks.tiles_done, ticks.tiles_total) if phase else "",
        note=note_of(job, waits_for),
        result=words.result(job.summary) if job.status is JobState.SUCCEEDED else "",
        failed=job.status is JobState.FAILED,
        took=took(job),
        slide=job.slide.path if job.slide else "",
        downloads=tuple(each for each in downloads_of(job) if each.in_rows),
        may_cancel=may_write and not job.status.terminal and job.cancel_requested_at is None,
        may_retry=may_write and may_be_retried(job.status, job.reason),
        has_viewer=job.slide_id is not None,
    )


def note_of(job: Job, waits_for: Iterable[str] = ()) -> str:
    """Why the job stands where it stands, in a sentence; empty when all is as expected."""
    if job.status.terminal:
        return job.error or words.ENDS.get(job.reason, "")
    if job.status.active:
        return words.ENDS["cancelling"] if job.cancel_requested_at else ""
    return _waits(job, [*waits_for])


def _waits(job: Job, waits_for: list[str]) -> str:
    if waits_for:
        return f"Waits for {', '.join(waits_for[:3])}{' and others' if waits_for[3:] else ''}."
    if job.upstream_left:
        return words.WAITS["dependency"]
    if job.status is JobState.PENDING:
        return words.WAITS["branch"]
    if job.status is JobState.RETRY_WAIT:
        return (
            f"Attempt {job.attempt} failed: {job.error}" if job.error else words.WAITS["retry_wait"]
        )
    return words.WAITS.get(job.reason, "Next in its branch: waits for its turn.")


def took(job: Job) -> str:
    """How long it ran; empty before its end."""
    if job.started_at is None or job.finished_at is None:
        return ""
    return words.span(max((job.finished_at - job.started_at).total_seconds(), 0.0))


def download_of(job: Job, artifact: Artifact) -> Download:
    label, hint = words.FILES.get(artifact.kind, (artifact.kind.replace("_", " "), ""))
    return Download(
        name=artifact.name,
        label=label,
        hint=hint,
        url=f"/api/jobs/{job.uuid}/artifacts/{quote(artifact.name)}",
        size=artifact.size,
        sha256=artifact.sha256,
        in_rows=artifact.kind in words.IN_ROWS,
    )


def downloads_of(job: Job) -> list[Download]:
    """The files of `job`, what most people want first."""
    order = {kind: place for place, kind in enumerate(words.FILES)}
    files = sorted(job.artifacts.all(), key=lambda each: (order.get(each.kind, 99), each.name))
    return [download_of(job, each) for each in files]


def rows_of(
    jobs: Iterable[Job], *, may_write: bool, waits_for: Mapping[int, list[str]] | None = None
) -> list[JobRow]:
    """The lines of `jobs`; `waits_for` names the unfinished upstream keys by job pk."""
    needs = waits_for or {}
    return [row_of(job, may_write=may_write, waits_for=needs.get(job.pk, ())) for job in jobs]


def loaded(jobs: Any) -> Any:
    """The queryset with everything that `row_of` reads."""
    return jobs.select_related("branch", "progress_row", "slide").prefetch_related("artifacts")
