"""The real JTS, through whose precision reducer QuPath reads every polygon, takes all of ours."""

from __future__ import annotations

import gzip
import json
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import shapely

from tests.imaging.exported import blocks_of, label_map, write
from tests.imaging.slides import Run

JTS = Path("/usr/share/java/jts-core.jar")
PROGRAM = Path(__file__).parent / "jts" / "Reduce.java"


def _geometries(path: Path) -> list[dict[str, Any]]:
    with gzip.open(path) as stream:
        features = json.load(stream)["features"]
    keys = ("geometry", "nucleusGeometry")
    return [feature[key] for feature in features for key in keys if key in feature]


def _reduced(wkt: Iterable[str]) -> list[tuple[str, str]]:
    """What JTS makes of each polygon: its type and its area, or why it was refused."""
    java = shutil.which("java")
    if java is None or not JTS.is_file():
        pytest.skip("no JTS here: apt-get install default-jdk-headless libjts-java")
    command = [java, "-cp", str(JTS), str(PROGRAM)]
    text = "".join(f"{each}\n" for each in wkt)
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=True)
    kinds = [line.split(" ", 1) for line in done.stdout.splitlines()]
    return [(kind, rest) for kind, rest in kinds]


def _assert_accepted(geometries: list[dict[str, Any]]) -> None:
    polygons = [shapely.geometry.shape(each) for each in geometries]
    assert shapely.is_valid(polygons).all()
    for polygon, (kind, rest) in zip(polygons, _reduced(map(str, polygons)), strict=True):
        assert kind == "Polygon", rest
        assert float(rest) == pytest.approx(polygon.area, abs=1e-6)


def test_jts_takes_every_nucleus_of_a_real_run(small_run: Run) -> None:
    geometries = _geometries(small_run.folder / "cells.geojson.gz")
    assert len(geometries) == len(small_run.cells)
    _assert_accepted(geometries)


def test_jts_takes_cells_and_nuclei_at_a_scale_that_is_not_whole(tmp_path: Path) -> None:
    write(tmp_path, blocks_of(label_map(), nuclei=True), kind="cell")
    _assert_accepted(_geometries(tmp_path / "cells.geojson.gz"))


def test_jts_refuses_what_crosses_itself() -> None:
    ((kind, _),) = _reduced(["POLYGON ((0 0, 10 10, 10 0, 0 8, 0 0))"])
    assert kind != "Polygon"
