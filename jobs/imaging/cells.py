"""The objects of one block as arrays in level-0 pixels, and their form in a file."""

from __future__ import annotations

import io
import zlib
from dataclasses import dataclass, field, fields

import numpy as np
from numpy.typing import NDArray

NEAR_GAP = 1
"""Flag of an object so near to pixels that could not be read that it may be cut or missed in part."""

UNSURE = 2
"""Flag of an object joined with others so far away that a still wider context might divide it."""


@dataclass(frozen=True)
class Schema:
    """What the columns and rings of `Cells` mean, the same for every block of a job.

    object_type   QuPath's: "detection", or "cell" where `nuclei` holds rings
    names         QuPath's names of the columns of `values`
    """

    object_type: str
    names: tuple[str, ...]


@dataclass(frozen=True)
class Cells:
    """n objects of one block, in raster order of their root seeds.

    seeds          (n, 2) x, y of the root seed on the model plane; of a nucleus without a cell, whose
                   seed may be a cell's too, ~x, ~y
    corners        (k, 2) x, y in level-0 pixels; ring i is corners[starts[i] : starts[i + 1]], open
    area_l0        level-0 pixels
    centroid_l0    (n, 2) x, y, always inside the ring
    replaced       True where the centre of mass lies outside and a point inside stands for it
    values         (n, len(Schema.names))
    origin_l0      x, y of the block
    nuclei         (m, 2) rings of the nuclei inside the cells, as `corners`; none for nuclei alone
    nucleus_starts (n + 1,) as `starts`; an empty ring where a cell has no nucleus
    flags          (n,) of NEAR_GAP and UNSURE
    gaps_l0        (g, 4) x, y, width, height of what could not be read in the block
    """

    seeds: NDArray[np.int32]
    corners: NDArray[np.float64]
    starts: NDArray[np.int64]
    area_l0: NDArray[np.float64]
    centroid_l0: NDArray[np.float64]
    replaced: NDArray[np.bool_]
    values: NDArray[np.float64]
    origin_l0: NDArray[np.float64]
    nuclei: NDArray[np.float64] = field(default_factory=lambda: np.empty((0, 2)))
    nucleus_starts: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    flags: NDArray[np.uint8] = field(default_factory=lambda: np.zeros(0, np.uint8))
    gaps_l0: NDArray[np.float64] = field(default_factory=lambda: np.empty((0, 4)))

    def __post_init__(self) -> None:
        count = len(self.seeds)
        if len(self.flags) != count:
            object.__setattr__(self, "flags", np.zeros(count, np.uint8))
        if len(self.nucleus_starts) != count + 1:
            object.__setattr__(self, "nucleus_starts", np.zeros(count + 1, np.int64))

    def __len__(self) -> int:
        return len(self.seeds)

    def ring(self, index: int) -> NDArray[np.float64]:
        """Corners (x, y) of one nucleus, not closed."""
        return self.corners[self.starts[index] : self.starts[index + 1]]

    def nucleus(self, index: int) -> NDArray[np.float64]:
        """Corners (x, y) of the nucleus of one cell, not closed; empty where it has none."""
        return self.nuclei[self.nucleus_starts[index] : self.nucleus_starts[index + 1]]

    @property
    def box_l0(self) -> tuple[float, float, float, float] | None:
        """x0, y0, x1, y1 round all objects."""
        if not len(self):
            return None
        low, high = self.corners.min(axis=0).tolist(), self.corners.max(axis=0).tolist()
        return (*low, *high)

    def encoded(self) -> bytes:
        """The arrays as the content of a block file: equal arrays give equal bytes."""
        stream = io.BytesIO()
        for each in fields(self):
            np.lib.format.write_array(stream, getattr(self, each.name), allow_pickle=False)
        return zlib.compress(stream.getbuffer(), 1)


def decoded(content: bytes) -> Cells:
    """The cells of a block file."""
    stream = io.BytesIO(zlib.decompress(content))
    return Cells(*(np.lib.format.read_array(stream, allow_pickle=False) for _ in fields(Cells)))
