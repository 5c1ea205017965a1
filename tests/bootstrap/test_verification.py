"""The demo's own check of its result finds what is wrong, and only that."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from labsched.verification import Verdict, verify

GLASS = np.full((7, 7, 3), 244, np.uint8)
INK = np.full((7, 7, 3), (90, 60, 140), np.uint8)


def square(x: float, y: float, side: float = 10) -> dict[str, Any]:
    """A cell whose outline is a square with its middle at (x, y)."""
    half = side / 2
    corners = [(-half, -half), (half, -half), (half, half), (-half, half), (-half, -half)]
    return {"polygon": [[x + dx, y + dy] for dx, dy in corners], "centroid": [x, y]}


def check(folder: Path, cells: list[dict[str, Any]], *, seen: NDArray[np.uint8] = INK) -> Verdict:
    """Verify cells on a slide of 160 x 320 whose left half is tissue; off it one sees `seen`."""
    lines = folder / "cells.jsonl"
    lines.write_text("".join(json.dumps(cell) + "\n" for cell in cells))
    mask = np.zeros((20, 10), np.uint8)
    mask[:, :5] = 255
    Image.fromarray(mask).save(folder / "mask.png")
    return verify(
        lines, mask_png=folder / "mask.png", scale_l0=(16, 16), read=lambda x, y, size: seen
    )


def test_good_cells_pass(tmp_path: Path) -> None:
    found = check(tmp_path, [square(20, 20), square(40, 300), square(26, 20)])
    assert found == Verdict(cells=3, on_glass=0, duplicates=0, centroid_outside=0)
    assert found.faults() == []


def test_no_cells_are_no_fault(tmp_path: Path) -> None:
    assert check(tmp_path, []).faults() == []


def test_a_cell_on_bare_glass_is_found(tmp_path: Path) -> None:
    found = check(tmp_path, [square(20, 20), square(120, 20)], seen=GLASS)
    assert found.on_glass == 1
    assert found.faults() == ["1 cells lie on bare glass, off the tissue mask."]


def test_a_dark_cell_beside_the_mask_is_not_on_glass(tmp_path: Path) -> None:
    assert check(tmp_path, [square(120, 20)], seen=INK).on_glass == 0


def test_a_cell_reported_twice_is_found_once(tmp_path: Path) -> None:
    found = check(tmp_path, [square(20, 20), square(21, 20), square(60, 20)])
    assert found.duplicates == 1


def test_swapped_axes_are_found(tmp_path: Path) -> None:
    cell = square(20, 300)
    cell["centroid"].reverse()
    assert check(tmp_path, [cell]).centroid_outside == 1
