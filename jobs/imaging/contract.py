"""What a caller hands to the imaging library and gets back; nothing here reads pixels."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jobs.imaging.blocks import BlockStore

Report = Callable[[str, int, int], None]
"""`report(phase, done, total)`: called at least once a second; what it raises ends the job."""

PHASES = ("open", "tissue", "segment", "merge", "measure", "export")
TISSUE_PHASES = ("open", "tissue", "export")

PIPELINE_VERSION = "3"
"""Part of every result key: raised when the same input may give other cells."""


class BadInput(Exception):
    """The request cannot be done; the message tells a person what is wrong and what to do next."""


@dataclass(frozen=True)
class ArtifactFile:
    """One result file: where it lies now, and the name a person downloads it under."""

    name: str
    kind: str
    path: Path


@dataclass(frozen=True)
class Outcome:
    """What a finished job leaves behind. `main` is the name of the artifact served first."""

    artifacts: list[ArtifactFile]
    main: str
    summary: dict[str, float | int | str]


@dataclass(frozen=True)
class CellRequest:
    """One `cell_segmentation` job.

    model_source               where the weights were found, for the manifest
    model_name, model_version  what the results call it; by default the file says
    tissue_mask, tissue_json   the files of an upstream `tissue_mask` job, where an edge gives one
    slide_sha256               of the slide's content, where it is known already
    most_gaps                  the part of the tissue that may be unreadable
    blocks                     keeps finished blocks, so that another attempt goes on from them;
                               without one they are gone with the job
    params                     mpp (µm per level-0 pixel), tissue (False computes the background
                               too), roi (level-0 pixels, `jobs.imaging.roi`), tile_size
                               (plane pixels), min_area_um2, precision ("auto", "fp32", "bf16",
                               "fp16")
    """

    slide: Path
    out_dir: Path
    model: Path
    workflow_uuid: str
    job_uuid: str
    job_key: str
    result_key: str
    tissue_mask: Path | None = None
    tissue_json: Path | None = None
    model_source: str = "the path given"
    model_name: str = ""
    model_version: str = ""
    slide_sha256: str = ""
    most_gaps: float = 0.01
    blocks: BlockStore | None = None
    params: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class TissueRequest:
    """One `tissue_mask` job. params: mpp, min_area_um2."""

    slide: Path
    out_dir: Path
    job_uuid: str
    result_key: str
    params: Mapping[str, object] = field(default_factory=dict)
