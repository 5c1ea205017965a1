"""The result files: formats, frames, ids, hashes, and that a second run writes the same bytes."""

from __future__ import annotations

import csv
import gzip
import hashlib
import json
import uuid
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import shapely
import tifffile

from jobs.imaging.export.chunks import decode, read_chunk
from jobs.imaging.network import Network
from jobs.imaging.pipeline import segment_cells
from tests.imaging.slides import Run, cell_request, run_cells, silent

FILES = {
    "J_cells.jsonl": "cells_jsonl",
    "W_cells_segmentation.json": "segmentation",
    "cells.geojson.gz": "geojson",
    "cells.parquet": "parquet",
    "cells.csv": "csv",
    "chunks.bin": "chunks",
    "overlay.bin": "overlay",
    "labels.ome.tiff": "labels",
    "manifest.json": "manifest",
}


def _features(run: Run) -> list[dict]:
    with gzip.open(run.folder / "cells.geojson.gz") as stream:
        collection = json.load(stream)
    assert collection["type"] == "FeatureCollection"
    return collection["features"]


def test_a_job_leaves_its_files_and_nothing_else(small_run: Run) -> None:
    assert {artifact.name: artifact.kind for artifact in small_run.outcome.artifacts} == FILES
    assert {path.name for path in small_run.folder.iterdir()} == set(FILES)
    assert small_run.outcome.main == "J_cells.jsonl"
    assert small_run.outcome.summary["cells"] == len(small_run.cells) > 20


def test_the_document_is_the_published_one(small_run: Run) -> None:
    document = small_run.document
    assert list(document) == [
        "cells",
        "total_cells",
        "tiles_processed",
        "method",
        "coordinate_order",
    ]
    assert document["coordinate_order"] == {"polygon": "yx", "centroid": "xy"}
    assert (document["method"], document["tiles_processed"]) == ("direct", 1)
    assert document["total_cells"] == len(document["cells"])
    for cell in document["cells"]:
        assert list(cell) == ["cell_id", "label_id", "polygon", "area", "centroid"]


def test_lines_say_the_same_with_x_first(small_run: Run) -> None:
    for line, cell in zip(small_run.cells, small_run.document["cells"], strict=True):
        assert line["polygon"] == [[x, y] for y, x in cell["polygon"]]
        for name in ("cell_id", "label_id", "area", "centroid"):
            assert line[name] == cell[name]
        assert line["tile_origin"] == [0.0, 0.0]
        assert line["pixel_size_um"] == [0.5, 0.5]


def test_every_outline_is_valid_holds_its_centroid_and_has_its_area(small_run: Run) -> None:
    for cell in small_run.cells:
        polygon = shapely.Polygon(cell["polygon"])
        assert polygon.is_valid
        assert polygon.contains(shapely.Point(cell["centroid"]))
        assert polygon.area == pytest.approx(cell["area"])


def test_no_two_cells_overlap(small_run: Run) -> None:
    polygons = [shapely.Polygon(cell["polygon"]) for cell in small_run.cells]
    tree = shapely.STRtree(polygons)
    for one, other in tree.query(polygons, predicate="overlaps").T:
        both = polygons[one].intersection(polygons[other]).area
        assert both < 0.5 * polygons[one].union(polygons[other]).area


def test_ids_are_unique_and_ranks_count_from_one(small_run: Run) -> None:
    ranks = [cell["cell_id"] for cell in small_run.cells]
    assert ranks == list(range(1, len(ranks) + 1))
    ids = [cell["id"] for cell in small_run.cells]
    assert len(set(ids)) == len(ids)
    assert all(uuid.UUID(one).version == 5 for one in ids)


def test_geojson_is_what_qupath_reads_as_detections(small_run: Run) -> None:
    features = _features(small_run)
    assert [one["id"] for one in features] == [cell["id"] for cell in small_run.cells]
    for feature, cell in zip(features, small_run.cells, strict=True):
        (ring,) = feature["geometry"]["coordinates"]
        assert ring[0] == ring[-1]
        assert ring[:-1] == cell["polygon"]
        properties = feature["properties"]
        assert set(properties) == {"objectType", "measurements"}
        assert properties["objectType"] == "detection"
        measured = properties["measurements"]
        assert measured["Area µm^2"] == pytest.approx(cell["area"] * 0.25, abs=1e-3)
        assert all(np.isfinite(list(measured.values())))
        assert 0 < measured["Circularity"] <= 1
        assert 0 < measured["Solidity"] <= 1
        assert measured["Min diameter µm"] <= measured["Max diameter µm"]
        assert measured["Hematoxylin: Min"] <= measured["Hematoxylin: Mean"]


