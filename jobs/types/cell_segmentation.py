"""`cell_segmentation`: every nucleus on the tissue of a slide, by InstanSeg."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from django.conf import settings

from jobs.imaging.weights import Weights, find_weights
from jobs.types.base import JobType, Task
from jobs.types.bounds import MPP, REUSE, TIMES

if TYPE_CHECKING:
    from jobs.imaging.contract import Outcome, Report

PHASE_WEIGHTS = {"open": 2, "tissue": 4, "segment": 84, "merge": 2, "measure": 2, "export": 6}


def weights() -> Weights:
    """The weights that the settings of this stack lead to. Raises MissingWeights."""
    explicit = Path(settings.INSTANSEG_MODEL) if settings.INSTANSEG_MODEL else None
    own = Path(settings.INSTANSEG_BIOIMAGEIO_PATH) if settings.INSTANSEG_BIOIMAGEIO_PATH else None
    return find_weights(settings.LABSCHED_CACHE, explicit=explicit, instanseg=own)


def run(task: Task, report: Report) -> Outcome:
    """Segment the nuclei of the task's slide, on the mask of an upstream job where there is one."""
    from jobs.imaging.contract import BadInput, CellRequest
    from jobs.imaging.pipeline import segment_cells

    if task.slide is None:
        raise BadInput("This job needs a slide. Submit it again with an image_path.")
    found = weights()
    given = task.upstream.get("tissue_mask", {})
    request = CellRequest(
        slide=task.slide,
        out_dir=task.out_dir,
        model=found.path,
        model_source=found.source,
        workflow_uuid=task.workflow_uuid,
        job_uuid=task.job_uuid,
        job_key=task.job_key,
        result_key=task.result_key,
        tissue_mask=given.get("tissue_mask"),
        tissue_json=given.get("tissue_json"),
        params=task.params,
    )
    return segment_cells(request, report=report)


def settle(params: Mapping[str, Any]) -> dict[str, Any]:
    """The weights, the rule of brightness, and what precision and tile size come to here."""
    from jobs.imaging import network, normalisation

    found = weights()
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
    settle=settle,
    run=run,
    schema={
        "type": "object",
        "additionalProperties": False,
        "properties": {
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
                "enum": ["auto", "fp32", "bf16"],
                "title": "Precision",
                "description": "fp32 is exact; bf16 is faster where the device has it.",
            },
            "reuse": REUSE,
            **TIMES,
        },
    },
)
