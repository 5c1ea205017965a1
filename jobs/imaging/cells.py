"""The nuclei of one block as arrays in level-0 pixels, and the file in which blocks wait for export."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from types import TracebackType

import numpy as np
import shapely
from numpy.typing import NDArray

from jobs.imaging.contours import Outlines
from jobs.imaging.measurement import rings
from jobs.imaging.tiling import Rect


@dataclass(frozen=True)
class Cells:
    """n nuclei of one block, in raster order of their root seeds.

    seeds        (n, 2) x, y of the root seed on the model plane
    corners      (k, 2) x, y in level-0 pixels; ring i is corners[starts[i] : starts[i + 1]], open
    area_l0      level-0 pixels
    centroid_l0  (n, 2) x, y, always inside the ring
    replaced     True where the centre of mass lies outside and a point inside stands for it
    values       (n, len(measurement.NAMES))
    origin_l0    x, y of the block
    """

    seeds: NDArray[np.int32]
    corners: NDArray[np.float64]
    starts: NDArray[np.int64]
    area_l0: NDArray[np.float64]
    centroid_l0: NDArray[np.float64]
    replaced: NDArray[np.bool_]
    values: NDArray[np.float64]
    origin_l0: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.seeds)

    def ring(self, index: int) -> NDArray[np.float64]:
        """Corners (x, y) of one nucleus, not closed."""
        return self.corners[self.starts[index] : self.starts[index + 1]]


def located(
    outlined: Outlines,
    seeds: NDArray[np.int32],
    values: NDArray[np.float64],
    *,
    region: Rect,
    block: Rect,
    scale: tuple[float, float],
) -> Cells:
    """Outlines found in `region` of the plane, put into level-0 pixels (`scale` a plane pixel)."""
    origin = np.array([region.x, region.y])
    factor = np.asarray(scale)
    corners = np.round((outlined.corners + origin) * factor, 2)
    centroid, replaced = _inside(
        np.round((outlined.centroid + origin) * factor, 2), rings(corners, outlined.starts)
    )
    return Cells(
        seeds=(seeds[:, ::-1] + origin).astype(np.int32),
        corners=corners,
        starts=outlined.starts,
        area_l0=np.round(outlined.area_px * factor[0] * factor[1], 2),
        centroid_l0=centroid,
        replaced=replaced,
        values=values,
        origin_l0=np.round(np.array([block.x, block.y]) * factor, 2),
    )


def object_ids(cells: Cells, result_key: str) -> list[str]:
    """UUIDs that depend on the result key and the root seeds alone (DESIGN I9)."""
    namespace = uuid.uuid5(uuid.NAMESPACE_OID, result_key)
    return [str(uuid.uuid5(namespace, f"{x},{y}")) for x, y in cells.seeds.tolist()]


class Spool:
    """Cells of finished blocks on disk; read back in grid order, one block in memory at a time."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.count = 0
        self._places: dict[tuple[int, int], int] = {}
        self._stream = path.open("w+b")

    def __enter__(self) -> Spool:
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        self._stream.close()
        self.path.unlink(missing_ok=True)

    def add(self, block: Rect, cells: Cells) -> None:
        """Keep the cells of a block until `in_grid_order`."""
        self._stream.seek(0, 2)
        self._places[block.y, block.x] = self._stream.tell()
        for field in fields(cells):
            np.lib.format.write_array(self._stream, getattr(cells, field.name), allow_pickle=False)
        self.count += len(cells)

    def in_grid_order(self) -> Iterator[Cells]:
        """Every block's cells: rows of blocks from the top, from the left within a row."""
        for place in sorted(self._places):
            self._stream.seek(self._places[place])
            yield Cells(
                **{
                    field.name: np.lib.format.read_array(self._stream, allow_pickle=False)
                    for field in fields(Cells)
                }
            )


def _inside(
    centroid: NDArray[np.float64], polygons: NDArray[np.object_]
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Centroids, and for those not inside their polygon (a crescent's) a point that is."""
    if not len(polygons):
        return centroid, np.zeros(0, np.bool_)
    outside = ~shapely.contains_xy(polygons, centroid[:, 0], centroid[:, 1])
    stand_in = shapely.get_coordinates(shapely.point_on_surface(polygons[outside]))
    centroid = centroid.copy()
    centroid[outside] = np.round(stand_in, 2)
    return centroid, outside
