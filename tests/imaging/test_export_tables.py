"""GeoJSON, lines, document, CSV and GeoParquet, opened by readers that know nothing of us."""

from __future__ import annotations

import csv
import gc
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import shapely

from jobs.imaging.cells import Cells
from jobs.imaging.export.staging import staging
from tests.imaging.exported import (
    FRAME,
    NAMES,
    Written,
    blocks_of,
    fill,
    label_map,
    opened,
    write,
)


@pytest.fixture(scope="module")
def nuclei(tmp_path_factory: pytest.TempPathFactory) -> Written:
    return write(tmp_path_factory.mktemp("nuclei"), blocks_of(label_map()))


@pytest.fixture(scope="module")
def cells(tmp_path_factory: pytest.TempPathFactory) -> Written:
    blocks = blocks_of(label_map(), nuclei=True)
    return write(tmp_path_factory.mktemp("cells"), blocks, kind="cell")


def _every(written: Written) -> list[tuple[Cells, int]]:
    return [(cells, index) for cells in written.blocks for index in range(len(cells))]


def _table(written: Written) -> list[dict[str, str]]:
    with (written.folder / "cells.csv").open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def _ring(geometry: dict[str, Any]) -> list[list[float]]:
    (ring,) = geometry["coordinates"]
    assert geometry["type"] == "Polygon"
    assert ring[0] == ring[-1]
    assert shapely.Polygon(ring).is_valid
    return list(ring[:-1])


def test_lines_and_document_tell_every_cell_in_level_0_pixels(nuclei: Written) -> None:
    document = nuclei.document
    every = _every(nuclei)
    assert document["total_cells"] == len(every) == len(nuclei.lines) > 500
    rows = zip(every, nuclei.lines, document["cells"], strict=True)
    for rank, ((block, index), line, cell) in enumerate(rows, 1):
        assert line["cell_id"] == cell["label_id"] == rank
        assert line["polygon"] == block.ring(index).tolist()
        assert cell["polygon"] == block.ring(index)[:, ::-1].tolist()
        assert line["area"] == cell["area"] == block.area_l0[index]
        assert line["centroid"] == cell["centroid"] == block.centroid_l0[index].tolist()
        kind = "inside_point" if block.replaced[index] else "centroid"
        assert line["centroid_kind"] == kind
        assert line["tile_origin"] == block.origin_l0.tolist()
        near = {"near_gap": True} if block.flags[index] else {}
        assert {key: line[key] for key in line if key == "near_gap"} == near
        assert {key: cell[key] for key in cell if key == "near_gap"} == near


def test_geojson_has_detections_in_the_frame_of_the_bounds(nuclei: Written) -> None:
    for (block, index), feature in zip(_every(nuclei), nuclei.features, strict=True):
        ring = np.array(_ring(feature["geometry"])) + FRAME.origin
        assert ring == pytest.approx(block.ring(index), abs=1e-9)
        assert "nucleusGeometry" not in feature
        properties = feature["properties"]
        assert properties["objectType"] == "detection"
        assert list(properties["measurements"]) == list(NAMES)
        for told, value in zip(
            properties["measurements"].values(), block.values[index], strict=True
        ):
            assert told == (pytest.approx(value, abs=1e-8) if math.isfinite(value) else "NaN")
        assert ("metadata" in properties) == bool(block.flags[index])


def test_geojson_has_cells_with_their_nuclei_beside_the_geometry(cells: Written) -> None:
    without = 0
    for (block, index), feature in zip(_every(cells), cells.features, strict=True):
        assert feature["properties"]["objectType"] == "cell"
        nucleus = block.nucleus(index)
        if len(nucleus):
            keys = list(feature)
            assert keys.index("nucleusGeometry") == keys.index("geometry") + 1
            ring = np.array(_ring(feature["nucleusGeometry"])) + FRAME.origin
            assert ring == pytest.approx(nucleus, abs=1e-9)
        else:
            without += 1
            assert "nucleusGeometry" not in feature
    assert without > 100


def test_the_table_is_qupaths_and_safe_in_a_spreadsheet(nuclei: Written) -> None:
    rows = _table(nuclei)
    first = "Image,Object ID,Object type,Name,Classification,Parent,ROI,Centroid X µm,Centroid Y µm"
    assert list(rows[0]) == [*first.split(","), *NAMES, "cell_id", "near_gap"]
    for (block, index), row in zip(_every(nuclei), rows, strict=True):
        assert row["Image"] == "'=slide, one.svs"
        assert (row["Object type"], row["ROI"]) == ("Detection", "Polygon")
        um = (block.centroid_l0[index] - FRAME.origin) * FRAME.pixel_size
        found = [float(row["Centroid X µm"]), float(row["Centroid Y µm"])]
        assert found == pytest.approx(um, abs=1e-4)
        assert row["near_gap"] == ("true" if block.flags[index] else "false")
        measured = [float(row[name]) for name in NAMES]
        known = np.where(np.isfinite(block.values[index]), block.values[index], np.nan)
        assert measured == pytest.approx(known, abs=1e-8, nan_ok=True)


