"""QuPath's measurements, by its names and definitions, of objects outlined along pixel edges.

Shape is measured on the unsimplified ring in µm; stains or channels on the model plane, over the pixels
inside: of a cell by compartment, as QuPath's ObjectMeasurements divides it.
"""

from __future__ import annotations

import math

import numpy as np
import shapely
from numpy.typing import NDArray

from jobs.imaging.compiled import compiled
from jobs.imaging.contours import Outlines, Pixels, cytoplasm, membrane
from jobs.imaging.head import CELLS, NUCLEI

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
NO_MIX = np.empty((0, 0), np.float32)
COMPARTMENTS = ("Nucleus", "Cytoplasm", "Membrane", "Cell")
RATIO = "Nucleus/Cell area ratio"


def object_type(outputs: tuple[str, ...]) -> str:
    """QuPath's type of what a model of these outputs finds."""
    return "cell" if CELLS in outputs else "detection"


def names(outputs: tuple[str, ...], channels: tuple[str, ...] | None = None) -> tuple[str, ...]:
    """QuPath's names of the columns of `measure`, in its order: shapes, then compartment by channel.

    outputs    of the model
    channels   names of the image's channels; None for an H&E slide, whose stains are measured
    """
    measured = tuple(STAINS) if channels is None else tuple(name.strip() for name in channels)
    shapes = [f"{part}: {name}" for part in _shaped(outputs) for name in SHAPE]
    each = [f"{part}: {one}" for part in _compartments(outputs) for one in measured]
    if object_type(outputs) == "detection":
        shapes, each = list(SHAPE), list(measured)
    ratio = [RATIO] if len(outputs) == 2 else []
    return (*shapes, *ratio, *(f"{one}: {name}" for one in each for name in STATISTICS))


def _shaped(outputs: tuple[str, ...]) -> tuple[str, ...]:
    return ("Nucleus", "Cell") if len(outputs) == 2 else ("Cell",)


def _compartments(outputs: tuple[str, ...]) -> tuple[str, ...]:
    return COMPARTMENTS if len(outputs) == 2 else ("Membrane", "Cell")


NAMES = names((NUCLEI,))
"""Of nuclei on an H&E slide."""


def measure(
    outlined: Outlines,
    pixels: NDArray[np.uint8] | NDArray[np.uint16],
    pixel_size: tuple[float, float],
    *,
    outputs: tuple[str, ...] = (NUCLEI,),
    nuclei: Outlines | None = None,
    stains: bool = True,
) -> NDArray[np.float64]:
    """One row per object, one column per name in `names`; nan where there is nothing to measure, as
    of the nucleus of a cell without one.

    pixels       (rows, cols, channels) of the model plane under the label map
    pixel_size   µm per plane pixel, by axis
    nuclei       of the cells, in their order, where `outputs` are nuclei and cells
    stains       `pixels` is RGB of an H&E slide: its stains are measured, not its channels
    """
    shapes = [_shape(outlined, pixel_size)]
    if nuclei is not None:
        shapes = [_shape(nuclei, pixel_size), *shapes]
        ratio = np.clip(shapes[0][:, 0] / shapes[1][:, 0], 0, 1)
        shapes.append(ratio[:, None])
    values, mix = (pixels, NO_MIX) if not stains else (_density(pixels), _unmixing())
    parts = [
        _statistics(part.at, part.starts, values, mix)
        for part in _parts(outlined, nuclei, outputs, pixels.shape[:2])
    ]
    return np.asarray(np.round(np.hstack([*shapes, *parts]), 4), np.float64)


def _parts(
    outlined: Outlines,
    nuclei: Outlines | None,
    outputs: tuple[str, ...],
    shape: tuple[int, int],
) -> list[Pixels]:
    """The pixels of each compartment, in the order of `names`."""
    whole = Pixels(outlined.pixels, outlined.pixel_starts)
    if object_type(outputs) == "detection":
        return [whole]
    rim = membrane(outlined, shape)
    if nuclei is None:
        return [rim, whole]
    inner = Pixels(nuclei.pixels, nuclei.pixel_starts)
    return [inner, cytoplasm(outlined, nuclei, shape), rim, whole]


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
    if not lengths.all():
        return _some_rings(corners, starts, scale)
    closed = np.empty((len(points) + count, 2))
    offsets = starts + np.arange(count + 1)
    index = np.repeat(np.arange(count), lengths)
    closed[np.arange(len(points)) + index] = points
    closed[offsets[1:] - 1] = points[starts[:-1]]
    made = shapely.linearrings(closed, indices=np.repeat(np.arange(count), lengths + 1))
    return np.asarray(shapely.polygons(made))


