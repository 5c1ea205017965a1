"""The finished blocks of a plan as one result: checked, counted, in grid order."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from jobs.imaging.blocks import BlockStore, Key
from jobs.imaging.cells import UNSURE, Cells, decoded
from jobs.imaging.course import windows_of
from jobs.imaging.plan import Plan
from jobs.imaging.progress import Tick
from jobs.imaging.segmentation import TooManyGaps


@dataclass(frozen=True)
class Merged:
    """What the blocks of a plan came to.

    count          objects
    areas_um2      of each, in grid order
    gaps_l0        (g, 4) x, y, width, height of what could not be read
    fingerprints   how many blocks were computed under each
    unsure         objects flagged so
    windows        how many windows the network saw, or would have without blocks kept earlier
    """

    store: BlockStore
    name: str
    keys: list[Key]
    count: int
    areas_um2: NDArray[np.float32]
    gaps_l0: NDArray[np.float64]
    fingerprints: Counter[str]
    unsure: int
    windows: int

    def in_grid_order(self) -> Iterator[Cells]:
        """Every block's cells: rows of blocks from the top, from the left within a row."""
        for key in self.keys:
            yield decoded(self.store.get(self.name, key))


def merge(
    plan: Plan, store: BlockStore, name: str, tick: Tick, *, most_gaps: float = 1.0
) -> Merged:
    """Read every block of the plan once. Raises TooManyGaps above `most_gaps` of what was run."""
    keys = sorted(plan.grid.key(block) for row in plan.grid.rows() for block in row)
    finished = store.finished(name)
    areas: list[NDArray[np.float32]] = [np.zeros(0, np.float32)]
    gaps: list[NDArray[np.float64]] = [np.zeros((0, 4))]
    unsure = 0
    size = np.asarray(plan.pixel_size) / plan.plane.geometry.scale
    for done, key in enumerate(keys):
        cells = decoded(store.get(name, key))
        _assert_once(cells)
        areas.append((cells.area_l0 * size.prod()).astype(np.float32))
        gaps.append(cells.gaps_l0)
        unsure += int((cells.flags & UNSURE > 0).sum())
        tick(done + 1, len(keys))
    missing = np.concatenate(gaps)
    across, down = plan.plane.geometry.scale
    if missing[:, 2:].prod(axis=1).sum() / (across * down) > most_gaps * plan.grid.run_pixels():
        raise TooManyGaps(plan.plane.slide.path.name)
    every = np.concatenate(areas)
    fingerprints = Counter(finished[key].fingerprint for key in keys if key in finished)
    return Merged(
        store, name, keys, len(every), every, missing, fingerprints, unsure, windows_of(plan.grid)
    )


def _assert_once(cells: Cells) -> None:
    """Two blocks never report one object: each is owned by the block of its root seed."""
    if len(np.unique(cells.seeds, axis=0)) != len(cells):
        raise AssertionError("an object is reported twice: this is a fault of labsched")
