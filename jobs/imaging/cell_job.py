"""The `cell_segmentation` job: a slide in, every object of its tissue out.

What is finished is kept block by block. The job computes what is missing, so that it goes on where
another attempt ended, and shares the work with whoever else computes blocks of the same plan.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from jobs.imaging import network, params, roi
from jobs.imaging import tissue as tissues
from jobs.imaging.blocks import BlockStore, FolderStore
from jobs.imaging.contract import BadInput, CellRequest, Outcome, Report
from jobs.imaging.export.all import Names, exports
from jobs.imaging.export.frame import Frame
from jobs.imaging.export.manifest import hashed, sha256, write_manifest
from jobs.imaging.export.staging import Staging, staging
from jobs.imaging.export.tissue import read_mask
from jobs.imaging.merging import Merged, merge
from jobs.imaging.plan import Plan, Settled, name_of
from jobs.imaging.plane import Plane, plane_geometry
from jobs.imaging.preparation import (
    brightness,
    checked_slide,
    look_for_tissue,
    squares_to_run,
)
from jobs.imaging.progress import Progress, Tick, halves
from jobs.imaging.segmentation import Segmenter
from jobs.imaging.slide import Slide, cell_channels, cell_pixel_size
from jobs.imaging.telling import Facts, counts_of, facts_of, summary_of


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
        roi.parse(given.get("roi"))
        return cls(
            params.number(given, "mpp", default=None, low=1e-3, high=1e3),
            params.flag(given, "tissue", default=True),
            None if tile is None else round(tile / 64) * 64,
            smallest or 0.0,
        )


@dataclass(frozen=True)
class Bench:
    """A job at work: the slide it reads, the plan it follows, the blocks it shares."""

    request: CellRequest
    slide: Slide
    plan: Plan
    store: BlockStore
    name: str
    sha256: str

    def compute(self, tick: Tick, *, shard: int = 0) -> None:
        """Compute and keep every block that is not finished."""
        segmenter = Segmenter(
            self.plan,
            self.store,
            self.name,
            tick,
            shard=shard,
            most_gaps=self.request.most_gaps,
        )
        segmenter.run()

    def merge(self, tick: Tick) -> Merged:
        """Read all blocks once."""
        return merge(self.plan, self.store, self.name, tick, most_gaps=self.request.most_gaps)


def segment_cells(request: CellRequest, *, report: Report) -> Outcome:
    """Segment every object on the tissue of a slide and write the result files."""
    progress = Progress(report)
    with bench_of(request, progress) as bench, staging(request.out_dir) as stage:
        with progress.phase("segment") as tick:
            bench.compute(tick)
        with progress.phase("merge") as tick:
            merged = bench.merge(tick)
        with progress.phase("measure"):
            counts = counts_of(bench.plan, merged)
        with progress.phase("export") as tick:
            mended = _export(bench, merged, counts, stage, tick)
            files = hashed(stage.staged(), lambda: tick(1, 1))
        counts["cells"] -= mended.get("cells_dropped", 0)
        facts = facts_of(request, bench, counts, merged, progress.seconds) | {"mended": mended}
        write_manifest(stage.file("manifest.json", "manifest"), facts, files)
        artifacts = stage.publish()
        summary = summary_of(request, bench, counts)
    return Outcome(artifacts, _lines_name(request), summary)


def help_with_blocks(request: CellRequest, *, report: Report, shard: int) -> None:
    """Compute blocks of a job that another worker runs, until none is left; writes no artifact."""
    progress = Progress(report)
    with bench_of(request, progress) as bench, progress.phase("segment") as tick:
        bench.compute(tick, shard=shard)


@contextmanager
def bench_of(request: CellRequest, progress: Progress) -> Iterator[Bench]:
    """The request's slide, open, and its plan: the one that is kept, or one made now."""
    options = _Options.of(request)
    with checked_slide(request.slide, options.mpp) as slide, _store_of(request) as store:
        with progress.phase("open") as tick:
            cell_pixel_size(slide)
            roi.checked(request.params.get("roi"), (slide.width, slide.height))
            net = network.load(request.model)
            cell_channels(slide, net.channels)
            _check_tile(options.tile, net)
            digest = request.slide_sha256 or sha256(slide.path, lambda: tick(0, 1))
        name = name_of(request.result_key)
        with progress.phase("tissue") as tick:
            kept = store.plan(name, lambda: _settled(request, options, slide, net, tick).encoded())
            size = cell_pixel_size(slide)
            plane = Plane(slide, plane_geometry(slide, net.settings.pixel_size, size))
            across, down = plane.geometry.scale
            pixel_size = (size[0] * across, size[1] * down)
            plan = Plan.of(Settled.decoded(kept), plane, net, pixel_size)
        yield Bench(request, slide, plan, store, name, digest)


