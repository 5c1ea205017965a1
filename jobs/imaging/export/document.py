"""`<workflow uuid>_<key>_segmentation.json`: the published document, whose polygons are [y, x]."""

from __future__ import annotations

from typing import BinaryIO

from jobs.imaging.export.batch import Batch
from jobs.imaging.export.text import Template
from jobs.imaging.export.writing import Unled, encoded


class Document:
    """Streams the document; the totals that follow the cells are known when it is closed."""

    def __init__(self, stream: BinaryIO, *, tiles: int, method: str) -> None:
        self._tail = {
            "tiles_processed": tiles,
            "method": method,
            "coordinate_order": {"polygon": "yx", "centroid": "xy"},
        }
        self._template = (
            Template()
            .text(',{"cell_id":')
            .rank()
            .text(',"label_id":')
            .rank()
            .text(',"polygon":')
            .ring(y_first=True, origin=(0, 0))
            .text(',"area":')
            .area()
            .text(',"centroid":[')
            .point(0)
            .text("]")
            .choice(0, ',"near_gap":true')
            .text("}")
        )
        self._total = 0
        self._rows = Unled(b",")
        self._stream = stream
        self._stream.write(b'{"cells":[')

    def add(self, batch: Batch) -> None:
        """Append the cells of a batch."""
        rows = self._template.render(batch, points=(batch.centroid,), flags=(batch.near_gap,))
        self._stream.write(self._rows.unled(rows))
        self._total += len(batch)

    def close(self) -> None:
        """Write the totals and end the file."""
        tail = encoded({"total_cells": self._total, **self._tail})
        self._stream.write(b"]," + tail[1:])
