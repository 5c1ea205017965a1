"""From logits to labelled objects of one block, exactly as one pass over the whole plane gives them.

Follows the published TorchScript: peaks of the seed map, one grown object a peak, objects joined where
they overlap; where the model gives nuclei and cells, each cell keeps its largest nucleus. An object
belongs to the block that holds its root seed, the first in raster order of those joined, so nothing has
to be agreed between blocks (DESIGN I4, I5).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from jobs.imaging import growing
from jobs.imaging.head import Classifier, Head, Settings
from jobs.imaging.tiling import Rect

if TYPE_CHECKING:
    from jobs.imaging.network import Network

STEP = 0.25
"""Coordinate units per plane pixel. The published code stretches this by W/(W-1) over each image it is
given, so its result depends on the image's size; 1/4 is the limit, and the same for every tile."""

REACH = 64
"""By how many plane pixels a context is widened for objects that it cannot vouch for."""


@dataclass(frozen=True)
class Labelled:
    """Objects found round one block.

    labels     (rows, cols) of `region`: 0, or 1 + index into `seeds` of the object's root. For a
               model of nuclei and cells these are cells, nucleus included
    nuclei     (rows, cols): 0, or the label of the object whose nucleus this is; None for one output
    seeds      (n, 2) rows and columns of all peaks, in `region`: cells' first, then nuclei's
    roots      root of every seed; -1 where it grew nothing
    far        roots of which a wider context may say otherwise
    own_seeds  index of the first nuclear seed: an object rooted there is a nucleus without a cell
               around it, which then is a cell of the same outline. Its root may be the pixel that
               also roots another object
    """

    region: Rect
    labels: NDArray[np.int32]
    seeds: NDArray[np.int32]
    roots: NDArray[np.int32]
    far: NDArray[np.int32]
    nuclei: NDArray[np.int32] | None
    own_seeds: int

    def owned(self, block: Rect) -> NDArray[np.int32]:
        """Roots of the objects that `block` owns, in raster order; of equals the cell's first."""
        seen = np.bincount(self.labels.ravel(), minlength=len(self.seeds) + 1)[1:]
        roots = np.flatnonzero((seen > 0) & self._inside(block))
        rows, cols = self.seeds[roots].T
        return np.asarray(roots[np.lexsort((roots, cols, rows))], np.int32)

    def doubtful(self, block: Rect) -> bool:
        """Whether a wider context may give `block` other objects."""
        return bool(self._inside(block)[self.far].any())

    def bare(self, roots: NDArray[np.int32]) -> NDArray[np.bool_]:
        """Which objects are nuclei without a cell around them."""
        return np.asarray(roots >= self.own_seeds)

    def names(self, roots: NDArray[np.int32]) -> NDArray[np.int32]:
        """(n, 2) x, y of the root seeds on the plane, of each object another: a bare nucleus, whose
        seed may also root a cell, is told by their complements (~x, ~y), which are negative."""
        at = self.seeds[roots, ::-1] + np.array([self.region.x, self.region.y], np.int32)
        return np.where(self.bare(roots)[:, None], ~at, at)

    def _inside(self, block: Rect) -> NDArray[np.bool_]:
        rows, cols = self.seeds[:, 0] + self.region.y, self.seeds[:, 1] + self.region.x
        down = (rows >= block.y) & (rows < block.bottom)
        return np.asarray(down & (cols >= block.x) & (cols < block.right))


@dataclass(frozen=True)
class _Kind:
    """Nuclei or cells by themselves: as Labelled, with the box of each root's seeds."""

    labels: NDArray[np.int32]
    seeds: NDArray[np.int32]
    roots: NDArray[np.int32]
    boxes: NDArray[np.int32]


