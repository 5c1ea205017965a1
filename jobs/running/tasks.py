"""One attempt of a job from its message to its end: the walls between the queue and the body."""

from __future__ import annotations

import functools
import itertools
import logging
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from django.conf import settings

from jobs import services, types
from jobs.imaging.contract import BadInput, Outcome
from jobs.models import Artifact, Job, Slide
from jobs.running import endings, resultkey, reuse
from jobs.running.artifacts import (
    Desk,
    desk_of,
    discard_attempt,
    discard_unnamed_blocks,
    upstream_artifacts,
)
from jobs.running.checkpoints import JobBlocks
from jobs.running.child import STARTED
from jobs.running.persist import persist
from jobs.running.progress import Reporter, Stopped, StopReason
from jobs.running.reuse import Result
from jobs.slides.roots import BadPath, real_path, release
from jobs.states import Reason
from jobs.types.base import JobType, Task

CLEAR_S = 5.0  # how long a database that is away holds up the next job for files that nobody reads
log = logging.getLogger(__name__)


class Worker(Protocol):
    """Who runs the attempt: named in the lease, shown signs of life, told the limits."""

    @property
    def worker(self) -> str: ...

    def beat(self) -> None: ...

    def say(self, kind: str, content: Any = None) -> None: ...


class NobodyWatching:
    """A plain `rq worker` runs the attempt: nobody renews its lease, the sweep guards it."""

    worker = f"rq-{socket.gethostname()[:60]}-{os.getpid()}"

    def beat(self) -> None:
        """Nobody looks."""

    def say(self, kind: str, content: Any = None) -> None:
        """Nobody listens."""


def run_job(job_pk: int, attempt: int) -> None:
    """The function that RQ messages name. Arguments are ids, so a retry always reads fresh rows."""
    run_attempt(job_pk, attempt, NobodyWatching())


def run_attempt(job_pk: int, attempt: int, worker: Worker) -> bool:
    """Run one attempt to its end. False when this process should run no other job.

    An attempt that is no longer wanted is dropped without a word: its number fences it.
    """
    keep = functools.partial(persist, for_s=settings.LEASE_S, beat=worker.beat)
    asked = itertools.count()
    job = keep(lambda: services.start(job_pk, attempt, worker.worker, again=next(asked) > 0))
    if job is None:
        log.info("job %d attempt %d is not wanted any more", job_pk, attempt)
        return True
    worker.say(STARTED, _limits(job))
    published, healthy = False, True
    try:
        with desk_of(job) as desk:
            published = _run_and_publish(job, desk, worker, keep)
    except Stopped as stop:
        log.info("%s stopped: %s", job, stop.why.value)
        if stop.why is StopReason.CANCELLED:
            keep(lambda: services.finish_cancel(job_pk, attempt))
    except Exception as error:
        healthy = _fail(job, error, keep)
    release()
    _clear(job, published, worker)
    return healthy


def _clear(job: Job, published: bool, worker: Worker) -> None:
    """Remove the files that nobody reads, now that the end is written and no helper adds any."""
    clear = functools.partial(discard_attempt, job.pk, job.attempt)
    if published:
        clear = functools.partial(discard_unnamed_blocks, job)
    try:
        persist(clear, for_s=CLEAR_S, beat=worker.beat)
    except Exception:  # the job is over, and they are nobody's
        log.exception("%s attempt %d: files that nobody needs are left", job, job.attempt)


def _limits(job: Job) -> dict[str, float]:
    """The bounds that a job's parameters set for it."""
    return {
        name: float(job.params[name]) for name in ("stall_s", "timeout_s") if name in job.params
    }


def _run_and_publish(
    job: Job, desk: Desk, worker: Worker, keep: Callable[[Callable[[], bool]], bool]
) -> bool:
    """End the job with an equal one's result, or run the body and store what it made.

    True when the artifacts are the job's.
    """
    kind = type_of(job)
    with Reporter(job, kind, beat=worker.beat) as report:
        source = source_of(job, kind, report.alive)
        done = reuse.take(job, source.key, keep)
        result = _result(job, kind, source, desk, report) if done is None else None
    if result is not None:
        done = keep(lambda: reuse.publish(job, result))
    if not done:
        keep(lambda: services.finish_cancel(job.pk, job.attempt))
    return bool(done)


