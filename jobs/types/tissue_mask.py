"""`tissue_mask`: where the tissue is on a slide, as a mask, outlines and an area."""

from __future__ import annotations

from typing import TYPE_CHECKING

from jobs.types.base import JobType, Task
from jobs.types.bounds import MPP, REUSE, TIMES

if TYPE_CHECKING:
    from jobs.imaging.contract import Outcome, Report


def run(task: Task, report: Report) -> Outcome:
    """Find the tissue of the task's slide."""
    from jobs.imaging.contract import BadInput, TissueRequest
    from jobs.imaging.pipeline import find_tissue

    if task.slide is None:
        raise BadInput("This job needs a slide. Submit it again with an image_path.")
    request = TissueRequest(
        slide=task.slide,
        out_dir=task.out_dir,
        job_uuid=task.job_uuid,
        result_key=task.result_key,
        params=task.params,
    )
    return find_tissue(request, report=report)


TYPE = JobType(
    name="tissue_mask",
    title="Find the tissue",
    queue="cpu",
    phases=("open", "tissue", "export"),
    phase_weights={"open": 1, "tissue": 8, "export": 1},
    needs_slide=True,
    run=run,
    schema={
        "type": "object",
        "additionalProperties": False,
        "properties": {
            "mpp": MPP,
            "min_area_um2": {
                "type": "number",
                "minimum": 0,
                "maximum": 1e12,
                "default": 4000,
                "title": "Smallest piece",
                "description": "Pieces of tissue below this area (µm²) are left out.",
            },
            "reuse": REUSE,
            **TIMES,
        },
    },
)
