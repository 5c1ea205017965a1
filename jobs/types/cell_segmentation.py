"""`cell_segmentation`: every nucleus, or cell, on the tissue of a slide, by an InstanSeg model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from django.conf import settings

from jobs import networks
from jobs.imaging.weights import Weights, find_weights
from jobs.types.base import JobType, Task
from jobs.types.bounds import MPP, REUSE, TIMES

if TYPE_CHECKING:
    from jobs.imaging.contract import CellRequest, Outcome, Report

PHASE_WEIGHTS = {"open": 2, "tissue": 4, "segment": 84, "merge": 2, "measure": 2, "export": 6}


def weights(params: Mapping[str, Any] | None = None) -> Weights:
    """The model of a job with these params: a registered one, or what the settings lead to.

    Raises MissingWeights, and BadInput where there is no such model.
    """
    wanted = str((params or {}).get("model", networks.BRIGHTFIELD))
    if (registered := networks.registered(wanted)) is not None:
        return registered
    own = Path(settings.INSTANSEG_BIOIMAGEIO_PATH) if settings.INSTANSEG_BIOIMAGEIO_PATH else None
    if wanted != networks.BRIGHTFIELD:
        return find_weights(settings.LABSCHED_CACHE, instanseg=own, name=wanted)
    explicit = Path(settings.INSTANSEG_MODEL) if settings.INSTANSEG_MODEL else None
    return find_weights(settings.LABSCHED_CACHE, explicit=explicit, instanseg=own)


def check(params: Mapping[str, Any]) -> list[str]:
    """A model that nobody registered, and a region that is none, are refused before they wait."""
    fault = networks.fault_of(str(params["model"])) if "model" in params else ""
    faults = [f"params.model: {fault}"] if fault else []
    return faults + ([f"params.roi: {fault}"] if (fault := _fault_of_roi(params)) else [])


def pin(params: Mapping[str, Any]) -> Mapping[str, Any]:
    """With the version of a registered model: another one that comes later changes no job."""
    return {**params, "model": networks.pinned(params["model"])} if "model" in params else params


def _fault_of_roi(params: Mapping[str, Any]) -> str:
    if params.get("roi") is None:
        return ""
    from jobs.imaging import roi
    from jobs.imaging.contract import BadInput

    try:
        roi.parse(params["roi"])
    except BadInput as refused:
        return str(refused)
    return ""


def run(task: Task, report: Report) -> Outcome:
    """Segment the nuclei of the task's slide, on the mask of an upstream job where there is one."""
    from jobs.imaging.pipeline import segment_cells

    return segment_cells(request_of(task), report=report)


def help_with(task: Task, report: Report, shard: int) -> None:
    """Compute blocks of the task that another worker runs, until none is left."""
    from jobs.imaging.pipeline import help_with_blocks

    help_with_blocks(request_of(task), report=report, shard=shard)


def request_of(task: Task) -> CellRequest:
    """What the pipeline is asked for. Raises BadInput, MissingWeights."""
    from jobs.imaging.contract import BadInput, CellRequest

    if task.slide is None:
        raise BadInput("This job needs a slide. Submit it again with an image_path.")
    found = weights(task.params)
    given = task.upstream.get("tissue_mask", {})
    return CellRequest(
        slide=task.slide,
        out_dir=task.out_dir,
        model=found.path,
        model_source=found.source,
        model_name=found.name,
        model_version=found.version,
        workflow_uuid=task.workflow_uuid,
        job_uuid=task.job_uuid,
        job_key=task.job_key,
        result_key=task.result_key,
        tissue_mask=given.get("tissue_mask"),
        tissue_json=given.get("tissue_json"),
        slide_sha256=task.slide_sha256,
        blocks=task.blocks,
        most_gaps=settings.MAX_FAILED_TILES,
        params=task.params,
    )


def settle(params: Mapping[str, Any]) -> dict[str, Any]:
    """The weights, the rule of brightness, and what precision and tile size come to here."""
    from jobs.imaging import network, normalisation

    found = weights(params)
    net = network.load(found.path)
    precision = net.precision_for(params.get("precision"))
    return {
        "model": found.sha256,
        "normalisation": normalisation.RULE,
        "precision": precision,
        "tile_size": params.get("tile_size") or net.default_tile(precision),
    }


TYPE = JobType(
    name="cell_segmentation",
    title="Segment the cells",
    queue="gpu",
    phases=tuple(PHASE_WEIGHTS),
    phase_weights=PHASE_WEIGHTS,
    needs_slide=True,
    uses=("tissue_mask",),
    check=check,
    pin=pin,
    settle=settle,
    run=run,
    help=help_with,
    schema={
        "type": "object",
        "additionalProperties": False,
        "properties": {
            "model": {
                "type": "string",
                "maxLength": 100,
                "default": networks.BRIGHTFIELD,
                "title": "Model",
                "description": f"{networks.BRIGHTFIELD}, {networks.FLUORESCENCE}, or one that was "
                "registered, as name or name:version; GET /api/models lists them.",
            },
            "mpp": MPP,
            "tissue": {
                "type": "boolean",
                "default": True,
                "title": "Only on tissue",
                "description": "False computes the background too, which takes longer.",
            },
            "min_area_um2": {
                "type": "number",
                "minimum": 0,
                "maximum": 1e6,
                "default": 0,
                "title": "Smallest cell",
                "description": "Cells below this area (µm²) are left out.",
            },
            "tile_size": {
                "type": "integer",
                "minimum": 256,
                "maximum": 4096,
                "title": "Tile size",
                "description": "Pixels a side of what the model sees at once; changes memory and "
                "speed, not the cells.",
            },
            "precision": {
                "enum": ["auto", "fp32", "bf16", "fp16"],
                "title": "Precision",
                "description": "fp32 is exact; bf16, and on a GPU fp16, are faster.",
            },
            "roi": {
                "type": ["array", "object", "null"],
                "maxItems": 10_000,
                "title": "Region",
                "description": "Only the cells of this part: boxes [[x, y, width, height], …] or "
                "GeoJSON polygons, in pixels of the full-resolution image.",
            },
            "reuse": REUSE,
            **TIMES,
        },
    },
)