def label_objects(
    logits: NDArray[np.float32],
    region: Rect,
    plane: Rect,
    head: Head,
    *,
    context: int,
    step: float = STEP,
) -> Labelled:
    """Label the objects of `region`, a part of `plane`.

    logits    (planes, rows, cols), -inf in `head.last_planes` where nothing was computed
    context   plane pixels of `region` round the block that is asked for; `head.context` or more

    With w the window (32 px), a seed decides the pixels up to w away, meets other seeds up to 2w away,
    and those are grown in full if the region goes on for another w. So a context of 3w vouches for an
    object of one seed, and of 3w + d for one whose seeds, and those of whatever it shares pixels with,
    lie up to d from its root: 2w for nuclei or cells alone (5w = 160 px), 4w for both (7w = 224 px),
    where a cell also hangs on its nuclei, and a nucleus on its cell's others. What reaches farther is
    in `far`.
    """
    settings = head.settings
    parts = np.split(logits, len(head.outputs))
    kinds = [_kind(part, region, plane, head, step) for part in parts]
    reach = context - 3 * settings.window
    if len(kinds) == 1:
        kind = kinds[0]
        far = _beyond(kind.seeds, kind.boxes, reach)
        return Labelled(region, kind.labels, kind.seeds, kind.roots, far, None, len(kind.seeds))
    return _paired(region, kinds[0], kinds[1], reach)


def label_nuclei(
    logits: NDArray[np.float32],
    region: Rect,
    plane: Rect,
    settings: Settings,
    classifier: Classifier,
    *,
    step: float = STEP,
) -> Labelled:
    """`label_objects` of a model of nuclei alone in its usual context."""
    head = Head(settings, classifier, ("nuclei",))
    return label_objects(logits, region, plane, head, context=head.context, step=step)


def warm(logits: NDArray[np.float32], network: Network) -> None:
    """Compile the inner loops, or load them from numba's cache."""

    from jobs.imaging import contours, measurement

    plane = Rect(0, 0, logits.shape[2], logits.shape[1])
    head = network.head
    label_objects(logits, plane, plane, head, context=head.context)
    contours.warm()
    measurement.warm()


def _kind(logits: NDArray[np.float32], region: Rect, plane: Rect, head: Head, step: float) -> _Kind:
    settings = head.settings
    seeds = growing.peaks(
        _score(logits, settings), settings.peak_distance, np.float32(settings.seed_threshold)
    )
    labels, roots = growing.grow_all(
        _features(logits, settings),
        seeds,
        (-region.y, -region.x, plane.height - region.y, plane.width - region.x),
        np.float32(step),
        np.float32(settings.mask_threshold),
        np.float32(settings.overlap_threshold),
        settings.over_union,
        2 * settings.window,
        head.classifier.layers,
    )
    return _Kind(labels, seeds, roots, _boxes(seeds, roots))


def _score(logits: NDArray[np.float32], settings: Settings) -> NDArray[np.float32]:
    """How much of a seed each pixel is."""
    if settings.foreground is None:
        return np.asarray(logits[-1] / np.float32(15) + np.float32(0.5))
    score = np.asarray(logits[-2] / np.float32(15) + np.float32(0.5))
    with np.errstate(over="ignore"):
        score[~(1 / (1 + np.exp(-logits[-1])) > settings.foreground)] = 0
    return score


def _features(logits: NDArray[np.float32], settings: Settings) -> NDArray[np.float32]:
    """(rows, cols, 2 + sigmas): offset to the object's centre (x, y), and widths."""
    features = np.empty((*logits.shape[1:], 2 + settings.sigmas), np.float32)
    for axis in range(2):
        field = logits[axis]
        features[..., axis] = (1 / (1 + np.exp(-field)) - np.float32(0.5)) * np.float32(8)
    for width in range(2, 2 + settings.sigmas):
        features[..., width] = logits[width]
    return features


def _boxes(seeds: NDArray[np.int32], roots: NDArray[np.int32]) -> NDArray[np.int32]:
    """(n, 4): lowest row and column and highest row and column of the seeds joined to each seed."""
    boxes = np.hstack([seeds, seeds])
    grown = np.flatnonzero(roots >= 0)
    np.minimum.at(boxes[:, :2], roots[grown], seeds[grown])
    np.maximum.at(boxes[:, 2:], roots[grown], seeds[grown])
    return boxes


