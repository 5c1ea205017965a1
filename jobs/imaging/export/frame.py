"""Where the pixels of a slide, of its model plane and of what QuPath shows lie to each other."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Frame:
    """A slide as the result files describe it.

    size         width, height in level-0 pixels
    pixel_size   µm a level-0 pixel, by axis
    plane        width, height of the model plane
    scale        level-0 pixels a plane pixel, by axis
    bounds       x, y, width, height in level-0 pixels of what viewers show; None for all of it
    """

    size: tuple[int, int]
    pixel_size: tuple[float, float]
    plane: tuple[int, int]
    scale: tuple[float, float]
    bounds: tuple[int, int, int, int] | None = None

    @property
    def shown(self) -> tuple[int, int, int, int]:
        """x, y, width, height in level-0 pixels of what QuPath and the viewer show."""
        return self.bounds or (0, 0, *self.size)

    @property
    def origin(self) -> tuple[int, int]:
        """The level-0 pixel that QuPath calls 0, 0."""
        return self.shown[:2]

    def um(self, points: NDArray[np.int64]) -> NDArray[np.float64]:
        """Hundredths of level-0 pixels as µm from `origin`, four decimals."""
        found = (points / 100 - np.array(self.origin)) * np.array(self.pixel_size)
        return np.asarray(np.round(found, 4), np.float64)
