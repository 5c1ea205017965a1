"""From logits to labelled nuclei of one block, exactly as one pass over the whole plane gives them.

Follows the published TorchScript: peaks of the seed map, one grown object a peak, objects joined by
intersection over the smaller area. A nucleus belongs to the block that holds its root seed, the first
in raster order of those joined, so nothing has to be agreed between blocks (DESIGN I4, I5).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from jobs.imaging import growing
from jobs.imaging.tiling import Rect

if TYPE_CHECKING:
    from jobs.imaging.network import Classifier, Network, Settings

STEP = 0.25
"""Coordinate units per plane pixel. The published code stretches this by W/(W-1) over each image it is
given, so its result depends on the image's size; 1/4 is the limit, and the same for every tile."""

REACH = 64
"""How far from its root seed, in plane pixels, the context of a block can vouch for a joined seed."""


@dataclass(frozen=True)
class Labelled:
    """Nuclei found round one block.

    labels    (rows, cols) of `region`: 0, or 1 + index into `seeds` of the nucleus' root
    seeds     (n, 2) rows and columns of all peaks, in `region`
    roots     root of every seed; -1 where it grew nothing
    far       roots joined to a seed beyond REACH: for these a wider context may say otherwise
    """

    region: Rect
    labels: NDArray[np.int32]
    seeds: NDArray[np.int32]
    roots: NDArray[np.int32]
    far: NDArray[np.int32]


def label_nuclei(
    logits: NDArray[np.float32],
    region: Rect,
    plane: Rect,
    settings: Settings,
    classifier: Classifier,
    *,
    step: float = STEP,
) -> Labelled:
    """Label the nuclei of `region`, a part of `plane`; logits (5, rows, cols) are -inf in the last
    channel where nothing was computed."""
    score = logits[4] / np.float32(15) + np.float32(0.5)
    seeds = growing.peaks(score, settings.peak_distance, np.float32(settings.seed_threshold))
    labels, roots = growing.grow_all(
        _features(logits),
        seeds,
        (-region.y, -region.x, plane.height - region.y, plane.width - region.x),
        np.float32(step),
        np.float32(settings.mask_threshold),
        np.float32(settings.overlap_threshold),
        tuple(
            layer
            for pair in zip(classifier.weights, classifier.biases, strict=True)
            for layer in pair
        ),
    )
    return Labelled(region, labels, seeds, roots, _far(seeds, roots))


def warm(logits: NDArray[np.float32], network: Network) -> None:
    """Compile the inner loops, or load them from numba's cache."""

    from jobs.imaging import contours, measurement

    plane = Rect(0, 0, logits.shape[2], logits.shape[1])
    label_nuclei(logits, plane, plane, network.settings, network.classifier)
    contours.warm()
    measurement.warm()


def _features(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """(rows, cols, 4): offset to the nucleus' centre (x, y), and two widths."""
    features = np.empty((*logits.shape[1:], 4), np.float32)
    for axis in range(2):
        field = logits[axis]
        features[..., axis] = (1 / (1 + np.exp(-field)) - np.float32(0.5)) * np.float32(8)
        features[..., 2 + axis] = logits[2 + axis]
    return features


def _far(seeds: NDArray[np.int32], roots: NDArray[np.int32]) -> NDArray[np.int32]:
    joined = np.flatnonzero((roots >= 0) & (roots != np.arange(len(roots))))
    distance = np.abs(seeds[joined] - seeds[roots[joined]]).max(axis=1, initial=0)
    return np.unique(roots[joined[distance > REACH]])
