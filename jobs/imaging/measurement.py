"""QuPath's measurements, by its names and definitions, of nuclei that are outlined along pixel edges.

Shape is measured on the unsimplified ring in µm; stains on the model plane, over the pixels inside.
"""

from __future__ import annotations

import math

import numpy as np
import shapely
from numpy.typing import NDArray

from jobs.imaging.compiled import compiled
from jobs.imaging.contours import Outlines

SHAPE = (
    "Area µm^2",
    "Length µm",
    "Circularity",
    "Solidity",
    "Max diameter µm",
    "Min diameter µm",
)
STAINS = {
    "Hematoxylin": (0.65111, 0.70119, 0.29049),
    "Eosin": (0.2159, 0.8012, 0.5581),
}
"""QuPath's default H&E vectors; the third is what is perpendicular to both."""

STATISTICS = ("Mean", "Median", "Min", "Max", "Std.Dev.")
NAMES = SHAPE + tuple(f"{stain}: {statistic}" for stain in STAINS for statistic in STATISTICS)


def measure(
    outlined: Outlines, rgb: NDArray[np.uint8], pixel_size: tuple[float, float]
) -> NDArray[np.float64]:
    """One row per object, one column per name in NAMES.

    rgb          (rows, cols, 3) of the model plane under the label map
    pixel_size   µm per plane pixel, by axis
    """
    shape = _shape(outlined, pixel_size)
    stains = _stains(outlined.pixels, outlined.pixel_starts, _density(rgb), _unmixing())
    return np.asarray(np.round(np.hstack([shape, stains]), 4), np.float64)


def rings(
    corners: NDArray[np.int32] | NDArray[np.float64],
    starts: NDArray[np.int64],
    scale: tuple[float, float] = (1.0, 1.0),
) -> NDArray[np.object_]:
    """shapely polygons of outlines, scaled by axis."""
    count = len(starts) - 1
    if not count:
        return np.empty(0, object)
    points = corners * np.asarray(scale)
    lengths = np.diff(starts)
    closed = np.empty((len(points) + count, 2))
    offsets = starts + np.arange(count + 1)
    index = np.repeat(np.arange(count), lengths)
    closed[np.arange(len(points)) + index] = points
    closed[offsets[1:] - 1] = points[starts[:-1]]
    made = shapely.linearrings(closed, indices=np.repeat(np.arange(count), lengths + 1))
    return np.asarray(shapely.polygons(made))


def warm() -> None:
    """Compile the inner loops, or load them from numba's cache."""
    pixels, starts = np.zeros((1, 2), np.int32), np.array([0, 1])
    _stains(pixels, starts, np.zeros((1, 1, 3), np.float32), _unmixing())
    _least_widths(np.zeros((4, 2)), np.array([0, 4]))


def _shape(outlined: Outlines, pixel_size: tuple[float, float]) -> NDArray[np.float64]:
    polygons = rings(outlined.corners, outlined.starts, pixel_size)
    if not len(polygons):
        return np.empty((0, len(SHAPE)))
    area, length = shapely.area(polygons), shapely.length(polygons)
    hulls = shapely.convex_hull(polygons)
    points, owner = shapely.get_coordinates(hulls, return_index=True)
    starts = np.searchsorted(owner, np.arange(len(polygons) + 1))
    return np.column_stack(
        [
            area,
            length,
            4 * math.pi * area / length**2,
            area / shapely.area(hulls),
            2 * shapely.minimum_bounding_radius(polygons),
            _least_widths(points, starts),
        ]
    )


def _unmixing() -> NDArray[np.float32]:
    """(3, 2): what optical density by channel is multiplied by to give each stain."""
    first, second = (np.array(vector) / np.linalg.norm(vector) for vector in STAINS.values())
    third = np.cross(first, second)
    matrix = np.stack([first, second, third / np.linalg.norm(third)])
    return np.ascontiguousarray(np.linalg.inv(matrix)[:, :2], dtype=np.float32)


def _density(rgb: NDArray[np.uint8]) -> NDArray[np.float32]:
    values = np.maximum(np.arange(256), 1) / 255
    table = np.maximum(-np.log10(values), 0).astype(np.float32)
    return table[rgb]


@compiled
def _least_widths(points: NDArray[np.float64], starts: NDArray[np.int64]) -> NDArray[np.float64]:
    """Least width of each closed convex ring: over its sides, how far the others reach from one."""
    widths = np.zeros(len(starts) - 1)
    for i in range(len(widths)):
        first, last = starts[i], starts[i + 1] - 1
        least = np.inf
        for a in range(first, last):
            along_x, along_y = points[a + 1, 0] - points[a, 0], points[a + 1, 1] - points[a, 1]
            length = math.sqrt(along_x * along_x + along_y * along_y)
            if length == 0:
                continue
            reach = 0.0
            for b in range(first, last):
                off_x, off_y = points[b, 0] - points[a, 0], points[b, 1] - points[a, 1]
                reach = max(reach, abs(along_x * off_y - along_y * off_x) / length)
            least = min(least, reach)
        widths[i] = least if least < np.inf else 0.0
    return widths


@compiled
def _stains(
    pixels: NDArray[np.int32],
    starts: NDArray[np.int64],
    density: NDArray[np.float32],
    unmixing: NDArray[np.float32],
) -> NDArray[np.float64]:
    """(n, 10): mean, median, min, max and sample deviation of two stains over each object."""
    count = len(starts) - 1
    out = np.zeros((count, 10))
    for i in range(count):
        size = starts[i + 1] - starts[i]
        values = np.empty(size)
        for stain in range(2):
            for k in range(size):
                y, x = pixels[starts[i] + k, 0], pixels[starts[i] + k, 1]
                total = 0.0
                for channel in range(3):
                    total += density[y, x, channel] * unmixing[channel, stain]
                values[k] = total
            mean = values.mean()
            column = 5 * stain
            out[i, column] = mean
            out[i, column + 1] = np.median(values)
            out[i, column + 2], out[i, column + 3] = values.min(), values.max()
            spread = ((values - mean) ** 2).sum()
            out[i, column + 4] = math.sqrt(spread / (size - 1)) if size > 1 else 0.0
    return out
