"""What an attempt leaves: the rows that make its artifacts readable, in place of what they replace."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from jobs import blocks
from jobs.models import Artifact
from jobs.states import Reason


@dataclass(frozen=True)
class StoredArtifact:
    """A file that an attempt put into the storage."""

    name: str
    kind: str
    path: str
    size: int
    sha256: str
    main: bool = False


def publish(
    tenant_id: int, job_pk: int, attempt: int, artifacts: Iterable[StoredArtifact], reason: str
) -> None:
    """Write the rows with the success of the attempt. Where its result has gaps its blocks stay:
    the retry of those goes on from the others, and replaces these artifacts when it succeeds."""
    if attempt > 1:
        Artifact.objects.across_tenants("one locked job").filter(job=job_pk).delete()
    if reason != Reason.GAPS:
        blocks.release(job_pk)
    Artifact.objects.bulk_create(
        Artifact(tenant_id=tenant_id, job_id=job_pk, attempt=attempt, **vars(each))
        for each in artifacts
    )
