"""`cells.csv`: the columns of QuPath's own export of measurements, one row a cell."""

from __future__ import annotations

import csv
import io
from typing import BinaryIO

import numpy as np

from jobs.imaging.cells import Schema
from jobs.imaging.export.batch import Batch
from jobs.imaging.export.frame import Frame
from jobs.imaging.export.text import Template

FIRST = (
    "Image",
    "Object ID",
    "Object type",
    "Name",
    "Classification",
    "Parent",
    "ROI",
    "Centroid X µm",
    "Centroid Y µm",
)
LAST = ("cell_id", "near_gap")
ROOT = "Root object (Image)"
"""What QuPath calls the parent of an object that lies in no annotation."""


class Table:
    """Streams the table; centroids in µm from the corner that QuPath shows."""

    def __init__(self, stream: BinaryIO, *, schema: Schema, frame: Frame, image: str) -> None:
        self._frame = frame
        template = Template(not_a_number="NaN").text(_row(safe(image))[:-1] + ",").object_id()
        template.text(f",{schema.object_type.capitalize()},,,{ROOT},Polygon")
        for column in range(2 + len(schema.names)):
            template.text(",").value(column)
        self._template = template.text(",").rank().choice(0, ",true\n", ",false\n")
        self._stream = stream
        self._stream.write(_row(*FIRST, *map(safe, schema.names), *LAST).encode())

    def add(self, batch: Batch) -> None:
        """Append the rows of a batch."""
        values = np.hstack([self._frame.um(batch.centroid), batch.values])
        self._stream.write(self._template.render(batch, flags=(batch.near_gap,), values=values))

    def close(self) -> None:
        """Nothing follows the last row."""


def safe(name: str) -> str:
    """A name that no spreadsheet takes for a formula."""
    return f"'{name}" if name[:1] in tuple("=+-@\t\r") else name


def _row(*cells: str) -> str:
    into = io.StringIO()
    csv.writer(into, lineterminator="\n").writerow(cells)
    return into.getvalue()