def _beyond(seeds: NDArray[np.int32], boxes: NDArray[np.int32], reach: int) -> NDArray[np.int32]:
    """Seeds whose box goes on farther from them than `reach`."""
    away = np.maximum(seeds - boxes[:, :2], boxes[:, 2:] - seeds).max(axis=1, initial=0)
    return np.flatnonzero(away > reach).astype(np.int32)


def _paired(region: Rect, nuclei: _Kind, cells: _Kind, reach: int) -> Labelled:
    """Nuclei and cells as one set of objects, as the published `resolve_cell_and_nucleus` pairs them.

    A nucleus is in a cell with more than half of its pixels; a cell keeps its largest (of equals the
    first), and every other nucleus is a cell of its own outline. Pixels of nuclei leave other cells
    for their own. Unlike there, nothing depends on what else the image holds: the published code
    drops all objects of an image in which no nucleus lies in a cell.
    """
    first = len(cells.seeds)
    pairs, shared = _overlaps(nuclei.labels, cells.labels)
    names = np.arange(first + 1, first + 1 + len(nuclei.seeds), dtype=np.int32)
    inside, around = _largest(nuclei, pairs, shared)
    names[inside] = around + 1
    paired = np.concatenate([np.zeros(1, np.int32), names])[nuclei.labels]
    return Labelled(
        region,
        np.where(paired > 0, paired, cells.labels),
        np.vstack([cells.seeds, nuclei.seeds]),
        np.concatenate([cells.roots, np.where(nuclei.roots < 0, -1, nuclei.roots + first)]),
        _beyond(np.vstack([cells.seeds, nuclei.seeds]), _bound(nuclei, cells, pairs), reach),
        paired,
        first,
    )


def _overlaps(
    nuclei: NDArray[np.int32], cells: NDArray[np.int32]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(m, 2) roots of nuclei and cells that share pixels, sorted, and how many they share."""
    both = (nuclei > 0) & (cells > 0)
    base = int(cells.max(initial=0)) + 1
    keys = nuclei[both].astype(np.int64) * base + cells[both]
    first = np.flatnonzero(np.diff(keys, prepend=-1))  # runs along rows: far fewer than pixels
    unique, which = np.unique(keys[first], return_inverse=True)
    shared = np.bincount(which, np.diff(first, append=len(keys)), minlength=len(unique))
    return np.column_stack([unique // base - 1, unique % base - 1]), shared.astype(np.int64)


def _largest(
    nuclei: _Kind, pairs: NDArray[np.int64], shared: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The nucleus that each cell with nuclei keeps, and the cell."""
    area = np.bincount(nuclei.labels.ravel(), minlength=len(nuclei.seeds) + 1)[1:]
    mostly = pairs[2 * shared > area[pairs[:, 0]]]
    order = np.lexsort((mostly[:, 0], -area[mostly[:, 0]], mostly[:, 1]))
    cells, first = np.unique(mostly[order, 1], return_index=True)
    return mostly[order, 0][first], cells


def _bound(nuclei: _Kind, cells: _Kind, pairs: NDArray[np.int64]) -> NDArray[np.int32]:
    """(n, 4) boxes round all seeds that decide each cell, then each nucleus."""
    around_cells, around_nuclei = cells.boxes.copy(), nuclei.boxes.copy()
    nucleus, cell = pairs.T
    for target, of, source, by in (
        (around_cells, cell, nuclei.boxes, nucleus),
        (around_nuclei, nucleus, around_cells, cell),
    ):
        np.minimum.at(target[:, :2], of, source[by, :2])
        np.maximum.at(target[:, 2:], of, source[by, 2:])
    return np.vstack([around_cells, around_nuclei])
