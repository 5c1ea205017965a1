"""`<uuid>_cells.jsonl`: one nucleus a line, everything [x, y] in level-0 pixels."""

from __future__ import annotations

from typing import BinaryIO

from jobs.imaging.export.batch import Batch
from jobs.imaging.export.text import Template
from jobs.imaging.export.writing import encoded


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
