"""A region of interest gives the cells of the whole slide that lie in it, and no others."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs.imaging import roi
from jobs.imaging.contract import BadInput
from jobs.imaging.network import Network
from tests.imaging.slides import Run, cell_request, outlines_of, run_cells, silent

BOX = [100, 120, 200, 180]


def test_cells_of_a_region_are_those_of_the_slide(
    small_slide: Path, net: Network, small_run: Run, tmp_path: Path
) -> None:
    inside = run_cells(small_slide, net.path, tmp_path / "roi", roi=[BOX], precision="fp32")
    whole = run_cells(small_slide, net.path, tmp_path / "all", precision="fp32")
    found = outlines_of(inside.cells)
    assert 0 < len(found) < len(whole.cells)
    assert found < outlines_of(whole.cells)
    assert inside.manifest["normalisation"] == whole.manifest["normalisation"]
    x, y, width, height = BOX
    within = [
        cell
        for cell in whole.cells
        if all(x <= px <= x + width and y <= py <= y + height for px, py in cell["polygon"])
    ]
    assert len(within) > 5
    assert outlines_of(within) <= found
    for cell in inside.cells:
        assert x - 30 < cell["centroid"][0] < x + width + 30
        assert y - 30 < cell["centroid"][1] < y + height + 30


def test_boxes_and_geojson_name_the_same_region() -> None:
    ring = [[100, 120], [300, 120], [300, 300], [100, 300], [100, 120]]
    drawn = roi.parse({"type": "Polygon", "coordinates": [ring]})
    boxes = [roi.parse([BOX]), roi.parse(BOX)]
    assert drawn is not None
    assert all(box is not None and box.shape.equals(drawn.shape) for box in boxes)


def test_what_qupath_exports_is_taken() -> None:
    rings = [[[x, 0], [x + 9, 0], [x + 9, 9], [x, 9], [x, 0]] for x in (0, 100)]
    features = [
        {
            "type": "Feature",
            "geometry": {"type": "Polygon", "coordinates": [ring]},
            "properties": {},
        }
        for ring in rings
    ]
    one, both = (roi.parse(each) for each in (features[0], collected(features)))
    assert one is not None
    assert both is not None
    assert (one.shape.area, both.shape.area) == (81, 162)
    crossed = [[0, 0], [10, 10], [10, 0], [0, 10], [0, 0]]
    features[1]["geometry"] = {"type": "Polygon", "coordinates": [crossed]}
    with pytest.raises(BadInput, match="crosses itself"):
        roi.parse(collected(features))


def collected(features: list[dict[str, object]]) -> dict[str, object]:
    return {"type": "FeatureCollection", "features": features}


@pytest.mark.parametrize(
    "value",
    [
        [],
        "all",
        {"type": "FeatureCollection", "features": []},
        {"type": "FeatureCollection", "features": 7},
        {"type": "Feature", "geometry": None},
        [[0, 0, 10]],
        [[0, 0, -5, 5]],
        [[0, 0, "a", 5]],
        {"type": "Point", "coordinates": [0, 0]},
        {"type": "Polygon", "coordinates": [[[0, 0], [10, 10], [10, 0], [0, 10], [0, 0]]]},
        {"type": "Polygon", "coordinates": 7},
    ],
)
def test_what_is_no_region_is_refused_in_a_sentence(value: object) -> None:
    with pytest.raises(BadInput, match="full-resolution image"):
        roi.parse(value)


def test_a_region_outside_the_slide_is_refused_before_any_work(
    small_slide: Path, net: Network, tmp_path: Path
) -> None:
    from jobs.imaging.pipeline import segment_cells

    for beyond in (9000, 448):  # the second one touches it
        request = cell_request(small_slide, net.path, tmp_path, roi=[[beyond, 0, 10, 10]])
        with pytest.raises(BadInput, match="448 × 448 pixels"):
            segment_cells(request, report=silent)


HUGE = 10**400


@pytest.mark.parametrize(
    "value",
    [
        [[HUGE, 0, 1, 1]],
        [[10**5000, 0, 1, 1]],
        [[float("nan"), 0, 1, 1]],
        [[0, 0, 1e308, 1e308]],
        [["x" * 1000, 0, 1, 1]],
        {"type": "Polygon", "coordinates": [[[HUGE, 0], [1, 0], [1, 1], [HUGE, 0]]]},
        {"type": "Polygon", "coordinates": [[[0, 0], [1, 1]]]},
        {"type": "Polygon", "coordinates": {}},
        {"type": "MultiPolygon", "coordinates": [[[0, 0], [1, 0], [1, 1]]]},
    ],
)
def test_numbers_that_no_slide_has_are_refused_and_not_repeated_at_length(value: object) -> None:
    with pytest.raises(BadInput) as refused:
        roi.parse(value)
    assert len(str(refused.value)) < 400


def test_a_region_has_so_many_boxes_and_vertices_at_most() -> None:
    boxes = [[2 * n, 0, 1, 1] for n in range(roi.MOST + 1)]
    ring = [[n, n % 2] for n in range(roi.MOST + 1)]
    for value in (boxes, {"type": "Polygon", "coordinates": [ring]}):
        with pytest.raises(BadInput, match=r"10001 \w+, and 10000 may be"):
            roi.parse(value)
    assert roi.parse(boxes[:-1]) is not None
