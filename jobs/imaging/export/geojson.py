"""GeoJSON as QuPath reads it: detections with measurements, and tissue as a locked annotation."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import shapely
from isal import isal_zlib
from numpy.typing import NDArray
from scipy import ndimage

from jobs.imaging import contours, measurement
from jobs.imaging.cells import Schema
from jobs.imaging.export.batch import Batch
from jobs.imaging.export.frame import Frame
from jobs.imaging.export.text import Template
from jobs.imaging.export.writing import GZIP, LEVEL, Unled, encoded
from jobs.imaging.tissue import Tissue

TISSUE_COLOUR = [0, 0, 180]


class Detections:
    """Streams `cells.geojson.gz`. Coordinates start where QuPath shows the image's corner: at the
    slide's bounds where it has them."""

    def __init__(self, stream: BinaryIO, *, schema: Schema, frame: Frame) -> None:
        self._template = _template(schema, frame.origin)
        self._rows = Unled(b",\n")
        self._file = stream
        self._gzip = isal_zlib.compressobj(LEVEL, wbits=GZIP)
        self._write(b'{"type":"FeatureCollection","features":[\n')

    def add(self, batch: Batch) -> None:
        """Append the features of a batch."""
        flags = (batch.has_nucleus, batch.near_gap)
        self._write(self._rows.unled(self._template.render(batch, flags=flags)))

    def close(self) -> None:
        """End the file."""
        self._write(b"\n]}\n")
        self._file.write(self._gzip.flush())

    def _write(self, text: bytes | memoryview) -> None:
        self._file.write(self._gzip.compress(text))


def _template(schema: Schema, origin: tuple[int, int]) -> Template:
    template = Template().text(',\n{"type":"Feature","id":"').object_id()
    template.text('","geometry":{"type":"Polygon","coordinates":[')
    template.ring(closed=True, origin=origin).text("]}")
    if schema.object_type == "cell":
        template.choice(0, ',"nucleusGeometry":{"type":"Polygon","coordinates":[')
        template.nucleus(origin=origin).choice(0, "]}")
    template.text(f',"properties":{{"objectType":"{schema.object_type}","measurements":{{')
    for column, name in enumerate(schema.names):
        template.text(("," if column else "") + encoded(name).decode() + ":").value(column)
    return template.text("}").choice(1, ',"metadata":{"near_gap":"true"}').text("}}")


def write_tissue(
    path: Path, tissue: Tissue, *, result_key: str, mm2_per_pixel: float | None
) -> int:
    """Write the tissue's pieces as one locked annotation each, level-0 pixels; returns how many."""
    pieces = tissue_polygons(tissue)
    per_l0 = mm2_per_pixel and mm2_per_pixel / (tissue.scale[0] * tissue.scale[1])
    features = []
    for index, piece in enumerate(pieces):
        properties: dict[str, Any] = {
            "objectType": "annotation",
            "name": "Tissue",
            "isLocked": True,
            "classification": {"name": "Region*", "color": TISSUE_COLOUR},
        }
        if per_l0:
            properties["measurements"] = {"Tissue area mm^2": round(piece.area * per_l0, 6)}
        features.append(
            {
                "type": "Feature",
                "id": str(uuid.uuid5(uuid.NAMESPACE_OID, f"{result_key}:tissue:{index}")),
                "geometry": shapely.geometry.mapping(piece),
                "properties": properties,
            }
        )
    path.write_bytes(encoded({"type": "FeatureCollection", "features": features}) + b"\n")
    return len(features)


def tissue_polygons(tissue: Tissue) -> list[shapely.Polygon | shapely.MultiPolygon]:
    """One valid polygon with holes per edge-joined piece of the mask, in level-0 pixels."""
    labels, count = ndimage.label(tissue.mask)
    pieces = _filled(labels.astype(np.int32), count, tissue.scale)
    # a hole goes whole, with the further pieces that may lie in it: those are pieces themselves
    holes, hole_count = ndimage.label(~np.pad(tissue.mask, 1))
    outside = holes[0, 0]
    inner = _filled(holes[1:-1, 1:-1].astype(np.int32), hole_count, tissue.scale, skip=outside)
    tree = shapely.STRtree(inner)
    return [
        shapely.difference(piece, shapely.union_all(inner[tree.query(piece, predicate="covers")]))
        for piece in pieces
    ]


def _filled(
    labels: NDArray[np.int32], count: int, scale: tuple[float, float], skip: int = 0
) -> NDArray[np.object_]:
    wanted = np.array([label for label in range(1, count + 1) if label != skip], np.int32)
    traced = contours.outlines(labels, wanted)
    corners = np.round(traced.corners * np.asarray(scale), 2)
    return measurement.rings(corners, traced.starts)
