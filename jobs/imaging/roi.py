"""A region of interest: the part of a slide that a request asks for, in level-0 pixels."""

from __future__ import annotations

from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray

from jobs.imaging.contract import BadInput
from jobs.imaging.tiling import SQUARE, run_squares

HOW = (
    'give "roi" as boxes [[x, y, width, height], …] or as GeoJSON (Polygon, MultiPolygon, or features '
    "of these), in pixels of the full-resolution image"
)
MOST = 10_000
"""Boxes, or vertices: more take longer to look up than the cells to find."""
SHOWN = 200
"""Characters of a refused region that its sentence repeats."""


class Roi:
    """One or more polygons. Objects belong to it whose root seed lies inside."""

    def __init__(self, shape: Any) -> None:
        self.shape = shape
        shapely.prepare(shape)

    def inside(self, points_l0: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Which of the points (n, 2), x and y, lie in the region."""
        found = shapely.intersects_xy(self.shape, points_l0[:, 0], points_l0[:, 1])
        return np.asarray(found, np.bool_)

    def squares(self, width: int, height: int, scale: tuple[float, float]) -> NDArray[np.bool_]:
        """The run squares of a plane that the region touches; `scale` level-0 a plane pixel."""
        squares = run_squares(width, height)
        rows, cols = np.indices(squares.shape)
        side = SQUARE * np.asarray(scale)
        boxes = shapely.box(
            cols * side[0], rows * side[1], (cols + 1) * side[0], (rows + 1) * side[1]
        )
        return np.asarray(shapely.intersects(self.shape, boxes), np.bool_)

    def area_on(self, width: int, height: int) -> float:
        """Level-0 pixels of a slide of this size that lie in the region."""
        return float(shapely.intersection(self.shape, shapely.box(0, 0, width, height)).area)

    def geometry(self) -> dict[str, Any]:
        """The region as GeoJSON, as it is kept."""
        mapped: dict[str, Any] = shapely.geometry.mapping(self.shape)
        return mapped


def parse(value: object) -> Roi | None:
    """The region of a request; None where it names none. Raises BadInput."""
    if value is None:
        return None
    shape = _of_boxes(value) if isinstance(value, list) else _of_geojson(value)
    if not shape.is_valid or not 0 < shape.area < np.inf or not np.isfinite(shape.bounds).all():
        raise BadInput(f'"roi" encloses no area, or its outline crosses itself: {HOW}.')
    return Roi(shape)


def checked(value: object, size: tuple[int, int]) -> Roi | None:
    """The same, refused where it lies outside a slide of `size` (width, height)."""
    found = parse(value)
    if found is not None and not found.area_on(*size):
        raise BadInput(
            f'"roi" lies outside the slide, which has {size[0]} × {size[1]} pixels: {HOW}.'
        )
    return found


def _of_boxes(value: list[Any]) -> Any:
    boxes = [value] if value and not isinstance(value[0], list) else value
    _check_count(len(boxes), "boxes")
    try:
        corners = [(float(x), float(y), float(w), float(h)) for x, y, w, h in boxes]
    except (TypeError, ValueError, OverflowError):
        corners = []
    if not corners or any(w <= 0 or h <= 0 for _, _, w, h in corners):
        raise BadInput(f'"roi" is {_shown(value)}: {HOW}.')
    return shapely.union_all([shapely.box(x, y, x + w, y + h) for x, y, w, h in corners])


def _of_geojson(value: object) -> Any:
    try:
        geometries = _geometries(value)
        _check_count(sum(_vertices(each["coordinates"]) for each in geometries), "vertices")
        shapes = [shapely.geometry.shape(each) for each in geometries]
        crossing = [shape for shape in shapes if not shape.is_valid]
        return crossing[0] if crossing else shapely.union_all(shapes)
    except (
        ValueError,
        TypeError,
        IndexError,
        KeyError,
        AttributeError,
        OverflowError,
        RecursionError,
        shapely.errors.ShapelyError,
    ) as error:
        raise BadInput(f'"roi" is no polygon: {HOW}.') from error


def _geometries(value: Any) -> list[dict[str, Any]]:
    """The polygons of a geometry, a feature or a collection of features, as QuPath exports them."""
    if value["type"] == "FeatureCollection":
        return [each for feature in value["features"] for each in _geometries(feature)]
    if value["type"] == "Feature":
        return _geometries(value["geometry"])
    if value["type"] not in ("Polygon", "MultiPolygon"):
        raise ValueError("no polygon")
    return [value]


def _vertices(coordinates: Any) -> int:
    """How many points of two numbers are in these lists of lists."""
    if not isinstance(coordinates, list):
        return 0
    if coordinates and not isinstance(coordinates[0], list):
        return 1
    return sum(map(_vertices, coordinates))


def _check_count(count: int, what: str) -> None:
    if count > MOST:
        raise BadInput(
            f'"roi" has {count} {what}, and {MOST} may be: give a simpler region, or several jobs.'
        )


def _shown(value: object) -> str:
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # a number of thousands of digits is not written out
        return "no region"
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"
