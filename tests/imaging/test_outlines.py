"""Outlines and measurements of objects whose shape is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
import shapely
from scipy import ndimage

from jobs.imaging.cells import located
from jobs.imaging.contours import outlines
from jobs.imaging.measurement import NAMES, measure, rings
from jobs.imaging.tiling import Rect


def _measured(mask: np.ndarray, rgb: np.ndarray | None = None) -> dict[str, float]:
    if rgb is None:
        rgb = np.full((*mask.shape, 3), 255, np.uint8)
    row = measure(outlines(mask.astype(np.int32), np.array([1], np.int32)), rgb, (0.5, 0.5))[0]
    return dict(zip(NAMES, row, strict=True))


def test_ragged_objects_become_simple_rings_of_their_largest_part_filled() -> None:
    random = np.random.default_rng(11)
    for _ in range(300):
        mask = random.random((17, 19)) < random.choice([0.35, 0.5, 0.6, 0.8])
        mask[8, 8] = True
        traced = outlines(mask.astype(np.int32), np.array([1], np.int32))
        polygon = rings(traced.corners, traced.starts)[0]
        assert polygon.is_valid
        parts, count = ndimage.label(mask)
        largest = parts == 1 + int(np.argmax(ndimage.sum(mask, parts, range(1, count + 1))))
        filled = ndimage.binary_fill_holes(largest)
        assert polygon.area == traced.area_px[0] == filled.sum()
        assert traced.centroid[0] == pytest.approx([polygon.centroid.x, polygon.centroid.y])


def test_a_single_pixel_has_four_corners() -> None:
    labels = np.zeros((3, 3), np.int32)
    labels[1, 1] = 7
    traced = outlines(labels, np.array([7], np.int32))
    assert traced.corners.tolist() == [[1, 1], [2, 1], [2, 2], [1, 2]]


def test_nothing_to_trace_gives_nothing() -> None:
    traced = outlines(np.zeros((5, 5), np.int32), np.zeros(0, np.int32))
    assert len(traced.corners) == len(traced.area_px) == 0
    assert measure(traced, np.zeros((5, 5, 3), np.uint8), (0.5, 0.5)).shape == (0, len(NAMES))


def test_a_square_measures_as_a_square() -> None:
    mask = np.zeros((40, 40), bool)
    mask[5:25, 5:25] = True
    found = _measured(mask)
    assert found["Area µm^2"] == 100
    assert found["Length µm"] == 40
    assert found["Circularity"] == pytest.approx(math.pi / 4, abs=1e-4)
    assert found["Solidity"] == 1
    assert found["Max diameter µm"] == pytest.approx(10 * math.sqrt(2), abs=1e-3)
    assert found["Min diameter µm"] == pytest.approx(10)


def test_least_width_of_a_slanted_bar_is_its_thickness() -> None:
    y, x = np.mgrid[:200, :200]
    along, off = (x + y) / math.sqrt(2), (x - y) / math.sqrt(2)
    mask = (np.abs(off) < 10) & (np.abs(along - 140) < 60)
    found = _measured(mask)
    assert found["Min diameter µm"] == pytest.approx(10, rel=0.08)
    assert found["Max diameter µm"] == pytest.approx(math.hypot(10, 60), rel=0.03)


def test_pure_hematoxylin_measures_as_its_optical_density() -> None:
    vector = np.array([0.65111, 0.70119, 0.29049])
    colour = np.round(255 * 10 ** -(0.8 * vector / np.linalg.norm(vector))).astype(np.uint8)
    mask = np.zeros((30, 30), bool)
    mask[5:25, 5:25] = True
    found = _measured(mask, np.broadcast_to(colour, (30, 30, 3)))
    assert found["Hematoxylin: Mean"] == pytest.approx(0.8, abs=0.01)
    assert found["Hematoxylin: Median"] == pytest.approx(0.8, abs=0.01)
    assert found["Eosin: Mean"] == pytest.approx(0, abs=0.01)
    assert found["Hematoxylin: Std.Dev."] == 0


def test_a_crescent_gets_a_point_inside_for_its_centroid() -> None:
    y, x = np.mgrid[:80, :80]
    mask = (np.hypot(x - 40, y - 40) < 30) & (np.hypot(x - 52, y - 40) > 27)
    traced = outlines(mask.astype(np.int32), np.array([1], np.int32))
    whole = Rect(100, 200, 80, 80)
    cells = located(
        traced,
        np.array([[40, 12]], np.int32),
        np.zeros((1, len(NAMES))),
        region=whole,
        block=whole,
        scale=(2.0, 2.0),
    )
    assert cells.replaced.tolist() == [True]
    assert cells.seeds.tolist() == [[112, 240]]
    polygon = shapely.Polygon(cells.ring(0))
    assert polygon.contains(shapely.Point(cells.centroid_l0[0]))
    assert polygon.bounds[0] >= 200
    assert polygon.bounds[1] >= 400
    assert cells.area_l0[0] == pytest.approx(polygon.area)
