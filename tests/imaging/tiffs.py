"""TIFF slides as other programs write them, and one of four channels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray

RANDOM = np.random.default_rng(11)
MIF = ["DAPI", "CD3", "CD8", "PanCK"]
TILED: dict[str, Any] = {"tile": (128, 128)}


def picture(dtype: str, *shape: int) -> NDArray[Any]:
    """Noise over a ramp, so that every place differs and codecs with loss stay near."""
    high = 1 if dtype == "float32" else np.iinfo(dtype).max
    ramp = np.linspace(0, 0.9, shape[0] * shape[1]).reshape(*shape[:2], *[1] * (len(shape) - 2))
    return ((ramp + RANDOM.random(shape) * 0.1) * high).astype(dtype)


def write_ome(path: Path, levels: list[NDArray[Any]], axes: str, **options: Any) -> Path:
    """An OME-TIFF whose smaller levels are SubIFDs, as Bio-Formats and QuPath write it."""
    metadata = options.pop("metadata", {})
    size = {"PhysicalSizeX": 500.0, "PhysicalSizeXUnit": "nm", "PhysicalSizeY": 0.5}
    options = TILED | options
    with tifffile.TiffWriter(path, bigtiff=True, ome=True) as writer:
        writer.write(
            levels[0],
            subifds=len(levels) - 1,
            metadata={"axes": axes, **size, **metadata},
            **options,
        )
        for level in levels[1:]:
            writer.write(level, subfiletype=1, **options)
    return path


def write_mif(folder: Path) -> tuple[Path, NDArray[Any]]:
    """Four channels of 16 bits, three levels; bright spots lie on the first."""
    pixels = picture("uint16", 600, 700, 4).transpose(2, 0, 1).copy()
    levels = [pixels, pixels[:, ::2, ::2].copy(), pixels[:, ::4, ::4].copy()]
    path = folder / "mif.ome.tif"
    write_ome(
        path,
        levels,
        "CYX",
        compression="lzw",
        photometric="minisblack",
        metadata={"Channel": {"Name": MIF, "Color": [0xFF, 0xFF00FF, -16776961, 0x00FFFFFF]}},
    )
    return path, pixels
