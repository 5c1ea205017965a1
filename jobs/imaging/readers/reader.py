"""What every kind of slide file gives: levels, properties, and rectangles of pixels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Size = tuple[int, int]
Colour = tuple[int, int, int]
Pixels = NDArray[Any]
"""(rows, cols, channels) of uint8, uint16 or float32."""


class NotRead(Exception):
    """A rectangle could not be read; the message is the library's own."""


@dataclass(frozen=True)
class Channel:
    """One channel of a fluorescence slide; `colour` where the file names one."""

    name: str
    colour: Colour | None = None


RGB = (Channel("Red"), Channel("Green"), Channel("Blue"))


class Reader(Protocol):
    """An open file. Reads from any thread at once.

    sizes       (width, height) of each level, the largest first
    properties  under OpenSlide's names, whatever reads the file
    brightfield True where pixels are 8-bit RGB
    profile     the ICC profile of the pixels, as Pillow has it
    """

    vendor: str
    sizes: tuple[Size, ...]
    properties: Mapping[str, str]
    channels: tuple[Channel, ...]
    dtype: np.dtype[Any]
    brightfield: bool
    profile: Any | None

    def read(self, level: int, x_lv: int, y_lv: int, size: Size) -> Pixels:
        """Level pixels; beyond the level, and where nothing was scanned, they are empty (white on
        brightfield, else 0). Raises NotRead."""
        ...

    def reopened(self) -> Reader:
        """Another reader of the same file with a handle of its own. Raises BadInput."""
        ...

    def close(self) -> None:
        """Give back the file."""
        ...
