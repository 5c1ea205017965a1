"""Marks of a pen, slide edges and cover-slip lines on a picture of the slide: dark, but no tissue.

Colour only makes a candidate. A candidate that lies in tissue stays tissue, and one on glass is taken
away only where its shape and evenness are not those of tissue: blue collagen, haemorrhage and
pigment are left alone. Coordinates are pixels of the picture.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Mask = NDArray[np.bool_]

PEN, EDGE = 1, 2
"""What a pixel was taken away for; 0 is nothing."""

EVEN = 4.0
"""Grey values by which pixels differ from their neighbours. Ink shows 1-2, tissue at 8 µm 7-17."""

LONG = 16.0
"""Area over the square of the greatest half-width: 3 for a disc, 4 for a square, 16 for a rectangle
four times as long as wide, and far more for a ring or for handwriting."""

ALONG = 0.5
"""The share of a side of the picture that a slide edge runs along."""

THIN = 4
"""Half-width in pixels up to which a line is too narrow for its evenness to be told."""

SMALLEST_UM2 = 20_000.0
"""Smaller marks are not looked for: what they hide is less than what they could be mistaken for."""

RIM = 4
"""Pixels by which the blurred rim of a mark reaches beyond its clear colour."""

MOSTLY = 0.5
"""The share of a mark that shows its colour clearly; the rest is its blurred rim."""

WIDEST_UM = 1_000.0
"""Half-width of the broadest marker: further from tissue nothing under it is taken for tissue."""

FRINGE = 2
"""Pixels round a mark in which shreds too thin to be tissue are the mark's own blurred rim."""


def find_marks(
    picture: NDArray[np.uint8],
    glass: NDArray[np.float32],
    dark: Mask,
    *,
    mpp: float,
) -> NDArray[np.uint8]:
    """PEN or EDGE for every pixel of `dark` that is no tissue, 0 elsewhere.

    picture   (rows, cols, 3) RGB, 0-255, at `mpp` µm/px
    glass     RGB of bare glass
    dark      (rows, cols); what stands out from the glass, tissue and marks alike
    """
    seen = _Seen.of(picture, glass, dark, max(1, round(SMALLEST_UM2 / mpp**2)))
    edges = _edges(seen)
    marks = np.where(edges, EDGE, np.where(_pen(seen), PEN, 0)).astype(np.uint8)
    marks[_under_tissue(marks > 0, dark & (marks == 0), mpp=mpp)] = 0
    return _with_fringe(marks, dark)


@dataclass(frozen=True)
class _Seen:
    """What the rules look at. `density` is -ln of the light let through: a plane a channel."""

    dark: Mask
    density: NDArray[np.float32]
    grey: Mask
    uneven: NDArray[np.float32]
    smallest: int

    @classmethod
    def of(
        cls, picture: NDArray[np.uint8], glass: NDArray[np.float32], dark: Mask, smallest: int
    ) -> _Seen:
        light = np.empty((3, *picture.shape[:2]), np.float32)
        for channel in range(3):
            np.divide(picture[..., channel], glass[channel], out=light[channel])
        np.clip(light, 1 / 255, 1, out=light)
        grey = _greyish(light)
        return cls(dark, -np.log(light, out=light), grey, unevenness(picture), smallest)

    def parts(
        self, certain: Mask, likely: Mask, choose: Callable[[_Parts], Mask], share: float = MOSTLY
    ) -> Mask:
        """The connected parts of dark, `likely` pixels that `choose` takes.

        Parts that are small, or of which less than `share` is `certain`, are left alone.
        """
        certain = certain & likely & self.dark
        if not certain.any():
            return certain
        likely = likely & self.dark & ndimage.binary_dilation(certain, iterations=RIM)
        labels, count = ndimage.label(likely, structure=np.ones((3, 3)))
        area = np.bincount(labels.ravel(), minlength=count + 1)
        sure = np.bincount(labels[certain], minlength=count + 1)
        keep = (area >= self.smallest) & (sure >= share * area)
        keep[0] = False
        if not keep.any():  # as on most slides: nothing has to be measured
            return np.zeros_like(likely)
        labels = np.where(keep, np.arange(count + 1), 0).astype(np.int32)[labels]
        return np.asarray((keep & choose(_Parts(labels, area * keep)))[labels])


def _edges(seen: _Seen) -> Mask:
    """What the scanner saw beyond the slide, and the shadow of the slide's own edge."""
    least = seen.density.min(axis=0)

    def of_even_shade(parts: _Parts) -> Mask:
        return parts.along_side() & (parts.is_even(seen.uneven) | parts.is_thin())

    black = seen.parts(least > 1.2, seen.grey, _Parts.along_side)
    return black | seen.parts(least > 0.2, seen.grey, of_even_shade)


