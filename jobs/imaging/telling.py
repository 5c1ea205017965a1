"""What is told of a finished segmentation: counts, the summary of its row, the manifest."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from jobs.imaging import network
from jobs.imaging.contract import CellRequest
from jobs.imaging.measurement import STAINS
from jobs.imaging.merging import Merged
from jobs.imaging.normalisation import RULE
from jobs.imaging.plan import Plan
from jobs.imaging.slide import cell_pixel_size
from jobs.imaging.tiling import BLOCK, SQUARE
from jobs.imaging.weights import Weights, describe

if TYPE_CHECKING:
    from jobs.imaging.cell_job import Bench

Facts = dict[str, Any]
MIXED = (
    "The model takes any channels of fluorescence, and this is a brightfield slide: look at the cells "
    "before you use them, or choose a model for brightfield slides."
)
MOST_GAPS_TOLD = 1000
"""Rectangles that the manifest lists; a map of more tells nothing more."""


def counts_of(plan: Plan, merged: Merged) -> Facts:
    """The numbers of a result: objects, tiles, areas."""
    mm2 = plan.pixel_size[0] * plan.pixel_size[1] / 1e6
    searched = plan.grid.run_pixels() * mm2
    across, down = plan.plane.geometry.scale
    lost = float(merged.gaps_l0[:, 2:].prod(axis=1).sum()) / (across * down) * mm2
    asked = plan.plane.width * plan.plane.height * mm2
    if plan.roi is not None:
        slide = plan.plane.slide
        asked = plan.roi.area_on(slide.width, slide.height) / (across * down) * mm2
    return {
        "cells": merged.count,
        "tiles": merged.windows,
        "method": "direct" if _in_one_tile(plan) else "tiled_parallel",
        "tissue_mm2": round(plan.tissue_mm2, 4),
        "searched_mm2": round(searched, 4),
        "background_mm2": round(max(0.0, asked - searched), 4),
        **_areas(merged),
        **({"gaps": len(merged.gaps_l0), "gaps_mm2": round(lost, 6)} if lost else {}),
        **({"unsure": merged.unsure} if merged.unsure else {}),
    }


def _in_one_tile(plan: Plan) -> bool:
    return plan.grid.core >= max(plan.plane.width, plan.plane.height)


def _areas(merged: Merged) -> Facts:
    if not merged.count:
        return {"median_area_um2": 0.0, "area_um2_q1": 0.0, "area_um2_q3": 0.0}
    first, median, third = np.percentile(merged.areas_um2, [25, 50, 75])
    return {
        "median_area_um2": round(float(median), 2),
        "area_um2_q1": round(float(first), 2),
        "area_um2_q3": round(float(third), 2),
    }


def _model(request: CellRequest) -> Weights:
    found = describe(request.model, request.model_source)
    name, version = request.model_name or found.name, request.model_version or found.version
    return replace(found, name=name, version=version)


def summary_of(request: CellRequest, bench: Bench, counts: Facts) -> dict[str, float | int | str]:
    """The summary that the job's row keeps."""
    model = _model(request)
    told = {name: counts[name] for name in counts if name != "method"}
    per_mm2 = counts["cells"] / counts["tissue_mm2"] if counts["tissue_mm2"] else 0.0
    if bench.slide.kind == "brightfield" and bench.plan.network.channels is None:
        told["warning"] = MIXED
    return told | {
        "cells_per_mm2": round(per_mm2, 1),
        "mpp": cell_pixel_size(bench.slide)[0],
        "mpp_source": bench.slide.mpp_source,
        "objects": "nuclei" if bench.plan.schema.object_type == "detection" else "cells",
        "precision": bench.plan.precision,
        "device": network.describe_device(bench.plan.network.device)["device"],
        "model": f"{model.name} {model.version}",
        "upsampled": int(bench.plan.plane.geometry.upsampled),
    }


def facts_of(
    request: CellRequest, bench: Bench, counts: Facts, merged: Merged, seconds: dict[str, float]
) -> Facts:
    """The manifest, but for versions and artifacts."""
    slide, plan = bench.slide, bench.plan
    geometry = plan.plane.geometry
    model = _model(request)
    return {
        "slide": {
            "name": slide.path.name,
            "sha256": bench.sha256,
            "quickhash": slide.quickhash,
            "vendor": slide.vendor,
            "width": slide.width,
            "height": slide.height,
            "mpp": slide.mpp,
            "mpp_source": slide.mpp_source,
            "bounds": slide.bounds,
        },
        "model": {
            "name": model.name,
            "version": model.version,
            "source": model.source,
            "file": request.model.name,
            "sha256": model.sha256,
            "mpp": plan.network.settings.pixel_size,
        },
        "parameters": dict(request.params),
        "result_key": request.result_key,
        "plane": {
            "level": geometry.level.index,
            "factor": [geometry.factor_x, geometry.factor_y],
            "scale_l0": list(geometry.scale),
            "upsampled": geometry.upsampled,
            "width": plan.plane.width,
            "height": plan.plane.height,
        },
        "normalisation": {"rule": RULE, "low": plan.scale.low, "high": plan.scale.high},
        "numerics": {
            **plan.numerics(),
            "blocks_by_fingerprint": dict(merged.fingerprints),
            "block": BLOCK,
            "run_square": SQUARE,
        },
        "contour": "pixel_edge",
        **({"stains": STAINS} if plan.stains else {"channels": list(slide.channels)}),
        "outputs": list(plan.network.outputs),
        "counts": counts,
        "gaps_l0": merged.gaps_l0[:MOST_GAPS_TOLD].tolist(),
        "seconds": seconds,
    }