def test_parquet_is_geoparquet_with_polygons_boxes_and_measurements(cells: Written) -> None:
    file = pq.ParquetFile(cells.folder / "cells.parquet")
    geo = json.loads(file.metadata.metadata[b"geo"])
    assert geo["version"] == "1.1.0"
    column = geo["columns"][geo["primary_column"]]
    assert (column["encoding"], column["crs"], column["edges"]) == ("WKB", None, "planar")
    assert column["covering"]["bbox"]["xmax"] == ["bbox", "xmax"]
    assert file.metadata.row_group(0).column(0).compression == "ZSTD"
    table = file.read()
    polygons = shapely.from_wkb(table["geometry"].to_numpy())
    assert shapely.is_valid(polygons).all()
    boxes = np.array([list(box.values()) for box in table["bbox"].to_pylist()])
    assert boxes == pytest.approx(shapely.bounds(polygons))
    assert column["bbox"] == pytest.approx(shapely.total_bounds(polygons))
    nuclei = shapely.from_wkb(table["nucleus_geometry"].to_numpy(zero_copy_only=False))
    for row, (block, index) in enumerate(_every(cells)):
        assert shapely.get_coordinates(polygons[row])[:-1].tolist() == block.ring(index).tolist()
        known = block.nucleus(index)
        assert (nuclei[row] is None) == (len(known) == 0)
        if len(known):
            assert shapely.get_coordinates(nuclei[row])[:-1].tolist() == known.tolist()
    measured = np.column_stack([table[name].to_numpy() for name in NAMES])
    assert measured.dtype == np.float32
    values = np.concatenate([block.values for block in cells.blocks]).astype(np.float32)
    assert np.array_equal(measured, values, equal_nan=True)


def test_one_id_names_one_cell_in_every_file(cells: Written) -> None:
    lines = {line["id"]: line["cell_id"] for line in cells.lines}
    assert len(lines) == len(_every(cells))
    table = pq.read_table(cells.folder / "cells.parquet", columns=["Object ID", "cell_id"])
    columns = (table[name].to_pylist() for name in table.column_names)
    assert dict(zip(*columns, strict=True)) == lines
    assert {row["Object ID"]: int(row["cell_id"]) for row in _table(cells)} == lines
    assert [feature["id"] for feature in cells.features] == list(lines)


def test_files_written_twice_are_equal_to_the_byte(cells: Written, tmp_path: Path) -> None:
    again = write(tmp_path, cells.blocks, kind="cell", threads=1)
    names = sorted(path.name for path in cells.folder.iterdir())
    assert names == sorted(path.name for path in again.folder.iterdir())
    assert len(names) == 8
    for name in names:
        assert (again.folder / name).read_bytes() == (cells.folder / name).read_bytes(), name


def test_a_ring_without_area_is_in_no_file_and_told(nuclei: Written, tmp_path: Path) -> None:
    block = nuclei.blocks[0]
    corners = block.corners.copy()
    corners[block.starts[2] : block.starts[3], 1] = 20.0
    written = write(tmp_path, [replace(block, corners=corners)])
    assert written.told == {"cells_dropped": 1}
    ranks = [line["cell_id"] for line in written.lines]
    assert ranks == [rank for rank in range(1, len(block) + 1) if rank != 3]
    assert [int(row["cell_id"]) for row in _table(written)] == ranks
    assert len(written.features) == len(ranks) == written.document["total_cells"]


def test_a_slide_without_cells_has_every_file_and_each_can_be_read(tmp_path: Path) -> None:
    written = write(tmp_path, [])
    assert written.features == written.lines == written.document["cells"] == _table(written) == []
    assert pq.read_table(tmp_path / "cells.parquet").num_rows == 0


class _Stopped(Exception):
    pass


def test_what_stops_an_export_leaves_no_file_and_none_open(tmp_path: Path) -> None:
    def stop(_done: int, _total: int) -> None:
        raise _Stopped

    with pytest.raises(_Stopped):
        write(tmp_path, blocks_of(label_map())[:2], tick=stop)
    gc.collect()  # a file left open is told here, and warnings are errors
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_told_by_whichever_file_met_it(tmp_path: Path) -> None:
    def write_to_full_disk() -> None:
        with staging(tmp_path) as stage:
            (stage.folder / "cells.csv").symlink_to("/dev/full")
            with opened(stage) as files:
                fill(files, blocks_of(label_map())[:2])

    with pytest.raises(OSError, match="No space left"):
        write_to_full_disk()
    assert list(tmp_path.iterdir()) == []
