"""`cells.parquet`: GeoParquet 1.1, one row a cell in grid order, polygons in level-0 pixels."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from jobs.imaging.cells import Schema
from jobs.imaging.compiled import compiled
from jobs.imaging.export.batch import Batch
from jobs.imaging.export.frame import Frame
from jobs.imaging.export.identity import LENGTH

if TYPE_CHECKING:
    import pyarrow as pa  # type: ignore[import-untyped]

ROW_GROUP = 32_768
SIDES = ("xmin", "ymin", "xmax", "ymax")


class GeoParquet:
    """Streams the file; a row group is written whenever ROW_GROUP cells are there."""

    def __init__(self, path: Path, *, schema: Schema, frame: Frame) -> None:
        import pyarrow as pa  # 50 MB of libraries: loaded when a job exports, not with the worker
        import pyarrow.parquet as pq  # type: ignore[import-untyped]

        self._pa, self._names, self._frame = pa, schema.names, frame
        self._cells = schema.object_type == "cell"
        self._schema = self._columns()
        self._box = np.array([np.inf, np.inf, -np.inf, -np.inf])
        self._writer = pq.ParquetWriter(
            path,
            self._schema,
            compression="zstd",
            compression_level=1,
            use_dictionary=False,
            column_encoding=dict.fromkeys(schema.names, "BYTE_STREAM_SPLIT"),
            write_page_index=True,
        )
        self._waiting: list[pa.RecordBatch] = []

    def add(self, batch: Batch) -> None:
        """Append the rows of a batch."""
        self._waiting.append(self._rows(batch))
        if sum(len(rows) for rows in self._waiting) >= ROW_GROUP:
            self._flush()

    def close(self) -> None:
        """Write the last rows and what GeoParquet says of the columns."""
        if self._waiting:
            self._flush()
        self._writer.add_key_value_metadata({"geo": json.dumps(self._geo())})
        self._writer.close()

    def _flush(self) -> None:
        table = self._pa.Table.from_batches(self._waiting, self._schema)
        self._writer.write_table(table, row_group_size=max(1, len(table)))
        self._waiting = []

    def _columns(self) -> pa.Schema:
        pa = self._pa
        box = pa.struct([(side, pa.float64()) for side in SIDES])
        nucleus = [("nucleus_geometry", pa.binary())] if self._cells else []
        return pa.schema(
            [
                ("Object ID", pa.string()),
                ("cell_id", pa.int64()),
                ("geometry", pa.binary()),
                *nucleus,
                ("bbox", box),
                ("centroid_x_l0", pa.float64()),
                ("centroid_y_l0", pa.float64()),
                ("Centroid X µm", pa.float64()),
                ("Centroid Y µm", pa.float64()),
                ("near_gap", pa.bool_()),
                *((name, pa.float32()) for name in self._names),
            ]
        )

    def _rows(self, batch: Batch) -> pa.RecordBatch:
        pa = self._pa
        boxes = _boxes(batch.corners, batch.starts) / 100
        if len(boxes):
            np.minimum(self._box[:2], boxes[:, :2].min(axis=0), out=self._box[:2])
            np.maximum(self._box[2:], boxes[:, 2:].max(axis=0), out=self._box[2:])
        sides = [pa.array(np.ascontiguousarray(boxes[:, k])) for k in range(4)]
        um, l0 = self._frame.um(batch.centroid), batch.centroid / 100
        ids = np.arange(len(batch) + 1, dtype=np.int32) * LENGTH
        columns = [
            pa.StringArray.from_buffers(len(batch), pa.py_buffer(ids), pa.py_buffer(batch.ids)),
            pa.array(batch.ranks),
            self._polygons(batch.corners, batch.starts),
            *([self._polygons(batch.nuclei, batch.nucleus_starts)] if self._cells else []),
            pa.StructArray.from_arrays(sides, SIDES),
            *(pa.array(np.ascontiguousarray(axis)) for axis in (*l0.T, *um.T)),
            pa.array(batch.near_gap),
            *(pa.array(column.astype(np.float32)) for column in batch.values.T),
        ]
        return pa.RecordBatch.from_arrays(columns, schema=self._schema)

    def _polygons(self, corners: NDArray[np.int64], starts: NDArray[np.int64]) -> pa.Array:
        """WKB of each ring; null where it has no corner."""
        content, ends = _wkb(corners, starts)
        there = np.diff(starts) > 0
        nulls = None if there.all() else self._pa.py_buffer(np.packbits(there, bitorder="little"))
        buffers = [nulls, self._pa.py_buffer(ends), self._pa.py_buffer(content)]
        return self._pa.Array.from_buffers(self._pa.binary(), len(there), buffers)

    def _geo(self) -> dict[str, Any]:
        planar: dict[str, Any] = {
            "encoding": "WKB",
            "geometry_types": ["Polygon"],
            "crs": None,
            "edges": "planar",
        }
        known = {"bbox": self._box.tolist()} if np.isfinite(self._box).all() else {}
        covering = {"covering": {"bbox": {side: ["bbox", side] for side in SIDES}}}
        columns = {"geometry": planar | known | covering}
        if self._cells:
            columns["nucleus_geometry"] = planar
        return {"version": "1.1.0", "primary_column": "geometry", "columns": columns}


@compiled
def _boxes(corners: NDArray[np.int64], starts: NDArray[np.int64]) -> NDArray[np.int64]:
    """(n, 4) x0, y0, x1, y1 of each ring."""
    boxes = np.empty((len(starts) - 1, 4), np.int64)
    for i in range(len(boxes)):
        for axis in range(2):
            boxes[i, axis] = corners[starts[i], axis]
            boxes[i, 2 + axis] = corners[starts[i], axis]
        for k in range(starts[i] + 1, starts[i + 1]):
            for axis in range(2):
                boxes[i, axis] = min(boxes[i, axis], corners[k, axis])
                boxes[i, 2 + axis] = max(boxes[i, 2 + axis], corners[k, axis])
    return boxes


def _wkb(
    corners: NDArray[np.int64], starts: NDArray[np.int64]
) -> tuple[NDArray[np.uint8], NDArray[np.int32]]:
    """Every ring as WKB of a polygon, little-endian, one after the other, and where each ends."""
    lengths = np.diff(starts)
    sizes = np.where(lengths > 0, 13 + 16 * (lengths + 1), 0)
    ends = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int32)
    closed = np.empty((int((lengths + (lengths > 0)).sum()), 2))
    content = np.empty(int(ends[-1]), np.uint8)
    _fill(content, ends, corners, starts, closed, closed.view(np.uint8).reshape(-1, 16))
    return content, ends


@compiled
def _fill(
    content: NDArray[np.uint8],
    ends: NDArray[np.int32],
    corners: NDArray[np.int64],
    starts: NDArray[np.int64],
    closed: NDArray[np.float64],
    raw: NDArray[np.uint8],
) -> None:
    """`raw` is the bytes of `closed`."""
    point = 0
    for i in range(len(starts) - 1):
        count = starts[i + 1] - starts[i]
        if count == 0:
            continue
        at = ends[i]
        content[at : at + 13] = 0
        content[at], content[at + 1], content[at + 5] = 1, 3, 1
        for byte in range(4):
            content[at + 9 + byte] = ((count + 1) >> (8 * byte)) & 255
        at += 13
        for k in range(count + 1):
            corner = starts[i] + (k if k < count else 0)
            closed[point, 0] = corners[corner, 0] / 100
            closed[point, 1] = corners[corner, 1] / 100
            content[at : at + 16] = raw[point]
            at, point = at + 16, point + 1