def test_every_file_tells_the_same_cells(small_run: Run) -> None:
    ids = {cell["id"]: cell["cell_id"] for cell in small_run.cells}
    table = pq.read_table(small_run.folder / "cells.parquet").to_pydict()
    assert dict(zip(table["Object ID"], table["cell_id"], strict=True)) == ids
    with (small_run.folder / "cells.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert {row["Object ID"]: int(row["cell_id"]) for row in rows} == ids
    labels = tifffile.imread(small_run.folder / "labels.ome.tiff")
    ranks, pixels = np.unique(labels[labels > 0], return_counts=True)
    assert ranks.tolist() == list(ids.values())
    scale = 448**2 / labels.size
    areas = np.array([cell["area"] for cell in small_run.cells])
    assert (pixels * scale <= areas + 0.01).all()
    assert pixels.sum() * scale > 0.99 * areas.sum()
    with (small_run.folder / "chunks.bin").open("rb") as stream:
        chunk = read_chunk(stream, (0, 0))
    assert chunk is not None
    assert decode(gzip.decompress(chunk)).heads["id"].tolist() == list(ids.values())


def test_nuclei_hold_more_hematoxylin_than_the_tissue_around(small_run: Run) -> None:
    means = [one["properties"]["measurements"]["Hematoxylin: Mean"] for one in _features(small_run)]
    assert np.median(means) > 0.3


def test_the_manifest_names_slide_model_and_the_hash_of_every_file(
    small_run: Run, small_slide: Path, net: Network
) -> None:
    manifest = small_run.manifest
    assert manifest["slide"]["sha256"] == hashlib.sha256(small_slide.read_bytes()).hexdigest()
    assert manifest["model"]["sha256"] == hashlib.sha256(net.path.read_bytes()).hexdigest()
    told = {one["name"]: one["sha256"] for one in manifest["artifacts"]}
    assert set(told) == set(FILES) - {"manifest.json"}
    for name, sha256 in told.items():
        assert hashlib.sha256((small_run.folder / name).read_bytes()).hexdigest() == sha256
    assert manifest["contour"] == "pixel_edge"
    assert manifest["software"]["torch"]
    assert set(manifest["seconds"]) == {"open", "tissue", "segment", "merge", "measure", "export"}


def test_results_call_a_model_by_the_name_it_was_registered_under(
    small_slide: Path, net: Network, tmp_path: Path
) -> None:
    request = cell_request(small_slide, net.path, tmp_path / "out")
    request = replace(request, model_name="lab_he", model_version="2")
    assert segment_cells(request, report=silent).summary["model"] == "lab_he 2"
    told = json.loads((tmp_path / "out" / "manifest.json").read_text())["model"]
    assert (told["name"], told["version"]) == ("lab_he", "2")


def test_a_second_run_writes_the_same_bytes(
    small_run: Run, small_slide: Path, net: Network, tmp_path: Path
) -> None:
    again = run_cells(small_slide, net.path, tmp_path / "again")
    for name in set(FILES) - {"manifest.json"}:
        assert (again.folder / name).read_bytes() == (small_run.folder / name).read_bytes()


def test_the_smallest_area_leaves_cells_out(
    small_run: Run, small_slide: Path, net: Network, tmp_path: Path
) -> None:
    large = run_cells(small_slide, net.path, tmp_path / "out", min_area_um2=30.0)
    kept = [cell["id"] for cell in small_run.cells if cell["area"] * 0.25 >= 30.0]
    assert [cell["id"] for cell in large.cells] == kept
    assert 0 < len(kept) < len(small_run.cells)


class _Stopped(Exception):
    pass


@pytest.mark.parametrize("phase", ["open", "tissue", "segment", "merge", "measure", "export"])
def test_what_the_report_raises_stops_the_job_and_leaves_no_file(
    small_slide: Path, net: Network, tmp_path: Path, phase: str
) -> None:
    def stop(now: str, _done: int, _total: int) -> None:
        if now == phase:
            raise _Stopped

    with pytest.raises(_Stopped):
        segment_cells(cell_request(small_slide, net.path, tmp_path / "out"), report=stop)
    assert list((tmp_path / "out").glob("**/*")) == []


def test_progress_goes_through_the_phases_and_never_back(
    small_slide: Path, net: Network, tmp_path: Path
) -> None:
    heard: list[tuple[str, float]] = []

    def report(phase: str, done: int, total: int) -> None:
        assert 0 <= done <= total
        heard.append((phase, done / total))

    segment_cells(cell_request(small_slide, net.path, tmp_path / "out"), report=report)
    phases = list(dict.fromkeys(phase for phase, _ in heard))
    assert phases == ["open", "tissue", "segment", "merge", "measure", "export"]
    for phase in phases:
        parts = [part for name, part in heard if name == phase]
        assert parts == sorted(parts)
        assert parts[-1] == 1.0
