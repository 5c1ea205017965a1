"""One attempt of a job from its message to its end: the walls between the queue and the body."""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from django.conf import settings

from jobs import services, types
from jobs.imaging.contract import BadInput, Outcome
from jobs.models import Artifact, Job
from jobs.running import endings, resultkey
from jobs.running.artifacts import Desk, desk_of, upstream_artifacts
from jobs.running.child import STARTED
from jobs.running.persist import persist
from jobs.running.progress import Reporter, Stopped, StopReason
from jobs.slides.roots import BadPath, real_path
from jobs.states import Reason
from jobs.types.base import JobType, Task

log = logging.getLogger(__name__)


class Worker(Protocol):
    """Who runs the attempt: named in the lease, shown signs of life, told the limits."""

    @property
    def worker(self) -> str: ...

    def beat(self) -> None: ...

    def say(self, kind: str, content: Any = None) -> None: ...


class NobodyWatching:
    """A plain `rq worker` runs the attempt: nobody renews its lease, the sweep guards it."""

    worker = f"rq-{os.getpid()}"

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
    job = keep(lambda: services.start(job_pk, attempt, worker.worker))
    if job is None:
        log.info("job %d attempt %d is not wanted any more", job_pk, attempt)
        return True
    worker.say(STARTED, _limits(job))
    try:
        with desk_of(job) as desk:
            desk.published = _run_and_publish(job, desk, worker, keep)
    except Stopped as stop:
        log.info("%s stopped: %s", job, stop.why.value)
        if stop.why is StopReason.CANCELLED:
            keep(lambda: services.finish_cancel(job_pk, attempt))
    except Exception as error:
        return _fail(job, error, keep)
    return True


def _limits(job: Job) -> dict[str, float]:
    """The bounds that a job's parameters set for it."""
    return {
        name: float(job.params[name]) for name in ("stall_s", "timeout_s") if name in job.params
    }


def _run_and_publish(
    job: Job, desk: Desk, worker: Worker, keep: Callable[[Callable[[], bool]], bool]
) -> bool:
    """Run the body, store what it made, end the job. True when the artifacts are the job's."""
    kind = _type_of(job)
    with Reporter(job, kind, beat=worker.beat) as report:
        outcome = kind.run(_task(job, kind, desk, report.alive), report)
        stored = desk.store(outcome, beat=report.alive)
    done = keep(
        lambda: services.succeed(
            job.pk,
            job.attempt,
            artifacts=stored,
            summary=dict(outcome.summary),
            reason=_reason(outcome),
        )
    )
    if not done:
        keep(lambda: services.finish_cancel(job.pk, job.attempt))
    return done


def _type_of(job: Job) -> JobType:
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


def _task(job: Job, kind: JobType, desk: Desk, beat: Callable[[], None]) -> Task:
    slide = _slide_path(job) if kind.needs_slide else None
    given = upstream_artifacts(job) if kind.needs_slide else []
    if slide is not None:
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
        slide=slide,
        slide_name=slide.name if slide else "",
        result_key=resultkey.of(job, slide, given, beat=beat) if slide else "",
        upstream=_upstream(given, desk),
    )


def _slide_path(job: Job) -> Path:
    """The slide's file, checked again now. Raises BadInput."""
    if job.slide is None:
        raise BadInput("The job names no slide. Submit it again with an image_path.")
    try:
        return real_path(job.slide)
    except BadPath as refused:
        raise BadInput(str(refused)) from None


def _upstream(given: list[Artifact], desk: Desk) -> dict[str, dict[str, Path]]:
    """{job type: {kind: local path}}; where several jobs left the same kind, the latest wins."""
    files: dict[str, dict[str, Path]] = {}
    for artifact in given:
        files.setdefault(artifact.job.job_type, {})[artifact.kind] = desk.fetch(artifact)
    return files
