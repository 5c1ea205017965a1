"""The `tissue_mask` job: a slide in, the mask, its outlines, facts and a picture out. Torch-free."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from jobs.imaging import params
from jobs.imaging import tissue as tissues
from jobs.imaging.artefacts import EDGE, PEN
from jobs.imaging.contract import Outcome, Report, TissueRequest
from jobs.imaging.export.geojson import write_tissue
from jobs.imaging.export.staging import staging
from jobs.imaging.export.tissue import write_facts, write_mask, write_picture
from jobs.imaging.preparation import checked_slide, look_for_tissue, tissue_pixel_size
from jobs.imaging.progress import Progress
from jobs.imaging.slide import Slide
from jobs.imaging.tissue import Tissue


def find_tissue(request: TissueRequest, *, report: Report) -> Outcome:
    """Write mask, outlines, facts and a picture of a slide's tissue."""
    progress = Progress(report)
    given = params.number(request.params, "mpp", default=None, low=1e-3, high=1e3)
    smallest = params.number(
        request.params, "min_area_um2", default=tissues.SMALLEST_UM2, low=0, high=1e12
    )
    with checked_slide(request.slide, given) as slide, staging(request.out_dir) as stage:
        with progress.phase("open"):
            size = tissue_pixel_size(slide)
        with progress.phase("tissue") as tick:
            picture, found = look_for_tissue(slide, size, smallest or 0.0, tick)
        with progress.phase("export"):
            facts = _tissue_facts(slide, found)
            write_mask(stage.file(f"{request.job_uuid}_tissue_mask.png", "tissue_mask"), found)
            facts["pieces"] = write_tissue(
                stage.file("tissue.geojson", "tissue_geojson"),
                found,
                result_key=request.result_key,
                mm2_per_pixel=facts["mm2_per_pixel"],
            )
            write_facts(stage.file("tissue.json", "tissue_json"), facts)
            write_picture(stage.file("tissue_qc.jpg", "tissue_qc"), picture, found)
            artifacts = stage.publish()
    told = {"tissue_mm2": facts["area_mm2"], "tissue_fraction": facts["fraction"]}
    told |= {"pieces": facts["pieces"], "mpp_source": slide.mpp_source}
    summary = {name: value for name, value in told.items() if value is not None}
    return Outcome(artifacts, artifacts[0].name, summary)


def _tissue_facts(slide: Slide, found: Tissue) -> dict[str, Any]:
    pixel = None
    if slide.mpp is not None:
        pixel = slide.mpp[0] * found.scale[0] * slide.mpp[1] * found.scale[1] / 1e6
    rows, cols = found.mask.shape

    def mm2(part: NDArray[np.bool_]) -> float | None:
        return None if pixel is None else round(float(part.sum()) * pixel, 6)

    marks = np.zeros_like(found.mask, np.uint8) if found.marks is None else found.marks
    return {
        "area_mm2": mm2(found.mask),
        "pen_mm2": mm2(marks == PEN),
        "edge_mm2": mm2(marks == EDGE),
        "fraction": round(found.fraction, 6),
        "threshold": round(found.threshold, 3),
        "method": found.method,
        "mpp": slide.mpp,
        "mpp_source": slide.mpp_source,
        "mask_width": cols,
        "mask_height": rows,
        "mask_mpp": None if slide.mpp is None else slide.mpp[0] * found.scale[0],
        "scale_l0": list(found.scale),
        "slide_width": slide.width,
        "slide_height": slide.height,
        "mm2_per_pixel": pixel,
    }
