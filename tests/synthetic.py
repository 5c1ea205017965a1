"""Small pyramidal slides made on the spot: glass, and dark blocks of known place and size."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tifffile
from numpy.typing import NDArray

GLASS = 244
BLOCK = (150, 60, 140)  # the purple of stained tissue
Box = tuple[int, int, int, int]  # x_l0, y_l0, width, height


def write_slide(
    path: Path, *, size: int = 2048, mpp: float = 0.5, blocks: Sequence[Box] = (), levels: int = 2
) -> Path:
    """A tiled TIFF of `levels` levels, each half of the one before, with its mpp in the tags."""
    plane = _glass_with(size, blocks)
    with tifffile.TiffWriter(path) as writer:
        for level in range(levels):
            step = 2**level
            writer.write(
                plane[::step, ::step],
                tile=(256, 256),
                photometric="rgb",
                resolution=(1e4 / (mpp * step), 1e4 / (mpp * step)),
                resolutionunit="CENTIMETER",
                subfiletype=0 if level == 0 else 1,
                metadata=None,
            )
    return path


def _glass_with(size: int, blocks: Sequence[Box]) -> NDArray[np.uint8]:
    noise = np.random.default_rng(7).integers(-2, 3, (size, size, 3), dtype=np.int16)
    plane = noise + GLASS
    for x, y, width, height in blocks:
        plane[y : y + height, x : x + width] = noise[y : y + height, x : x + width] * 6 + BLOCK
    return plane.clip(0, 255).astype(np.uint8)
