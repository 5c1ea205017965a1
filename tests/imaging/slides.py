"""Slides made on the spot from pixels, and a job run on them with the real model."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray

from jobs.imaging.contract import CellRequest, Outcome
from jobs.imaging.pipeline import segment_cells

GLASS = 244
Pixels = NDArray[np.uint8]


def silent(_phase: str, _done: int, _total: int) -> None:
    """A report that nobody hears."""


def write_levels(path: Path, levels: list[Pixels], *, mpp: float | None) -> Path:
    """A tiled, lossless TIFF with these levels; `mpp` of the first goes into its tags."""
    with tifffile.TiffWriter(path) as writer:
        for index, pixels in enumerate(levels):
            tags: dict[str, Any] = {"resolution": (1, 1), "resolutionunit": "NONE"}
            if mpp is not None:
                per_cm = 1e4 / mpp * pixels.shape[1] / levels[0].shape[1]
                tags = {"resolution": (per_cm, per_cm), "resolutionunit": "CENTIMETER"}
            writer.write(
                pixels,
                tile=(256, 256),
                photometric="rgb",
                subfiletype=0 if index == 0 else 1,
                metadata=None,
                **tags,
            )
    return path


def on_glass(patch: Pixels, at: tuple[int, int], size: tuple[int, int]) -> Pixels:
    """A picture of even glass, (width, height) `size`, with `patch` pasted at (x, y) `at`."""
    picture = np.full((size[1], size[0], 3), GLASS, np.uint8)
    x, y = at
    picture[y : y + patch.shape[0], x : x + patch.shape[1]] = patch
    return picture


@dataclass(frozen=True)
class Run:
    """A finished job and where its files are."""

    outcome: Outcome
    folder: Path

    @property
    def document(self) -> dict[str, Any]:
        return self._json("W_cells_segmentation.json")

    @property
    def manifest(self) -> dict[str, Any]:
        return self._json("manifest.json")

    @property
    def cells(self) -> list[dict[str, Any]]:
        lines = (self.folder / "J_cells.jsonl").read_text().splitlines()
        return [json.loads(line) for line in lines]

    def _json(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.folder / name).read_text())
        return found


def run_cells(slide: Path, model: Path, folder: Path, **params: object) -> Run:
    """Segment `slide` into `folder`."""
    request = cell_request(slide, model, folder, **params)
    return Run(segment_cells(request, report=silent), folder)


def cell_request(slide: Path, model: Path, folder: Path, **params: object) -> CellRequest:
    """A request with short names for its ids."""
    return CellRequest(
        slide=slide,
        out_dir=folder,
        model=model,
        workflow_uuid="W",
        job_uuid="J",
        job_key="cells",
        result_key="key",
        params=params,
    )


def outlines_of(cells: list[dict[str, Any]]) -> set[tuple[tuple[float, float], ...]]:
    """The rings of all cells, to compare two results pixel for pixel."""
    return {tuple((x, y) for x, y in cell["polygon"]) for cell in cells}
