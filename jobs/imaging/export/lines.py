"""`<uuid>_cells.jsonl`: one nucleus a line, everything [x, y] in level-0 pixels."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

from jobs.imaging.cells import Cells
from jobs.imaging.export.batch import Batch
from jobs.imaging.export.text import Template
from jobs.imaging.export.writing import encoded, numbered


class Lines:
    """Streams the lines."""

    def __init__(self, stream: BinaryIO, *, pixel_size: tuple[float, float]) -> None:
        size = encoded(list(pixel_size)).decode()
        self._template = (
            Template()
            .text('{"cell_id":')
            .rank()
            .text(',"label_id":')
            .rank()
            .text(',"id":"')
            .object_id()
            .text('","polygon":')
            .ring(origin=(0, 0))
            .text(',"area":')
            .area()
            .text(',"centroid":[')
            .point(0)
            .text('],"centroid_kind":"')
            .choice(0, "inside_point", "centroid")
            .text('","tile_origin":[')
            .point(1)
            .text(f'],"pixel_size_um":{size}')
            .choice(1, ',"near_gap":true')
            .text("}\n")
        )
        self._stream = stream

    def add(self, batch: Batch) -> None:
        """Append the lines of a batch."""
        points, flags = (batch.centroid, batch.origin), (batch.replaced, batch.near_gap)
        self._stream.write(self._template.render(batch, points=points, flags=flags))

    def close(self) -> None:
        """Nothing follows the last row."""


class LinesWriter:
    """Streams the lines."""

    def __init__(self, path: Path, *, pixel_size: tuple[float, float]) -> None:
        self.path = path
        self._pixel_size = list(pixel_size)
        self._stream = path.open("wb")

    def add(self, cells: Cells, ids: list[str], first: int) -> None:
        """Append one block; `first` is the rank of its first nucleus."""
        for index, rank, object_id in numbered(cells, ids, first):
            line = {
                "cell_id": rank,
                "label_id": rank,
                "id": object_id,
                "polygon": cells.ring(index),
                "area": cells.area_l0[index],
                "centroid": cells.centroid_l0[index],
                "centroid_kind": "inside_point" if cells.replaced[index] else "centroid",
                "tile_origin": cells.origin_l0,
                "pixel_size_um": self._pixel_size,
            }
            self._stream.write(encoded(line) + b"\n")

    def close(self) -> None:
        """End the file."""
        self._stream.close()
