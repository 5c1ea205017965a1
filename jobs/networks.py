"""Models that jobs may name: the published ones, and those that an operator registered.

Never loads torch: a file is looked at in a child process. What a model file holds, and how it is run:
jobs/imaging.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from django.conf import settings
from django.core.files import File
from django.core.files.storage import default_storage
from django.db import IntegrityError, transaction

from jobs.imaging.contract import BadInput
from jobs.imaging.weights import MissingWeights, Weights
from jobs.models import SegmentationModel
from jobs.models.networks import NAME, VERSION
from tenants.models import User

BRIGHTFIELD, FLUORESCENCE = "brightfield_nuclei", "fluorescence_nuclei_and_cells"
PUBLISHED: tuple[dict[str, Any], ...] = (
    {"name": BRIGHTFIELD, "outputs": ["nuclei"], "mpp": 0.5, "channels": 3},
    {"name": FLUORESCENCE, "outputs": ["nuclei", "cells"], "mpp": 0.5, "channels": None},
)
FILE, DESCRIPTION = "instanseg.pt", "rdf.yaml"
AROUND = {"PATH": os.defpath, "OMP_NUM_THREADS": "4", "CUDA_VISIBLE_DEVICES": ""}
"""The environment of a look. No secret, for a model file is somebody's program; no GPU, for those
are at work, and reserve more addresses than the look may have."""
LOOK_S = 300
"""A look loads torch and runs the model twice; on a busy machine that takes its time."""


class Refused(ValueError):
    """This is not registered; the message says why and what to do."""


@dataclass(frozen=True)
class Facts:
    """What a look at a model file found."""

    outputs: list[str]
    pixel_size: float
    channels: int | None
    parity: str


# --- what jobs may say --------------------------------------------------------------------


def listed() -> list[dict[str, Any]]:
    """Every model that a job may name, the published ones first."""
    rows = SegmentationModel.objects.filter(enabled=True).order_by("name", "created_at")
    published = [{**each, "version": None} for each in PUBLISHED]
    return published + [
        {
            "name": row.name,
            "version": row.version,
            "outputs": row.outputs,
            "mpp": row.pixel_size,
            "channels": row.channels,
        }
        for row in rows
    ]


def fault_of(wanted: str) -> str:
    """Why no job can have this model, in a sentence; empty where it can."""
    if _is_published(wanted) or _row(wanted) is not None:
        return ""
    known = [each["name"] for each in PUBLISHED]
    rows = SegmentationModel.objects.filter(enabled=True).order_by("name", "created_at")
    return (
        f"There is no model {wanted!r} here. Choose one of: {', '.join([*known, *map(str, rows)])}."
    )


def pinned(wanted: str) -> str:
    """`name:version` of the registered model that `wanted` is now; a published one as it is."""
    row = None if _is_published(wanted) else _row(wanted)
    return wanted if row is None else str(row)


def registered(wanted: str) -> Weights | None:
    """The file of a registered model, checked again now; None for a published one.

    By `name:version` also one that was disabled since: jobs that named it before keep it.
    raises   BadInput where there is no such model; MissingWeights where its file is gone or changed
    """
    if _is_published(wanted):
        return None
    row = _row(wanted, disabled_too=":" in wanted)
    if row is None:
        raise BadInput(fault_of(wanted))
    path = _local(row)
    if not path.is_file():
        raise MissingWeights(
            f"The file of model {row} is gone from the storage: put it back, or register it again as "
            "another version."
        )
    if _sha256(path) != row.sha256:
        raise MissingWeights(
            f"The file of model {row} is not the one that was registered, as its sha256 tells: put "
            "that back, or register this one as another version."
        )
    return Weights(path, row.name, row.version, row.sha256, "registered")


def _is_published(wanted: str) -> bool:
    return any(wanted == each["name"] for each in PUBLISHED)


def _row(wanted: str, *, disabled_too: bool = False) -> SegmentationModel | None:
    """By `name:version`; by a name alone the one that was registered last."""
    name, _, version = wanted.partition(":")
    rows = SegmentationModel.objects.filter(name=name)
    if not disabled_too:
        rows = rows.filter(enabled=True)
    if version:
        rows = rows.filter(version=version)
    return rows.order_by("-created_at", "-pk").first()


# --- registering --------------------------------------------------------------------------


def register(name: str, version: str, source: Path, *, user: User | None = None) -> Any:
    """Look at the file `source`, keep a copy of it, and let jobs name it. Raises Refused.

    A description that InstanSeg exported beside it (rdf.yaml) is kept with it.
    """
    check_name(name, version)
    return keep(name, version, source, look(source), user=user)


def check_name(name: str, version: str) -> None:
    """Raise Refused where no model may be called so."""
    if not re.fullmatch(NAME, name) or not re.fullmatch(VERSION, version):
        raise Refused(
            f"{name}:{version} is no name and version of a model: use a-z, 0-9, _ and - for the name, "
            "such as our_nuclei, and letters, digits and dots for the version."
        )
    if _is_published(name):
        raise Refused(f"{name} is a published model: choose another name for yours.")
    if SegmentationModel.objects.filter(name=name, version=version).exists():
        raise Refused(f"{name}:{version} is registered already: choose another version.")


def look(source: Path) -> Facts:
    """What a child process finds in a model file. Raises Refused where it is none to run here."""
    if not source.is_file():
        raise Refused(f"{source.name} is no file: give an InstanSeg TorchScript file.")
    command = [sys.executable, "-m", "jobs.imaging.vetting", str(source)]
    try:
        child = subprocess.run(
            command,
            cwd=settings.BASE_DIR,
            env=AROUND,
            capture_output=True,
            timeout=LOOK_S,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise Refused(
            f"{source.name} was not loaded and run within {LOOK_S} s: try again when the machine is "
            "less busy, or give a smaller model."
        ) from error
    try:
        answer = json.loads(child.stdout)
    except ValueError as error:
        raise Refused(
            f"{source.name} made its process fail (exit {child.returncode}): it is damaged, or needs "
            "more memory than there is. Export the model again."
        ) from error
    if "error" in answer:
        raise Refused(answer["error"])
    return Facts(**answer)


def keep(
    name: str, version: str, source: Path, facts: Facts, *, user: User | None = None
) -> SegmentationModel:
    """Store the file `source`, of which these are the facts, and its row. Raises Refused."""
    folder = f"models/{name}/{version}-{uuid.uuid4().hex[:8]}"
    described = source.with_name(DESCRIPTION)
    stored = [_stored(source, f"{folder}/{FILE}")]
    if described.is_file():
        stored.append(_stored(described, f"{folder}/{DESCRIPTION}"))
    try:
        with transaction.atomic():
            return SegmentationModel.objects.create(
                name=name,
                version=version,
                path=stored[0],
                sha256=_sha256(source),
                size=source.stat().st_size,
                outputs=facts.outputs,
                pixel_size=facts.pixel_size,
                channels=facts.channels,
                parity=facts.parity,
                added_by=user,
            )
    except IntegrityError:
        for path in stored:
            default_storage.delete(path)
        raise Refused(
            f"{name}:{version} was registered meanwhile: choose another version."
        ) from None


def _stored(source: Path, path: str) -> str:
    with source.open("rb") as stream:
        return default_storage.save(path, File(stream))


# --- files --------------------------------------------------------------------------------


def _local(row: SegmentationModel) -> Path:
    """The model's file on this machine."""
    try:
        return Path(default_storage.path(row.path))
    except NotImplementedError:  # the storage is a bucket
        return _copied(row)


def _copied(row: SegmentationModel) -> Path:
    target: Path = settings.LABSCHED_CACHE / "models-registered" / row.sha256 / FILE
    if not target.is_file() or _sha256(target) != row.sha256:
        target.parent.mkdir(parents=True, exist_ok=True)
        for path in (row.path.replace(FILE, DESCRIPTION), row.path):  # the model is there last
            if default_storage.exists(path):
                _copy(path, target.with_name(path.rpartition("/")[2]))
    return target


def _copy(path: str, target: Path) -> None:
    partial = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
    with default_storage.open(path) as source, partial.open("wb") as sink:
        shutil.copyfileobj(source, sink)
    os.replace(partial, target)


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
