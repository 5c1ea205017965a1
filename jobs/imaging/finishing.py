"""From the logits round a block to its cells: labels, ownership, outlines, measurements."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import shapely
from numpy.typing import NDArray
from scipy import ndimage

from jobs.imaging import contours, measurement, postprocess
from jobs.imaging.cells import NEAR_GAP, UNSURE, Cells
from jobs.imaging.memory import Scratch, apart
from jobs.imaging.plan import Plan
from jobs.imaging.readers.reader import Pixels
from jobs.imaging.tiling import SQUARE, Rect

STEPS = 6
"""How often the context grows, by two windows each time, for objects larger than the usual one."""


UPPER = 1 if sys.byteorder == "little" else 0
"""Which half of a float32 in memory holds sign and exponent."""

Logits = NDArray[np.float32] | NDArray[np.uint16]
_scratch = Scratch()


@dataclass(frozen=True)
class Piece:
    """What is known of a rectangle of the plane.

    logits   (planes, rows, cols), exact; uint16 is the upper half of each float32
    pixels   (rows, cols, channels) of the plane
    gaps     the rectangles of it, and near it, that could not be read
    """

    area: Rect
    logits: Logits
    pixels: Pixels
    gaps: tuple[Rect, ...] = ()


Compute = Callable[[Rect], Piece]


def finish(plan: Plan, block: Rect, pieces: list[Piece], compute: Compute) -> Cells:
    """The cells that `block` owns.

    pieces    cover what run squares near the block need
    compute   gives the piece of any further rectangle, for objects larger than the usual context
    """
    region = plan.grid.region(block)
    around = _assembled(plan, region, pieces)
    labelled = _labelled(plan, around, plan.grid.context)
    for step in range(1, STEPS + 1):
        if not labelled.doubtful(block):
            break
        context = plan.grid.context + 2 * step * plan.network.settings.window
        around = compute(plan.grid.region(block, context))
        labelled = _labelled(plan, around, context)
    return _measured(plan, labelled, _owned(plan, labelled, block), around, block)


def _labelled(plan: Plan, around: Piece, context: int) -> postprocess.Labelled:
    return postprocess.label_objects(
        np.asarray(around.logits, np.float32),
        around.area,
        plan.grid.plane,
        plan.network.head,
        context=context,
    )


def _owned(plan: Plan, labelled: postprocess.Labelled, block: Rect) -> NDArray[np.int32]:
    """Roots of the block's objects that lie in a run square and in the region of interest."""
    roots = labelled.owned(block)
    rows = labelled.seeds[roots, 0] + labelled.region.y
    cols = labelled.seeds[roots, 1] + labelled.region.x
    wanted = plan.grid.squares[rows // SQUARE, cols // SQUARE]
    if plan.roi is not None:
        scale = np.asarray(plan.plane.geometry.scale)
        wanted = wanted & plan.roi.inside((np.column_stack([cols, rows]) + 0.5) * scale)
    return np.asarray(roots[wanted], np.int32)


def _measured(
    plan: Plan,
    labelled: postprocess.Labelled,
    own: NDArray[np.int32],
    around: Piece,
    block: Rect,
) -> Cells:
    own, flags = _beside_gaps(labelled, own, around, plan.grid.halo)
    flags[np.isin(own, labelled.far)] |= UNSURE
    outlined = contours.outlines(labelled.labels, own + 1)
    large = outlined.area_px * plan.pixel_size[0] * plan.pixel_size[1] >= plan.smallest_um2
    if not large.all():
        own, flags = own[large], flags[large]
        outlined = contours.outlines(labelled.labels, own + 1)
    nuclei = None
    if labelled.nuclei is not None:
        nuclei = contours.outlines_inside(outlined, labelled.nuclei, own + 1)
    values = measurement.measure(
        outlined,
        around.pixels,
        plan.pixel_size,
        outputs=plan.network.outputs,
        nuclei=nuclei,
        stains=plan.stains,
    )
    return _located(
        outlined,
        nuclei,
        labelled.names(own),
        values,
        region=labelled.region,
        block=block,
        scale=plan.plane.geometry.scale,
        flags=flags,
        gaps=[gap for gap in around.gaps if _counts(plan, gap, block)],
    )


def _beside_gaps(
    labelled: postprocess.Labelled, own: NDArray[np.int32], around: Piece, halo: int
) -> tuple[NDArray[np.int32], NDArray[np.uint8]]:
    """Without the objects that reach into a gap; those the network saw a gap beside are flagged."""
    flags = np.zeros(len(own), np.uint8)
    missing = np.zeros(labelled.labels.shape, np.bool_)
    for gap in around.gaps:
        if _filled(part := gap.clipped(around.area)):
            missing[part.slices(around.area)] = True
    if not missing.any():
        return own, flags
    near = ndimage.distance_transform_cdt(~missing, metric="chessboard") <= halo
    lost = np.isin(own + 1, labelled.labels[missing])
    flags[np.isin(own + 1, labelled.labels[near])] = NEAR_GAP
    return own[~lost], flags[~lost]


def _counts(plan: Plan, gap: Rect, block: Rect) -> bool:
    """Whether a gap lies in the block, and where somebody looks for cells."""
    runs = bool(plan.grid.squares[gap.y // SQUARE, gap.x // SQUARE])
    return runs and _filled(gap.clipped(block))


def _assembled(plan: Plan, region: Rect, pieces: list[Piece]) -> Piece:
    """The pieces as one; where nothing was computed no seed can be found. Its logits last until this
    thread's next."""
    head = plan.network.head
    logits = _scratch.zeros((head.planes, region.height, region.width), np.float32)
    logits[head.last_planes] = -np.inf
    pixels = plan.plane.slide.empty(region.width, region.height)
    for piece in pieces:
        part = piece.area.clipped(region)
        if _filled(part):
            (rows, cols), source = part.slices(region), part.slices(piece.area)
            _restore(piece.logits[:, *source], logits[:, rows, cols])
            pixels[rows, cols] = piece.pixels[source]
    gaps = {gap for piece in pieces for gap in piece.gaps}
    return Piece(region, logits, pixels, tuple(sorted(gaps)))


def halved(logits: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Logits that a bf16 network gave, in half the memory: the other bits are 0."""
    half = apart(logits.shape, np.uint16)
    np.right_shift(logits.view(np.uint32), 16, out=half, casting="unsafe")
    return half


def _restore(kept: Logits, logits: NDArray[np.float32]) -> None:
    """Write logits, halved or not, into `logits`, which hold 0 or -inf."""
    if kept.dtype == np.uint16:
        halves = logits.view(np.uint16)  # of each, the lower one is 0 already
        halves[..., UPPER::2] = kept
    else:
        logits[...] = kept


def _filled(area: Rect) -> bool:
    return area.width > 0 and area.height > 0


def _located(
    outlined: contours.Outlines,
    nuclei: contours.Outlines | None,
    seeds: NDArray[np.int32],
    values: NDArray[np.float64],
    *,
    region: Rect,
    block: Rect,
    scale: tuple[float, float],
    flags: NDArray[np.uint8],
    gaps: list[Rect],
) -> Cells:
    """Outlines found in `region` of the plane, put into level-0 pixels (`scale` a plane pixel).

    gaps   what could not be read, in plane pixels
    """
    origin = np.array([region.x, region.y])
    factor = np.asarray(scale)
    corners = np.round((outlined.corners + origin) * factor, 2)
    inner = np.empty((0, 2))
    if nuclei is not None:
        inner = np.round((nuclei.corners + origin) * factor, 2)
    centroid, replaced = _inside(
        np.round((outlined.centroid + origin) * factor, 2),
        measurement.rings(corners, outlined.starts),
    )
    return Cells(
        seeds=seeds,
        corners=corners,
        starts=outlined.starts,
        area_l0=np.round(outlined.area_px * factor[0] * factor[1], 2),
        centroid_l0=centroid,
        replaced=replaced,
        values=values,
        origin_l0=np.round(np.array([block.x, block.y]) * factor, 2),
        nuclei=inner,
        nucleus_starts=np.zeros(len(seeds) + 1, np.int64) if nuclei is None else nuclei.starts,
        flags=flags,
        gaps_l0=np.round(np.array(gaps, np.float64).reshape(-1, 4) * np.tile(factor, 2), 2),
    )


def _inside(
    centroid: NDArray[np.float64], polygons: NDArray[np.object_]
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Centroids, and for those not inside their polygon (a crescent's) a point that is."""
    if not len(polygons):
        return centroid, np.zeros(0, np.bool_)
    outside = ~shapely.contains_xy(polygons, centroid[:, 0], centroid[:, 1])
    stand_in = shapely.get_coordinates(shapely.point_on_surface(polygons[outside]))
    centroid = centroid.copy()
    centroid[outside] = np.round(stand_in, 2)
    return centroid, outside
