"""The `cell_segmentation` job: a slide in, every nucleus on its tissue out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import numpy as np

from jobs.imaging import measurement, network, params
from jobs.imaging import tissue as tissues
from jobs.imaging.blocks import BlockFacts, BlockStore, FolderStore, Key
from jobs.imaging.cells import Cells, Schema, decoded, object_ids
from jobs.imaging.contract import CellRequest, Outcome, Report
from jobs.imaging.export.document import DocumentWriter
from jobs.imaging.export.geojson import GeoJsonWriter
from jobs.imaging.export.lines import LinesWriter
from jobs.imaging.export.manifest import sha256, write_manifest
from jobs.imaging.export.staging import Staging, staging
from jobs.imaging.export.tissue import read_mask
from jobs.imaging.export.writing import Writer
from jobs.imaging.measurement import STAINS
from jobs.imaging.normalisation import RULE
from jobs.imaging.plane import Plane, plane_geometry
from jobs.imaging.preparation import (
    brightness,
    checked_slide,
    look_for_tissue,
    squares_to_run,
)
from jobs.imaging.progress import Progress, Tick, halves
from jobs.imaging.segmentation import Plan, Segmenter
from jobs.imaging.slide import Slide, cell_pixel_size
from jobs.imaging.tiling import BLOCK, CONTEXT, HALO, SQUARE, Grid
from jobs.imaging.tissue import Tissue
from jobs.imaging.weights import describe

Facts = dict[str, Any]


def segment_cells(request: CellRequest, *, report: Report) -> Outcome:
    """Segment every nucleus on the tissue of a slide and write the result files."""
    progress = Progress(report)
    options = _Options.of(request)
    with checked_slide(request.slide, options.mpp) as slide, staging(request.out_dir) as stage:
        with progress.phase("open") as tick:
            size = cell_pixel_size(slide)
            net = network.load(request.model)
            precision = net.precision_for(request.params.get("precision"))
            digest = sha256(slide.path, lambda: tick(0, 1))
        with progress.phase("tissue") as tick:
            plan, found = _planned(request, options, slide, net, precision, tick)
        spool = Finished(request.blocks or FolderStore(stage.folder / "blocks"), "plan")
        with progress.phase("segment") as tick:
            segmenter = Segmenter(plan, tick)
            with closing(segmenter.blocks()) as blocks:
                for block, cells in blocks:
                    spool.add((block.y // BLOCK, block.x // BLOCK), cells)
        with progress.phase("merge"):
            _assert_once(spool)
        counts = _counts(plan, found, size, segmenter, spool)
        with progress.phase("measure") as tick:
            counts |= _median_area(spool, tick)
        with progress.phase("export") as tick:
            _export(spool, request, _writers(stage, request, slide, size, counts), tick)
        facts = _cell_facts(request, slide, digest, plan, counts, progress)
        made = stage.staged()
        write_manifest(stage.file("manifest.json", "manifest"), facts, made)
        artifacts = stage.publish()
    return Outcome(
        artifacts, f"{request.job_uuid}_cells.jsonl", _summary(counts, plan, slide, request)
    )


class Finished:
    """The finished blocks of a plan."""

    def __init__(self, store: BlockStore, name: str) -> None:
        self.store, self.name = store, name
        self.count = 0
        self._keys: set[Key] = set()

    def add(self, key: Key, cells: Cells) -> None:
        """Keep the cells of a block until `in_grid_order`."""
        facts = BlockFacts(len(cells), len(cells.gaps_l0), cells.box_l0, "")
        self.store.put(self.name, key, cells.encoded(), facts)
        self._keys.add(key)
        self.count += len(cells)

    def in_grid_order(self) -> Iterator[Cells]:
        """Every block's cells: rows of blocks from the top, from the left within a row."""
        for key in sorted(self._keys):
            yield decoded(self.store.get(self.name, key))


@dataclass(frozen=True)
class _Options:
    mpp: float | None
    tissue: bool
    tile: int | None
    smallest_um2: float

    @classmethod
    def of(cls, request: CellRequest) -> _Options:
        given = request.params
        tile = params.number(given, "tile_size", default=None, low=256, high=4096)
        smallest = params.number(given, "min_area_um2", default=0.0, low=0, high=1e6)
        return cls(
            params.number(given, "mpp", default=None, low=1e-3, high=1e3),
            params.flag(given, "tissue", default=True),
            None if tile is None else round(tile / 64) * 64,
            smallest or 0.0,
        )