def _result(job: Job, kind: JobType, source: Source, desk: Desk, report: Reporter) -> Result:
    """What the body made, in the storage."""
    outcome = kind.run(task_of(job, source, desk, report), report)
    stored = desk.store(outcome, beat=report.alive)
    reason = _reason(outcome)
    key = "" if reason else source.key
    if key and not source.is_unchanged(report.alive):
        log.warning("%s: the slide changed meanwhile, so its result is never reused", job)
        key = ""
    return Result(stored, outcome.summary, reason, key)


def type_of(job: Job) -> JobType:
    """The type of the job. Raises BadInput where this worker does not know it."""
    try:
        return types.get(job.job_type)
    except types.UnknownType:
        raise BadInput(
            f"This worker knows no job type {job.job_type!r}. Ask the operator to update it, or "
            "to allow the type, then retry the job."
        ) from None


def _reason(outcome: Outcome) -> str:
    """`gaps` when the body could not read a part of the slide, else none."""
    return Reason.GAPS.value if outcome.summary.get("gaps") else ""


def _fail(job: Job, error: Exception, keep: Callable[[Callable[[], bool]], bool]) -> bool:
    """Write why the body failed. False when memory ran out: a fresh process is safer."""
    reason, sentence = endings.of_error(error)
    expected = reason is Reason.BAD_INPUT
    log.log(
        logging.INFO if expected else logging.ERROR,
        "%s attempt %d: %s",
        job,
        job.attempt,
        sentence,
        exc_info=None if expected else error,
    )
    keep(lambda: services.fail(job.pk, job.attempt, reason, sentence))
    return reason is not Reason.OUT_OF_MEMORY


# --- what the body is given --------------------------------------------------------------


@dataclass(frozen=True)
class Source:
    """What a job reads: its slide, what upstream jobs left, and the key of what it comes to."""

    row: Slide | None = None
    slide: Path | None = None
    given: list[Artifact] = field(default_factory=list)
    key: str = ""

    def is_unchanged(self, beat: Callable[[], None]) -> bool:
        """Whether the slide is still the one that the key was made of."""
        if self.row is None or self.slide is None:
            return True
        return resultkey.is_unchanged(self.row, self.slide, beat=beat)


def source_of(job: Job, kind: JobType, beat: Callable[[], None]) -> Source:
    """What the job reads, looked up and checked now. Raises BadInput."""
    if not kind.needs_slide:
        return Source()
    slide = _slide_path(job, beat)
    given = upstream_artifacts(job)
    return Source(job.slide, slide, given, resultkey.of(job, kind, slide, given, beat=beat))


def task_of(job: Job, source: Source, desk: Desk, report: Reporter, *, helps: bool = False) -> Task:
    """What the body of the job is given, or that of a helper."""
    if source.slide is not None:
        desk.out.mkdir(parents=True, exist_ok=True)
    return Task(
        job_uuid=str(job.uuid),
        job_key=job.key,
        workflow_uuid=str(job.workflow_id),
        tenant_key=job.tenant.key,
        branch=job.branch.name,
        attempt=job.attempt,
        params=job.params,
        out_dir=desk.out,
        slide=source.slide,
        slide_name=source.slide.name if source.slide else "",
        slide_sha256=source.row.sha256 if source.row else "",
        result_key=source.key,
        upstream=_upstream(source.given, desk),
        blocks=JobBlocks(job, helps=helps, copies=desk.copies, beat=report.beat, told=report.found),
    )


def _slide_path(job: Job, beat: Callable[[], None]) -> Path:
    """The slide's file, checked again now, and fetched where it is elsewhere. Raises BadInput."""
    if job.slide is None:
        raise BadInput("The job names no slide. Submit it again with an image_path.")
    try:
        return real_path(job.slide, beat=beat)
    except BadPath as refused:
        raise BadInput(str(refused)) from None


def _upstream(given: list[Artifact], desk: Desk) -> dict[str, dict[str, Path]]:
    """{job type: {kind: local path}}; where several jobs left the same kind, the latest wins."""
    files: dict[str, dict[str, Path]] = {}
    for artifact in given:
        files.setdefault(artifact.job.job_type, {})[artifact.kind] = desk.fetch(artifact)
    return files
