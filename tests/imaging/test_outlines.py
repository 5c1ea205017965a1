"""Outlines and measurements of objects whose shape is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import ndimage

from jobs.imaging.contours import membrane, outlines, outlines_inside
from jobs.imaging.measurement import NAMES, measure, names, object_type, rings


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


def _two_squares() -> tuple[np.ndarray, np.ndarray]:
    """A cell of 20 × 20 pixels with a nucleus of 8 × 8, and one of 10 × 10 without."""
    cells, nuclei = np.zeros((40, 60), np.int32), np.zeros((40, 60), np.int32)
    cells[5:25, 5:25], cells[5:15, 40:50] = 1, 2
    nuclei[9:17, 9:17] = 1
    return cells, nuclei


def test_cells_are_measured_by_compartment_under_qupaths_names() -> None:
    cells, nuclei = _two_squares()
    pixels = np.zeros((40, 60, 2), np.uint16)
    pixels[..., 0] = np.where(nuclei > 0, 4000, 100)
    pixels[5:25, 5:25, 1] = 300
    pixels[6:24, 6:24, 1] = 500
    wanted = np.array([1, 2], np.int32)
    outer = outlines(cells, wanted)
    inner = outlines_inside(outer, nuclei, wanted)
    outputs, channels = ("nuclei", "cells"), ("DAPI", " CD3 ")
    rows = measure(outer, pixels, (0.5, 0.5), outputs=outputs, nuclei=inner, stains=False)
    columns = names(outputs, channels)
    first, second = (dict(zip(columns, row, strict=True)) for row in rows)
    assert len(columns) == 2 * 6 + 1 + 4 * 2 * 5 == rows.shape[1]
    assert columns[:2] == ("Nucleus: Area µm^2", "Nucleus: Length µm")
    assert columns[12:15] == (
        "Nucleus/Cell area ratio",
        "Nucleus: DAPI: Mean",
        "Nucleus: DAPI: Median",
    )
    assert (first["Nucleus: Area µm^2"], first["Cell: Area µm^2"]) == (16, 100)
    assert first["Nucleus/Cell area ratio"] == 0.16
    assert first["Nucleus: DAPI: Mean"] == first["Cell: DAPI: Max"] == 4000
    assert first["Cytoplasm: DAPI: Max"] == first["Cytoplasm: DAPI: Mean"] == 100
    assert first["Membrane: CD3: Max"] == first["Membrane: CD3: Mean"] == 300
    assert first["Cytoplasm: CD3: Max"] == 500
    assert first["Cell: CD3: Mean"] == pytest.approx((76 * 300 + 324 * 500) / 400)
    assert all(math.isnan(second[name]) for name in columns if name.startswith("Nucleus"))
    assert second["Cell: Area µm^2"] == 25
    assert second["Cytoplasm: DAPI: Mean"] == 100


def test_stains_of_cells_on_an_he_slide_are_measured_by_compartment() -> None:
    cells, nuclei = _two_squares()
    rgb = np.full((40, 60, 3), 200, np.uint8)
    wanted = np.array([1, 2], np.int32)
    outer = outlines(cells, wanted)
    inner = outlines_inside(outer, nuclei, wanted)
    outputs = ("nuclei", "cells")
    rows = measure(outer, rgb, (0.5, 0.5), outputs=outputs, nuclei=inner)
    columns = names(outputs)
    assert rows.shape == (2, len(columns))
    found = dict(zip(columns, rows[0], strict=True))
    assert found["Nucleus: Hematoxylin: Mean"] == found["Cell: Hematoxylin: Mean"] != 0


def test_channels_of_nuclei_alone_have_no_compartment() -> None:
    mask = np.zeros((20, 20), np.int32)
    mask[5:15, 5:15] = 1
    pixels = np.full((20, 20, 1), 70, np.uint8)
    traced = outlines(mask, np.array([1], np.int32))
    row = measure(traced, pixels, (1.0, 1.0), stains=False)[0]
    found = dict(zip(names(("nuclei",), ("DAPI",)), row, strict=True))
    assert (found["Area µm^2"], found["DAPI: Mean"], found["DAPI: Std.Dev."]) == (100, 70, 0)
    assert (object_type(("nuclei",)), object_type(("nuclei", "cells"))) == ("detection", "cell")


def test_membranes_end_where_another_cell_begins_but_not_at_the_pictures_edge() -> None:
    labels = np.zeros((6, 12), np.int32)
    labels[:, :6], labels[:, 6:] = 1, 2
    rim = membrane(outlines(labels, np.array([1, 2], np.int32)), labels.shape)
    assert set(rim.at[: rim.starts[1], 1].tolist()) == {5}
    assert set(rim.at[rim.starts[1] :, 1].tolist()) == {6}