def _some_rings(
    corners: NDArray[np.int32] | NDArray[np.float64],
    starts: NDArray[np.int64],
    scale: tuple[float, float],
) -> NDArray[np.object_]:
    """`rings` where some are empty."""
    there = np.flatnonzero(np.diff(starts))
    polygons = np.full(len(starts) - 1, shapely.Polygon(), object)
    polygons[there] = rings(corners, np.append(starts[there], starts[-1]), scale)
    return polygons


def warm() -> None:
    """Compile the inner loops, or load them from numba's cache."""
    pixels, starts = np.zeros((1, 2), np.int32), np.array([0, 1])
    _statistics(pixels, starts, np.zeros((1, 1, 3), np.float32), _unmixing())
    _least_widths(np.zeros((4, 2)), np.array([0, 4]))


def _shape(outlined: Outlines, pixel_size: tuple[float, float]) -> NDArray[np.float64]:
    polygons = rings(outlined.corners, outlined.starts, pixel_size)
    if not len(polygons):
        return np.empty((0, len(SHAPE)))
    area, length = shapely.area(polygons), shapely.length(polygons)
    hulls = shapely.convex_hull(polygons)
    points, owner = shapely.get_coordinates(hulls, return_index=True)
    starts = np.searchsorted(owner, np.arange(len(polygons) + 1))
    with np.errstate(invalid="ignore"):
        shape = np.column_stack(
            [
                area,
                length,
                4 * math.pi * area / length**2,
                area / shapely.area(hulls),
                2 * shapely.minimum_bounding_radius(polygons),
                _least_widths(points, starts),
            ]
        )
    shape[np.diff(outlined.starts) == 0] = np.nan
    return shape


def _unmixing() -> NDArray[np.float32]:
    """(3, 2): what optical density by channel is multiplied by to give each stain."""
    first, second = (np.array(vector) / np.linalg.norm(vector) for vector in STAINS.values())
    third = np.cross(first, second)
    matrix = np.stack([first, second, third / np.linalg.norm(third)])
    return np.ascontiguousarray(np.linalg.inv(matrix)[:, :2], dtype=np.float32)


def _density(rgb: NDArray[np.uint8] | NDArray[np.uint16]) -> NDArray[np.float32]:
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
def _statistics(
    pixels: NDArray[np.int32],
    starts: NDArray[np.int64],
    values: NDArray[np.float32] | NDArray[np.uint8] | NDArray[np.uint16],
    mix: NDArray[np.float32],
) -> NDArray[np.float64]:
    """(n, 5 k): mean, median, min, max and sample deviation of k stains or channels over each object.

    mix   (channels, k): each value is the sum of all channels by it; without a row, each channel's own
    """
    count = len(starts) - 1
    channels = values.shape[2]
    measured = mix.shape[1] if len(mix) else channels
    out = np.full((count, 5 * measured), np.nan)
    for i in range(count):
        size = starts[i + 1] - starts[i]
        if size == 0:
            continue
        found = np.empty(size)
        for one in range(measured):
            for k in range(size):
                y, x = pixels[starts[i] + k, 0], pixels[starts[i] + k, 1]
                total = 0.0
                if len(mix):
                    for channel in range(channels):
                        total += values[y, x, channel] * mix[channel, one]
                else:
                    total += values[y, x, one]
                found[k] = total
            mean = found.mean()
            column = 5 * one
            out[i, column] = mean
            out[i, column + 1] = np.median(found)
            out[i, column + 2], out[i, column + 3] = found.min(), found.max()
            spread = ((found - mean) ** 2).sum()
            out[i, column + 4] = math.sqrt(spread / (size - 1)) if size > 1 else 0.0
    return out
