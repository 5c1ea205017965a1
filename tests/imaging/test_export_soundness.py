"""Rings that QuPath would refuse are repaired or dropped, and counted; others stay as they are."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.imaging.cells import Cells
from jobs.imaging.export.batch import gathered
from jobs.imaging.export.soundness import repaired, simple, sound
from tests.imaging.exported import blocks_of, label_map

corner = st.tuples(st.integers(0, 600), st.integers(0, 600))
near = st.tuples(st.integers(0, 5), st.integers(0, 5))
BOW = [(0, 0), (10, 10), (10, 0), (0, 8)]
LINE = [(0, 0), (10, 0), (5, 0)]


@settings(deadline=None, max_examples=400)
@given(st.one_of(st.lists(corner, min_size=3, max_size=9), st.lists(near, min_size=3, max_size=8)))
def test_a_ring_without_meetings_is_valid_to_shapely(corners: list[tuple[int, int]]) -> None:
    ring = np.array(corners, np.int64)
    polygon = shapely.Polygon(ring / 100)
    if simple(ring, np.array([0, len(ring)]))[0]:
        assert polygon.is_valid
        assert polygon.area > 0
    mended = repaired(ring)
    if mended is not None:
        assert shapely.Polygon(mended / 100).is_valid
        assert shapely.Polygon(mended / 100).area > 0
    elif polygon.is_valid:
        assert polygon.area == 0


def test_outlines_of_labels_are_simple_and_stay_as_they_are() -> None:
    for cells in blocks_of(label_map(), nuclei=True):
        batch = gathered([(cells, 1)], "key")
        kept, told = sound(batch)
        assert kept is batch
        assert not told


def _with_rings(cells: Cells, rings: dict[int, list[tuple[int, int]]]) -> Cells:
    every = [np.array(rings.get(k, cells.ring(k)), np.float64) for k in range(len(cells))]
    starts = np.concatenate([[0], np.cumsum([len(ring) for ring in every])])
    return replace(cells, corners=np.concatenate(every), starts=starts)


def test_a_bow_keeps_its_larger_half_and_a_line_is_dropped_with_its_row() -> None:
    cells = _with_rings(blocks_of(label_map(), nuclei=True)[1], {3: BOW, 4: LINE})
    kept, told = sound(gathered([(cells, 11)], "key"))
    assert told == {"cells_repaired": 1, "cells_dropped": 1}
    ranks = kept.ranks.tolist()
    assert ranks == [rank for rank in range(11, 11 + len(cells)) if rank != 15]
    for row, rank in enumerate(ranks):
        ring = kept.corners[kept.starts[row] : kept.starts[row + 1]] / 100
        nucleus = kept.nuclei[kept.nucleus_starts[row] : kept.nucleus_starts[row + 1]] / 100
        assert shapely.Polygon(ring).is_valid
        assert nucleus.tolist() == cells.nucleus(rank - 11).tolist()
        if rank != 14:
            assert ring.tolist() == cells.ring(rank - 11).tolist()
    assert len(kept.ids) == len(kept.values) == len(kept.near_gap) == len(ranks)


def test_a_nucleus_without_area_goes_and_its_cell_stays() -> None:
    cells = blocks_of(label_map(), nuclei=True)[0]
    nuclei = cells.nuclei.copy()
    nuclei[:4] = [[0, 0], [5, 0], [9, 0], [2, 0]]
    kept, told = sound(gathered([(replace(cells, nuclei=nuclei), 1)], "key"))
    assert told == {"nuclei_dropped": 1}
    assert len(kept) == len(cells)
    assert not kept.has_nucleus[0]
    assert kept.has_nucleus[1]