def _check_tile(tile: int | None, net: network.Network) -> None:
    least = 2 * net.halo + 64
    if tile is not None and tile < least:
        raise BadInput(
            f'"tile_size" is {tile}, and this model sees {net.halo} pixels round every pixel: give '
            f"{least} or more, or leave it out."
        )


@contextmanager
def _store_of(request: CellRequest) -> Iterator[BlockStore]:
    """Where the request keeps its blocks, or a folder beside its results that goes with the job."""
    if request.blocks is not None:
        yield request.blocks
        return
    request.out_dir.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=".blocks-", dir=request.out_dir) as folder:
        yield FolderStore(Path(folder))


def _settled(
    request: CellRequest,
    options: _Options,
    slide: Slide,
    net: network.Network,
    tick: Tick,
) -> Settled:
    """Look at the slide and settle what decides its cells."""
    size = cell_pixel_size(slide)
    plane = Plane(slide, plane_geometry(slide, net.settings.pixel_size, size))
    first, second = halves(tick)
    found = None
    if options.tissue and request.tissue_mask is not None:
        found = read_mask(request.tissue_mask, request.tissue_json, (slide.width, slide.height))
    elif options.tissue:
        _, found = look_for_tissue(slide, size, tissues.SMALLEST_UM2, first)
    region = roi.parse(request.params.get("roi"))
    squares = squares_to_run(found, plane, size)
    if region is not None:
        squares &= region.squares(plane.width, plane.height, plane.geometry.scale)
    return Settled(
        width=plane.width,
        height=plane.height,
        tile=options.tile,
        squares=squares,
        scale=brightness(plane, second),
        precision=net.precision_for(request.params.get("precision")),
        smallest_um2=options.smallest_um2,
        roi=None if region is None else region.geometry(),
        tissue_mm2=_tissue_mm2(found, region, slide, size),
    )


def _tissue_mm2(
    found: tissues.Tissue | None,
    region: roi.Roi | None,
    slide: Slide,
    pixel_size: tuple[float, float],
) -> float:
    """The tissue that is asked for: of the mask, of the region, or everything."""
    l0 = pixel_size[0] * pixel_size[1] / 1e6
    if found is None:
        part = region.area_on(slide.width, slide.height) if region else slide.width * slide.height
        return part * l0
    rows, cols = np.nonzero(found.mask)
    scale = np.asarray(found.scale)
    if region is not None:
        rows = rows[region.inside((np.column_stack([cols, rows]) + 0.5) * scale)]
    return float(len(rows) * scale.prod() * l0)


def _export(bench: Bench, merged: Merged, counts: Facts, stage: Staging, tick: Tick) -> Facts:
    """Write every result file but the manifest; returns what was repaired or dropped."""
    first = 1
    blocks, files = halves(tick)
    with exports(
        stage,
        names=_names(bench, counts),
        schema=bench.plan.schema,
        frame=_frame(bench),
        result_key=bench.request.result_key,
        threads=network.cores(),
    ) as files_open:
        for cells in merged.in_grid_order():
            files_open.add(cells, first)
            first += len(cells)
            blocks(first - 1, merged.count)
        files_open.close(files)
    return dict(files_open.told)


def _names(bench: Bench, counts: Facts) -> Names:
    request = bench.request
    return Names(
        lines=_lines_name(request),
        document=f"{request.workflow_uuid}_{request.job_key}_segmentation.json",
        image=bench.slide.path.name,
        tiles=counts["tiles"],
        method=counts["method"],
    )


def _lines_name(request: CellRequest) -> str:
    return f"{request.job_uuid}_cells.jsonl"


def _frame(bench: Bench) -> Frame:
    slide, plane = bench.slide, bench.plan.plane
    return Frame(
        size=(slide.width, slide.height),
        pixel_size=cell_pixel_size(slide),
        plane=(plane.width, plane.height),
        scale=plane.geometry.scale,
        bounds=slide.bounds,
    )