def _planned(
    request: CellRequest,
    options: _Options,
    slide: Slide,
    net: network.Network,
    precision: str,
    tick: Tick,
) -> tuple[Plan, Tissue | None]:
    size = cell_pixel_size(slide)
    plane = Plane(slide, plane_geometry(slide, net.settings.pixel_size, size))
    first, second = halves(tick)
    found = None
    if options.tissue and request.tissue_mask is not None:
        found = read_mask(request.tissue_mask, request.tissue_json, (slide.width, slide.height))
    elif options.tissue:
        _, found = look_for_tissue(slide, size, tissues.SMALLEST_UM2, first)
    grid = Grid(
        plane.width,
        plane.height,
        tile=options.tile or net.default_tile(precision),
        squares=squares_to_run(found, plane, size),
    )
    across, down = plane.geometry.scale
    pixel_size = (size[0] * across, size[1] * down)
    scale = brightness(plane, second)
    return Plan(plane, grid, scale, net, precision, pixel_size, options.smallest_um2), found


def _writers(
    stage: Staging, request: CellRequest, slide: Slide, size: tuple[float, float], counts: Facts
) -> list[Writer]:
    document = f"{request.workflow_uuid}_{request.job_key}_segmentation.json"
    lines = f"{request.job_uuid}_cells.jsonl"
    origin = slide.bounds[:2] if slide.bounds else (0, 0)
    schema = Schema("detection", measurement.NAMES)
    return [
        LinesWriter(stage.file(lines, "cells_jsonl"), pixel_size=size),
        DocumentWriter(
            stage.file(document, "segmentation"), tiles=counts["tiles"], method=counts["method"]
        ),
        GeoJsonWriter(stage.file("cells.geojson.gz", "geojson"), schema=schema, origin=origin),
    ]


def _export(spool: Finished, request: CellRequest, writers: list[Writer], tick: Tick) -> None:
    first = 1
    for cells in spool.in_grid_order():
        ids = object_ids(cells, request.result_key)
        for writer in writers:
            writer.add(cells, ids, first)
        first += len(cells)
        tick(first - 1, max(1, spool.count))
    for writer in writers:
        writer.close()


def _assert_once(spool: Finished) -> None:
    """Two blocks never report one nucleus: each is owned by the block of its root seed."""
    for cells in spool.in_grid_order():
        if len(np.unique(cells.seeds, axis=0)) != len(cells):
            raise AssertionError("a nucleus is reported twice: this is a fault of labsched")


def _median_area(spool: Finished, tick: Tick) -> Facts:
    areas = [np.zeros(0)]
    for cells in spool.in_grid_order():
        areas.append(cells.values[:, 0])
        tick(sum(map(len, areas)), max(1, spool.count))
    every = np.concatenate(areas)
    return {"median_area_um2": round(float(np.median(every)), 2) if len(every) else 0.0}


def _counts(
    plan: Plan,
    found: Tissue | None,
    size: tuple[float, float],
    segmenter: Segmenter,
    spool: Finished,
) -> Facts:
    mm2 = plan.pixel_size[0] * plan.pixel_size[1] / 1e6
    squares = np.argwhere(plan.grid.squares) * SQUARE
    high = np.minimum(squares + SQUARE, [plan.plane.height, plan.plane.width]) - squares
    searched = float(high.prod(axis=1).sum()) * mm2
    whole = plan.plane.width * plan.plane.height * mm2
    tissue = whole
    if found is not None:
        pixel = size[0] * found.scale[0] * size[1] * found.scale[1] / 1e6
        tissue = float(found.mask.sum()) * pixel
    return {
        "cells": spool.count,
        "tiles": segmenter.total,
        "method": "direct" if segmenter.total == 1 else "tiled_parallel",
        "tissue_mm2": round(tissue, 4),
        "searched_mm2": round(searched, 4),
        "background_mm2": round(whole - searched, 4),
    }


def _summary(
    counts: Facts, plan: Plan, slide: Slide, request: CellRequest
) -> dict[str, float | int | str]:
    size = cell_pixel_size(slide)
    model = describe(request.model, request.model_source)
    told = {name: counts[name] for name in counts if name != "method"}
    per_mm2 = counts["cells"] / counts["tissue_mm2"] if counts["tissue_mm2"] else 0.0
    return told | {
        "cells_per_mm2": round(per_mm2, 1),
        "mpp": size[0],
        "mpp_source": slide.mpp_source,
        "precision": plan.precision,
        "device": network.describe_device()["device"],
        "model": f"{model.name} {model.version}",
        "upsampled": int(plan.plane.geometry.upsampled),
    }


def _cell_facts(
    request: CellRequest,
    slide: Slide,
    digest: str,
    plan: Plan,
    counts: Facts,
    progress: Progress,
) -> Facts:
    geometry = plan.plane.geometry
    model = describe(request.model, request.model_source)
    return {
        "slide": {
            "name": slide.path.name,
            "sha256": digest,
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
            **network.describe_device(),
            "precision": plan.precision,
            "graph": plan.network.graph,
            "tile": plan.grid.core + 2 * HALO,
            "halo": HALO,
            "block": BLOCK,
            "context": CONTEXT,
            "run_square": SQUARE,
        },
        "contour": "pixel_edge",
        "stains": STAINS,
        "counts": counts,
        "seconds": progress.seconds,
    }
