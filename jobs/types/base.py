"""What a job type is, and what its body is given. Pure: no torch, numpy, OpenSlide or Django."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jobs.imaging.blocks import BlockStore
    from jobs.imaging.contract import Outcome, Report


@dataclass(frozen=True)
class Task:
    """One execution of a job, on plain values: what `run` of a type works on."""

    job_uuid: str
    job_key: str
    workflow_uuid: str
    tenant_key: str
    branch: str
    attempt: int
    params: Mapping[str, Any]
    out_dir: Path  # write artifacts here and nowhere else
    slide: Path | None = None
    slide_name: str = ""
    slide_sha256: str = ""  # of the slide's content
    result_key: str = ""
    upstream: Mapping[str, Mapping[str, Path]] = field(default_factory=dict)
    """Files of the upstream jobs: {job type: {artifact kind: local path}}."""
    blocks: BlockStore | None = None
    """Keeps what is finished, so that another attempt goes on from there."""


@dataclass(frozen=True)
class JobType:
    """A kind of job: one module of jobs/types declares one. `run` loads what is heavy, late."""

    name: str
    queue: str
    phases: tuple[str, ...]
    schema: Mapping[str, Any]  # JSON Schema of `params`
    needs_slide: bool
    run: Callable[[Task, Report], Outcome]
    phase_weights: Mapping[str, float] = field(default_factory=dict)
    help: Callable[[Task, Report, int], None] | None = None
    """What another worker does to help with a long job: parts of it that are not done yet. The
    number tells helpers apart, from 1."""
    title: str = ""
    uses: tuple[str, ...] = ()
    """The job types whose results `run` reads where they are upstream."""
    check: Callable[[Mapping[str, Any]], list[str]] = field(default=lambda _: [])
    """What is wrong with `params` that the schema can not know, a sentence each."""
    pin: Callable[[Mapping[str, Any]], Mapping[str, Any]] | None = None
    """`params` as they are kept with a new job: what they name can not mean another thing later."""
    settle: Callable[[Mapping[str, Any]], Mapping[str, Any]] = field(default=lambda _: {})
    """What `params` leave open and a worker decides, with the model and the versions of rules: by
    these, too, results differ. Where a name is one of `params`, this is what it comes to."""

    def queue_for(self, params: Mapping[str, Any]) -> str:
        """The queue of one job: `params.queue` where the schema knows it, else the type's own."""
        return str(params.get("queue") or self.queue)
