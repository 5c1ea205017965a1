"""Reading on where a slide is damaged: what can not be read becomes a gap that is told (DESIGN I7)."""

from __future__ import annotations

import threading
from collections.abc import Iterator

from jobs.imaging.plane import Plane
from jobs.imaging.readers.reader import Pixels
from jobs.imaging.slide import ReadFailed
from jobs.imaging.tiling import Rect

SMALLEST = 64
"""Side, in plane pixels, of the squares that are given up: finer than a slide's own tiles. They lie on
a grid from the plane's origin, so that what several windows can not read is one gap."""


class Patient(Plane):
    """A plane whose pixels are white where they can not be read; the places are noted.

    Rectangles are halved until what can be read is read. The slide has been reopened and tried again
    before it says that it can not.
    """

    def __init__(self, plane: Plane) -> None:
        super().__init__(plane.slide, plane.geometry)
        self._noted: set[Rect] = set()
        self._noting = threading.Lock()

    @property
    def gaps(self) -> list[Rect]:
        """Everything that could not be read so far."""
        with self._noting:
            return sorted(self._noted)

    def read(self, x: int, y: int, width: int, height: int) -> Pixels:
        """Pixels (rows, cols, channels) of a rectangle inside the plane."""
        return self.read_telling(Rect(x, y, width, height))[0]

    def read_telling(self, area: Rect) -> tuple[Pixels, list[Rect]]:
        """The same, and which parts of it are gaps."""
        try:
            return super().read(*area), []
        except ReadFailed:
            return self._in_parts(area)

    def _in_parts(self, area: Rect) -> tuple[Pixels, list[Rect]]:
        parts = list(_halves(area))
        if len(parts) == 1:
            square = Rect(
                area.x // SMALLEST * SMALLEST, area.y // SMALLEST * SMALLEST, SMALLEST, SMALLEST
            ).clipped(Rect(0, 0, self.width, self.height))
            with self._noting:
                self._noted.add(square)
            return self.slide.empty(area.width, area.height), [square]
        pixels = self.slide.empty(area.width, area.height)
        gaps: list[Rect] = []
        for part in parts:
            pixels[part.slices(area)], missing = self.read_telling(part)
            gaps += missing
        return pixels, gaps


def _halves(area: Rect) -> Iterator[Rect]:
    """The two halves of a rectangle, cut on the grid of SMALLEST; itself where it is no larger."""
    across, down = _cut(area.x, area.right), _cut(area.y, area.bottom)
    if across is not None and (down is None or area.width >= area.height):
        yield Rect(area.x, area.y, across - area.x, area.height)
        yield Rect(across, area.y, area.right - across, area.height)
    elif down is not None:
        yield Rect(area.x, area.y, area.width, down - area.y)
        yield Rect(area.x, down, area.width, area.bottom - down)
    else:
        yield area


def _cut(low: int, high: int) -> int | None:
    """The multiple of SMALLEST nearest to the middle, strictly between the ends."""
    middle = round((low + high) / 2 / SMALLEST) * SMALLEST
    return next(
        (cut for cut in (middle, middle + SMALLEST, middle - SMALLEST) if low < cut < high), None
    )
