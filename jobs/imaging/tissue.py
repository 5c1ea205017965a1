"""Where the tissue is: a mask of the whole slide at about 8 µm per pixel."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from jobs.imaging.artefacts import find_marks, unevenness
from jobs.imaging.plane import Geometry, Plane
from jobs.imaging.tiling import Rect

MPP = 8.0
METHOD = "distance from glass or stain, Otsu bounded, pen and slide edges left out, v2"
BRIGHT_METHOD = "brighter than background, Otsu bounded, closed, v1"
CROP_METHOD = "texture of a small crop, v1"
SMALLEST_UM2 = 4_000.0
"""Islands below this are dust; a tissue fragment of 70 µm is kept."""

FAINTEST, STRONGEST = 12.0, 28.0
"""Bounds of the threshold, in grey values below the glass. The noise and shading of bare glass stay
under the first; pale stroma lies above the second even where Otsu would split dark from pale."""

STAINED = 10.0
"""Grey values by which a channel lies below another one. Shading, dust and blur take all colours
alike, stains do not: so fat and pale stroma are found although they are hardly darker than glass."""

CROP_UM2 = 100_000.0
"""A picture of less, 0.3 mm square, may hold no glass that its tissue could be compared with."""

TEXTURE = 1.5
"""Grey values by which pixels of tissue differ from their neighbours: half of those of a crop do so by
1.8 to 17 where it is tissue, however pale, and by less than 0.7 where it is glass."""

MARGIN_UM = 40.0
"""How far beyond the mask nuclei are looked for: they overhang edges that 8 µm pixels blur."""

READ = 1024
"""Level pixels, by side, of one read."""


@dataclass(frozen=True)
class Tissue:
    """The mask and how it was found. `scale`: level-0 pixels per mask pixel, by axis.

    `marks` is of the mask's shape: artefacts.PEN or EDGE where that was taken away.
    """

    mask: NDArray[np.bool_]
    scale: tuple[float, float]
    threshold: float
    method: str = METHOD
    marks: NDArray[np.uint8] | None = None

    @property
    def fraction(self) -> float:
        return float(self.mask.mean())


def thumbnail(plane: Plane, tick: Callable[[int, int], None]) -> NDArray[np.uint8]:
    """The whole plane as one picture, read in parts; `tick(done, total)` after each."""
    parts = list(_parts(plane.geometry))
    picture = np.empty((plane.height, plane.width, 3), np.uint8)
    whole = Rect(0, 0, plane.width, plane.height)
    for done, part in enumerate(parts):
        tick(done, len(parts))
        picture[part.slices(whole)] = plane.read_rgb(*part)
    tick(len(parts), len(parts))
    return picture


def find_tissue(
    picture: NDArray[np.uint8], scale: tuple[float, float], *, mpp: float, smallest_um2: float
) -> Tissue:
    """Mark tissue on a picture of the slide at `mpp` µm per pixel; all glass gives an empty mask, and a
    small crop with the texture of tissue a full one."""
    is_crop = picture.shape[0] * picture.shape[1] * mpp**2 <= CROP_UM2
    if is_crop and float(np.median(unevenness(picture))) > TEXTURE:
        return Tissue(np.ones(picture.shape[:2], np.bool_), scale, TEXTURE, CROP_METHOD)
    glass = _glass(picture)
    strength, stain = _below(glass, picture)
    threshold = _threshold(strength)
    dark = (strength > threshold) | ((stain > STAINED) & (strength > FAINTEST))
    del stain  # a picture of a large slide has 20 million pixels
    marks = find_marks(picture, glass, dark, mpp=mpp)
    mask = _half_covered(dark & (marks == 0), strength)
    mask = _whole(mask, max(1, round(smallest_um2 / mpp**2)))
    return Tissue(mask, scale, threshold, marks=np.where(mask, 0, marks).astype(np.uint8))


def find_bright_tissue(
    picture: NDArray[np.uint8], scale: tuple[float, float], *, mpp: float, smallest_um2: float
) -> Tissue:
    """Mark tissue on a picture of a fluorescence slide: what is brighter than its background.

    Nuclei are bright and lie apart: those with less than twice MARGIN_UM between them are one piece.
    """
    light = ndimage.uniform_filter(picture.max(axis=2).astype(np.float32), 3)
    light -= np.percentile(light, 5)
    threshold = _threshold(light)
    bright = np.pad(light > threshold, border := int(MARGIN_UM / mpp) + 2)
    near = widened(bright, mpp=mpp)
    closed = ndimage.distance_transform_edt(near) > MARGIN_UM / mpp
    mask = bright | closed
    mask = mask[border:-border, border:-border]
    mask = _whole(mask, max(1, round(smallest_um2 / mpp**2)))
    return Tissue(mask, scale, threshold, BRIGHT_METHOD)


def widened(mask: NDArray[np.bool_], *, mpp: float) -> NDArray[np.bool_]:
    """The mask and the margin round it in which nuclei are still looked for."""
    if not mask.any():
        return mask
    reach = MARGIN_UM / mpp
    side = np.arange(-int(reach), int(reach) + 1)
    disc = side[:, None] ** 2 + side**2 <= reach**2
    return np.asarray(ndimage.binary_dilation(mask, disc))


def _glass(picture: NDArray[np.uint8]) -> NDArray[np.float32]:
    """RGB of bare glass: the brightest that the scanner saw."""
    pixels = picture.reshape(-1, 3)
    seen = pixels[(pixels != 255).any(axis=1)]  # pure white: the scanner saw nothing there
    if len(seen) < len(pixels) // 100 or not len(seen):
        seen = pixels
    return np.asarray(np.clip(np.percentile(seen, 99, axis=0), 190, 255), np.float32)


def _below(
    glass: NDArray[np.float32], picture: NDArray[np.uint8]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """How far below bare glass the darkest channel lies, and how far that is below the brightest."""
    most = glass[0] - picture[..., 0]
    least = most.copy()
    for channel in (1, 2):
        below = glass[channel] - picture[..., channel]
        np.maximum(most, below, out=most)
        np.minimum(least, below, out=least)
    np.subtract(most, least, out=least)
    return _smooth(most), _smooth(least)


def _smooth(values: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.asarray(ndimage.median_filter(values, size=3, mode="nearest"))


def _half_covered(mask: NDArray[np.bool_], strength: NDArray[np.float32]) -> NDArray[np.bool_]:
    """The mask without edge pixels that are mostly glass. A dark edge passes the threshold where it
    covers a sixth of a pixel, which would widen every piece by a third of one."""
    edge = mask & ~ndimage.binary_erosion(mask, np.ones((3, 3)), border_value=1)
    beside = ndimage.maximum_filter(strength, size=3, mode="nearest")
    return np.asarray(mask & ~(edge & (strength < 0.5 * beside)))


def _threshold(strength: NDArray[np.float32]) -> float:
    if float(strength.max()) <= FAINTEST:
        return FAINTEST
    return float(np.clip(_otsu(strength), FAINTEST, STRONGEST))


def _otsu(values: NDArray[np.float32]) -> float:
    """The value that splits `values` into the two most separate classes (Otsu 1979)."""
    counts, edges = np.histogram(values, bins=256)
    centres = (edges[:-1] + edges[1:]) / 2
    below = np.cumsum(counts)[:-1]
    above = values.size - below
    sums = np.cumsum(counts * centres)
    apart = sums[:-1] / np.maximum(below, 1) - (sums[-1] - sums[:-1]) / np.maximum(above, 1)
    return float(centres[int(np.argmax(below * above * apart**2))])


def _whole(mask: NDArray[np.bool_], smallest: int) -> NDArray[np.bool_]:
    """The mask without pieces and without holes of fewer than `smallest` pixels."""
    mask = _without_islands(mask, smallest)
    return np.asarray(~_without_islands(~mask, smallest))


def _without_islands(mask: NDArray[np.bool_], smallest: int) -> NDArray[np.bool_]:
    labels, count = ndimage.label(mask, structure=np.ones((3, 3)))
    if not count:
        return mask
    keep = np.bincount(labels.ravel()) >= smallest
    keep[0] = False
    return np.asarray(keep[labels])


def _parts(geometry: Geometry) -> list[Rect]:
    step_x = max(1, int(READ / geometry.factor_x))
    step_y = max(1, int(READ / geometry.factor_y))
    whole = Rect(0, 0, geometry.width, geometry.height)
    return [
        Rect(x, y, step_x, step_y).clipped(whole)
        for y in range(0, geometry.height, step_y)
        for x in range(0, geometry.width, step_x)
    ]
