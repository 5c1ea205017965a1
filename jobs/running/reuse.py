"""Ending a job with its result, where one with an equal key has the bytes already: with those (R10)."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from django.db import transaction

from jobs import blobs, events, services
from jobs.models import Job
from jobs.services import StoredArtifact
from jobs.states import JobState, Reason

MOST_SOURCES = 3
"""Equal jobs that are looked at: they share their bytes, unless a storage lost some."""
log = logging.getLogger(__name__)


class BytesGone(Exception):
    """The bytes were there a moment ago, and were deleted since."""


@dataclass(frozen=True)
class Result:
    """What a job is ended with. key  what it is a function of; "" is never reused."""

    artifacts: Iterable[StoredArtifact]
    summary: Mapping[str, Any]
    reason: str
    key: str


def publish(job: Job, result: Result) -> bool:
    """End `job` with `result`, its bytes counted. False when fenced or cancelled."""
    files = list(result.artifacts)
    if not files:
        return _succeed(job, result, files)
    lost = blobs.lost(job.tenant_id, files)
    with transaction.atomic():
        events.lock(job.tenant_id)
        done = _succeed(job, result, blobs.share(job.tenant_id, files, lost))
        if not done:
            transaction.set_rollback(True)
    return done


def _succeed(job: Job, result: Result, files: list[StoredArtifact]) -> bool:
    return services.succeed(
        job.pk,
        job.attempt,
        artifacts=files,
        summary=dict(result.summary),
        reason=result.reason,
        result_key=result.key,
    )


def take(job: Job, key: str, keep: Callable[[Callable[[], bool]], bool]) -> bool | None:
    """End `job` with the bytes of an equal one. False when fenced or cancelled, None: run it."""
    if not key or job.params.get("reuse") is False:
        return None
    for source in _equal_jobs(job, key):
        files = [_own(artifact, source, job) for artifact in source.artifacts.order_by("pk")]
        if not files or not all(blobs.is_stored(file.path, file.size) for file in files):
            continue
        result = Result(files, source.summary, Reason.REUSED.value, key)
        try:
            return keep(lambda result=result: _publish_again(job, result))  # type: ignore[misc]
        except BytesGone:
            log.info("%s: the result of %s was deleted just now", job, source)
    return None


def _equal_jobs(job: Job, key: str) -> list[Job]:
    """Jobs of the tenant that succeeded with this key and without gaps, the latest first."""
    # the second condition is that of the index
    rows = Job.objects.for_tenant(job.tenant).filter(result_key=key).exclude(result_key="")
    whole = rows.filter(state=JobState.SUCCEEDED.value).exclude(reason=Reason.GAPS.value)
    return list(whole.order_by("-id")[:MOST_SOURCES])


def _own(artifact: Any, source: Job, job: Job) -> StoredArtifact:
    """The artifact of `source` as one of `job`: the same bytes under its own name."""
    name = artifact.name
    for theirs, ours in (
        (f"{source.uuid}_", f"{job.uuid}_"),
        (f"{source.workflow_id}_{source.key}_", f"{job.workflow_id}_{job.key}_"),
    ):
        if name.startswith(theirs):
            name = ours + name.removeprefix(theirs)
            break
    return StoredArtifact(
        name=name,
        kind=artifact.kind,
        path=artifact.path,
        size=artifact.size,
        sha256=artifact.sha256,
        main=artifact.main,
    )


def _publish_again(job: Job, result: Result) -> bool:
    """The same as `publish` for bytes that others own, too. Raises BytesGone."""
    files = list(result.artifacts)
    with transaction.atomic():
        events.lock(job.tenant_id)  # from here on nobody dooms them
        if not blobs.are_live(job.tenant_id, files):
            raise BytesGone
        return _succeed(job, result, files)
