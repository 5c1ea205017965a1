"""The cells of a few blocks as the writers take them: whole hundredths of a pixel, ids, ranks."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from jobs.imaging.cells import NEAR_GAP, Cells
from jobs.imaging.export.identity import object_ids

Numbered = tuple[Cells, int]
"""Cells of one block, and the rank of the first of them in the slide."""


@dataclass(frozen=True)
class Batch:
    """n cells in grid order; every length in hundredths of a level-0 pixel, as whole numbers.

    ranks           (n,) `cell_id`, from 1
    ids             (n, 36) ASCII of the object ids
    corners         (k, 2) x, y; ring i is corners[starts[i] : starts[i + 1]], open
    nuclei          (m, 2) the same for nuclei; an empty ring where a cell has none
    area            (n,) hundredths of a square pixel
    centroid        (n, 2) x, y
    replaced        (n,) True where a point inside stands for the centre of mass
    near_gap        (n,) True where the cell may be cut by what could not be read
    origin          (n, 2) x, y of the block
    values          (n, number of measurements), as they were measured
    """

    ranks: NDArray[np.int64]
    ids: NDArray[np.uint8]
    corners: NDArray[np.int64]
    starts: NDArray[np.int64]
    nuclei: NDArray[np.int64]
    nucleus_starts: NDArray[np.int64]
    area: NDArray[np.int64]
    centroid: NDArray[np.int64]
    replaced: NDArray[np.bool_]
    near_gap: NDArray[np.bool_]
    origin: NDArray[np.int64]
    values: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.ranks)

    @property
    def has_nucleus(self) -> NDArray[np.bool_]:
        """(n,) True where the cell has a nucleus of its own."""
        return np.diff(self.nucleus_starts) > 0


def gathered(blocks: list[Numbered], result_key: str) -> Batch:
    """One batch of several blocks, at least one, in their order."""
    every = [cells for cells, _ in blocks]
    counts = [len(cells) for cells in every]
    seeds = np.concatenate([cells.seeds for cells in every])
    flags = np.concatenate([cells.flags for cells in every])
    return Batch(
        ranks=np.concatenate([np.arange(first, first + len(cells)) for cells, first in blocks]),
        ids=object_ids(seeds, result_key),
        corners=_hundredths([cells.corners for cells in every]),
        starts=_joined([cells.starts for cells in every]),
        nuclei=_hundredths([cells.nuclei for cells in every]),
        nucleus_starts=_joined([cells.nucleus_starts for cells in every]),
        area=_hundredths([cells.area_l0 for cells in every]),
        centroid=_hundredths([cells.centroid_l0 for cells in every]),
        replaced=np.concatenate([cells.replaced for cells in every]),
        near_gap=(flags & NEAR_GAP) > 0,
        origin=np.repeat(
            _hundredths([cells.origin_l0 for cells in every]).reshape(-1, 2), counts, 0
        ),
        values=np.concatenate([cells.values for cells in every]),
    )


def _hundredths(parts: list[NDArray[np.float64]]) -> NDArray[np.int64]:
    return np.rint(np.concatenate(parts) * 100).astype(np.int64)


def _joined(parts: list[NDArray[np.int64]]) -> NDArray[np.int64]:
    """Starts of rings that were put one after the other."""
    lengths = np.concatenate([np.diff(starts) for starts in parts])
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
