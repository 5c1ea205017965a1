"""The key of a result: the same for every run that must give the same cells, so that ids agree."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from jobs.imaging.contract import PIPELINE_VERSION, BadInput
from jobs.models import Artifact, Job, Slide
from jobs.running.artifacts import measure
from jobs.slides.files import parts_of, stamp_of
from jobs.types.base import JobType
from jobs.types.bounds import NOT_OF_THE_RESULT

Beat = Callable[[], None]


def of(job: Job, kind: JobType, slide: Path, given: Iterable[Artifact], *, beat: Beat) -> str:
    """A hash of the slide's bytes, the type, what its parameters come to, and what was given.

    Raises what `kind.settle` raises, and BadInput where the slide changes meanwhile.
    """
    return _hashed(
        {
            "slide": content_of(job.slide, slide, beat=beat) if job.slide else "",
            "type": kind.name,
            "params": canonical(kind, job.params),
            "pipeline": PIPELINE_VERSION,
            "upstream": _keys_of(kind, given),
        }
    )


def canonical(kind: JobType, params: Mapping[str, Any]) -> dict[str, Any]:
    """Every parameter that the result depends on, the open ones settled. 1 and 1.0 are one."""
    known = kind.schema.get("properties", {})
    defaults = {name: facts["default"] for name, facts in known.items() if "default" in facts}
    whole = {**defaults, **params, **kind.settle(params)}
    return {
        name: float(value) if isinstance(value, int) and not isinstance(value, bool) else value
        for name, value in whole.items()
        if name not in NOT_OF_THE_RESULT
    }


def _keys_of(kind: JobType, given: Iterable[Artifact]) -> dict[str, str]:
    """For each job type whose result is used, the key of that result: the latest one wins."""
    latest: dict[str, list[Artifact]] = {}
    for artifact in given:
        name = artifact.job.job_type
        if name not in kind.uses:
            continue
        if name in latest and latest[name][0].job_id == artifact.job_id:
            latest[name].append(artifact)
        else:
            latest[name] = [artifact]
    return {name: _key_of(artifacts) for name, artifacts in latest.items()}


def _key_of(artifacts: list[Artifact]) -> str:
    """The key of a result; one that is no function of a key is known by its bytes."""
    return artifacts[0].job.result_key or _hashed(sorted(each.sha256 for each in artifacts))


def _hashed(content: object) -> str:
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


# --- the slide's bytes --------------------------------------------------------------------


def content_of(slide: Slide, path: Path, *, beat: Beat) -> str:
    """The hash of all files of `slide`, read once for each version of them. Raises BadInput."""
    stamp = _stamp(path, beat)
    if slide.sha256 and slide.sha256_stamp == stamp:
        return slide.sha256
    sha256 = _read(path, beat)
    if _stamp(path, beat) != stamp:
        raise BadInput(
            f"{path.name} changed while it was read. Wait until it is copied, then retry the job."
        )
    slide.sha256, slide.sha256_stamp = sha256, stamp
    rows = Slide.objects.for_tenant(slide.tenant).filter(pk=slide.pk)
    rows.update(sha256=sha256, sha256_stamp=stamp)
    return sha256


def is_unchanged(slide: Slide, path: Path, *, beat: Beat) -> bool:
    """Whether the files are still those that were hashed."""
    return _stamp(path, beat) == slide.sha256_stamp


def _stamp(path: Path, beat: Beat) -> str:
    return stamp_of(parts_of(path, beat=beat))


def _read(path: Path, beat: Beat) -> str:
    """The sha256 of the file; of several, that of their names, sizes and hashes."""
    parts = parts_of(path, beat=beat)
    if parts == [path]:
        return measure(path, beat)[1]
    return _hashed(
        [(part.relative_to(path.parent).as_posix(), *measure(part, beat)) for part in parts]
    )