def _pen(seen: _Seen) -> Mask:
    """Ink, and other lines that no tissue makes. No tissue is as even as ink."""
    red, green, blue = seen.density
    most, least = seen.density.max(axis=0), seen.density.min(axis=0)
    more_red = red - np.maximum(green, blue)

    def is_even(parts: _Parts) -> Mask:
        return parts.is_even(seen.uneven)

    def is_drawn(parts: _Parts) -> Mask:
        return parts.is_long() & parts.is_even(seen.uneven)

    def is_line(parts: _Parts) -> Mask:
        return parts.is_long() & (parts.is_even(seen.uneven) | parts.is_thin())

    # Blue and green: no stain of H&E takes more red light than green, none of DAB more than blue.
    drawn = seen.parts((red > 0.6) & (more_red > 0.15), more_red > 0.05, is_even)
    # Red: eosin takes little blue light, DAB much red light, and blood is not drawn in lines.
    drawn |= seen.parts(
        (green > 0.8) & (blue > 0.75 * green) & (red < 0.3 * green),
        (blue > 0.65 * green) & (red < 0.45 * green),
        is_drawn,
    )
    # Any colour, where it is as dense as tissue is in single pixels only.
    calm = ndimage.uniform_filter(seen.uneven, 5) <= 1.5 * EVEN
    drawn |= seen.parts((most > 1.5) & calm, most > 1.1, is_drawn)
    # Grey and black, also where they are thin: the edge of a cover slip, a hair, a bubble's rim.
    return drawn | seen.parts(least > 0.5, seen.grey, is_line)


@dataclass(frozen=True)
class _Parts:
    """The connected parts that may be marks; index 0, and any that is left out, has no area."""

    labels: NDArray[np.int32]
    area: NDArray[np.intp]

    @functools.cached_property
    def half_width(self) -> NDArray[np.float32]:
        labels = self.labels[self._box]
        inside = ndimage.distance_transform_edt(np.pad(labels > 0, 1))[1:-1, 1:-1]
        widths = np.full(len(self.area), 0.5, np.float32)
        where = labels > 0
        np.maximum.at(widths, labels[where], inside[where].astype(np.float32))
        return widths

    @functools.cached_property
    def _box(self) -> tuple[slice, slice]:
        """The rows and columns that hold any part."""
        rows, cols = (np.flatnonzero(self.labels.any(axis=axis)) for axis in (1, 0))
        return slice(rows[0], rows[-1] + 1), slice(cols[0], cols[-1] + 1)

    def is_long(self) -> Mask:
        return np.asarray(self.area / self.half_width**2 >= LONG)

    def is_thin(self) -> Mask:
        return np.asarray(self.half_width <= THIN)

    def is_even(self, uneven: NDArray[np.float32]) -> Mask:
        """Whether most of the inside of a part, away from its rim, shows no texture."""
        labels = self.labels[self._box]
        padded = np.pad(labels > 0, THIN)  # beyond the box lies nothing, beyond the picture too
        core = ndimage.binary_erosion(padded, np.ones((3, 3)), iterations=THIN)
        core = core[THIN:-THIN, THIN:-THIN]
        inside = labels[core]
        calm = np.bincount(inside[uneven[self._box][core] <= EVEN], minlength=len(self.area))
        return 2 * calm > np.bincount(inside, minlength=len(self.area))

    def along_side(self) -> Mask:
        """Whether a part runs along much of one side of the picture."""
        sides = (self.labels[0], self.labels[-1], self.labels[:, 0], self.labels[:, -1])
        touch = [np.bincount(side, minlength=len(self.area)) / side.size for side in sides]
        return np.asarray(np.max(touch, axis=0) >= ALONG)


def _under_tissue(marked: Mask, tissue: Mask, *, mpp: float) -> Mask:
    """Marks that run over tissue: what closing the tissue over the broadest stroke fills."""
    if not marked.any() or not tissue.any():
        return np.zeros_like(marked)
    widest = float(ndimage.distance_transform_edt(np.pad(marked, 1)).max())
    reach = 3 * min(widest, WIDEST_UM / mpp)
    border = int(reach) + 2
    solid = ndimage.binary_opening(tissue, np.ones((5, 5)))
    padded = np.pad(solid, border)
    near = ndimage.distance_transform_edt(~padded) <= reach
    closed = ndimage.distance_transform_edt(near) > reach
    return np.asarray(closed[border:-border, border:-border] & marked)


def _with_fringe(marks: NDArray[np.uint8], dark: Mask) -> NDArray[np.uint8]:
    """The marks and the thin rim of mixed colours that is left round them."""
    if not marks.any():
        return marks
    rest = dark & (marks == 0)
    size = 2 * FRINGE + 1
    shreds = rest & ~ndimage.binary_opening(rest, np.ones((size, size)))
    near = ndimage.maximum_filter(marks, size=size)
    return np.where(shreds & (near > 0), near, marks)


def unevenness(picture: NDArray[np.uint8]) -> NDArray[np.float32]:
    """How much a pixel and its neighbours differ from the mean round them; a slope does not."""
    grey = picture.mean(axis=2, dtype=np.float32)
    apart = (grey - ndimage.uniform_filter(grey, 3)) ** 2
    return np.asarray(np.sqrt(ndimage.uniform_filter(apart, 3)), np.float32)


def _greyish(light: NDArray[np.float32]) -> Mask:
    """Light of all colours taken alike. In the dark that is told by light, since noise rules there."""
    high, low = light.max(axis=0), light.min(axis=0)
    return np.asarray(high - low < np.maximum(np.float32(0.06), np.float32(0.2) * (1 - high)))
