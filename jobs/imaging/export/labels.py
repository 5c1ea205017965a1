"""`labels.ome.tiff`: the cells as a label image on the model plane; a pixel holds `cell_id`, or 0.

uint32, tiled, deflate, a pyramid in SubIFDs (each level takes one pixel of two by two, never a mean).
Cells with nuclei have a second channel, the nuclei, with the ids of their cells. The image begins at
level-0 pixel 0, 0 whatever the slide's bounds.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from isal import isal_zlib
from numpy.typing import NDArray

from jobs.imaging.ahead import in_order
from jobs.imaging.export.drawing import fill_labels
from jobs.imaging.export.frame import Frame
from jobs.imaging.export.places import CELL, NUCLEUS, Places
from jobs.imaging.export.writing import LEVEL, Step

TILE = 512
ROWS, COLUMNS = 2, 4
"""Tiles of a canvas, which are drawn together."""

SMALLEST = 1024
"""Levels end when both sides are at most this."""

NOTHING = isal_zlib.compress(bytes(4 * TILE * TILE), LEVEL)
NAMES = {CELL: "cells", NUCLEUS: "nuclei"}
SCHEMA = "http://www.openmicroscopy.org/Schemas/OME/2016-06"


@dataclass(frozen=True)
class _Canvas:
    """Tiles of one channel and level: `column`, `row` of the first; `columns` by `rows` of them."""

    kind: int
    stride: int
    column: int
    row: int
    columns: int
    rows: int


class Labels:
    """The image of a slide, written at once when every outline is in its place."""

    def __init__(self, path: Path, places: Places, frame: Frame, *, nuclei: bool) -> None:
        self._path, self._places, self._frame = path, places, frame
        self._kinds = (CELL, NUCLEUS) if nuclei else (CELL,)
        self._levels = [
            (2**level, _shrunk(frame.plane, 2**level))
            for level in range(1 + max(0, math.ceil(math.log2(max(frame.plane) / SMALLEST))))
        ]

    @property
    def steps(self) -> int:
        """How often `write` calls `step`."""
        return sum(len(self._canvases(*level)) for level in self._levels)

    def write(self, pool: Executor, step: Step) -> None:
        """Write the file."""
        from tifffile import TiffWriter

        with TiffWriter(self._path, bigtiff=True) as writer:
            for stride, (width, height) in self._levels:
                writer.write(
                    self._tiles(stride, (width, height), pool, step),
                    shape=(len(self._kinds), height, width),
                    dtype=np.uint32,
                    tile=(TILE, TILE),
                    photometric="minisblack",
                    compression="zlib",
                    subifds=len(self._levels) - 1 if stride == 1 else 0,
                    subfiletype=0 if stride == 1 else 1,
                    description=self._xml().encode() if stride == 1 else None,
                    metadata=None,
                    software=False,
                )

    def _tiles(
        self, stride: int, size: tuple[int, int], pool: Executor, step: Step
    ) -> Iterator[bytes]:
        """Every tile of a level, deflated: channels one by one, rows from the top."""
        across = math.ceil(size[0] / TILE)
        rows: list[list[bytes]] = [[] for _ in range(ROWS)]
        for drawn in in_order(pool, self._drawn, self._canvases(stride, size), ahead=3):
            for row, tiles in zip(rows, drawn, strict=False):
                row.extend(tiles)
            step()
            if len(rows[0]) == across:
                for row in rows:
                    yield from row
                    row.clear()

    def _canvases(self, stride: int, size: tuple[int, int]) -> list[_Canvas]:
        across, down = math.ceil(size[0] / TILE), math.ceil(size[1] / TILE)
        return [
            _Canvas(kind, stride, column, row, min(COLUMNS, across - column), min(ROWS, down - row))
            for kind in self._kinds
            for row in range(0, down, ROWS)
            for column in range(0, across, COLUMNS)
        ]

    def _drawn(self, canvas: _Canvas) -> list[list[bytes]]:
        """The tiles of a canvas, deflated, by row."""
        squares = self._places.touching(self._box(canvas))
        if not squares:
            return [[NOTHING] * canvas.columns for _ in range(canvas.rows)]
        pixels = np.zeros((canvas.rows * TILE, canvas.columns * TILE), np.uint32)
        areas = np.zeros(pixels.shape, np.float32)
        for square in squares:
            fill_labels(
                pixels,
                areas,
                self._places.read(square),
                kind=canvas.kind,
                corner=(canvas.column * TILE, canvas.row * TILE),
                scale=self._frame.scale,
                stride=canvas.stride,
            )
        tiles = pixels.reshape(canvas.rows, TILE, canvas.columns, TILE).swapaxes(1, 2)
        return [[_deflated(tile) for tile in row] for row in tiles]

    def _box(self, canvas: _Canvas) -> tuple[float, float, float, float]:
        """Where a canvas lies, in level-0 pixels."""
        across, down = (canvas.stride * TILE * scale for scale in self._frame.scale)
        return (
            canvas.column * across,
            canvas.row * down,
            (canvas.column + canvas.columns) * across,
            (canvas.row + canvas.rows) * down,
        )

    def _xml(self) -> str:
        """OME's description of the image."""
        width, height = self._frame.plane
        across, down = (
            size * scale
            for size, scale in zip(self._frame.pixel_size, self._frame.scale, strict=True)
        )
        channels = "".join(
            f'<Channel ID="Channel:0:{kind}" Name="{NAMES[kind]}" SamplesPerPixel="1"/>'
            for kind in self._kinds
        )
        planes = "".join(
            f'<TiffData FirstC="{kind}" FirstZ="0" FirstT="0" IFD="{kind}" PlaneCount="1"/>'
            for kind in self._kinds
        )
        return (
            '<?xml version="1.0" encoding="UTF-8"?>'
            f'<OME xmlns="{SCHEMA}" xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance" '
            f'xsi:schemaLocation="{SCHEMA} {SCHEMA}/ome.xsd" Creator="labsched">'
            '<Image ID="Image:0" Name="labels"><Pixels ID="Pixels:0" DimensionOrder="XYCZT" '
            f'Type="uint32" SizeX="{width}" SizeY="{height}" SizeC="{len(self._kinds)}" SizeZ="1" '
            f'SizeT="1" PhysicalSizeX="{across:.6g}" PhysicalSizeXUnit="µm" '
            f'PhysicalSizeY="{down:.6g}" PhysicalSizeYUnit="µm">'
            f"{channels}{planes}</Pixels></Image></OME>"
        )


def _shrunk(plane: tuple[int, int], stride: int) -> tuple[int, int]:
    return max(1, plane[0] // stride), max(1, plane[1] // stride)


def _deflated(tile: NDArray[np.uint32]) -> bytes:
    if not tile.any():
        return NOTHING
    return bytes(isal_zlib.compress(np.ascontiguousarray(tile), LEVEL))
