"""`<workflow uuid>_<key>_segmentation.json`: the published document, whose polygons are [y, x]."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

import numpy as np

from jobs.imaging.cells import Cells
from jobs.imaging.export.batch import Batch
from jobs.imaging.export.text import Template
from jobs.imaging.export.writing import Separated, Unled, encoded, numbered


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


class DocumentWriter:
    """Streams the document; the totals that follow the cells are known when it is closed."""

    def __init__(self, path: Path, *, tiles: int, method: str) -> None:
        self.path = path
        self._tail = {
            "tiles_processed": tiles,
            "method": method,
            "coordinate_order": {"polygon": "yx", "centroid": "xy"},
        }
        self._total = 0
        self._comma = Separated(b",")
        self._stream = path.open("wb")
        self._stream.write(b'{"cells":[')

    def add(self, cells: Cells, ids: list[str], first: int) -> None:
        """Append one block; `first` is the rank of its first nucleus."""
        for index, rank, _ in numbered(cells, ids, first):
            self._stream.write(self._comma.before_next())
            self._stream.write(
                encoded(
                    {
                        "cell_id": rank,
                        "label_id": rank,
                        "polygon": np.ascontiguousarray(cells.ring(index)[:, ::-1]),
                        "area": cells.area_l0[index],
                        "centroid": cells.centroid_l0[index],
                    }
                )
            )
        self._total += len(cells)

    def close(self) -> None:
        """Write the totals and end the file."""
        tail = encoded({"total_cells": self._total, **self._tail})
        self._stream.write(b"]," + tail[1:])
        self._stream.close()
