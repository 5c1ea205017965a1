"""The key of a result: the same for every run that must give the same bytes, so that ids agree."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from pathlib import Path

from jobs.imaging.contract import PIPELINE_VERSION
from jobs.models import Artifact, Job
from jobs.running.artifacts import measure

BOUNDS_ONLY = frozenset({"timeout_s", "stall_s", "queue"})  # change when, not what


def of(job: Job, slide: Path, given: Iterable[Artifact], *, beat: Callable[[], None]) -> str:
    """A hash of the slide's bytes, the type, its parameters, the pipeline and what was given."""
    size, sha256 = measure(slide, beat)
    content = {
        "slide": sha256,
        "size": size,
        "type": job.job_type,
        "params": {name: value for name, value in job.params.items() if name not in BOUNDS_ONLY},
        "pipeline": PIPELINE_VERSION,
        "given": sorted(artifact.sha256 for artifact in given if artifact.kind == "tissue_mask"),
    }
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
