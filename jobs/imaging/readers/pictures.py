"""A slide in openslide-python's clothes, so that its deep-zoom code serves every kind of slide."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import openslide
from PIL import Image

from jobs.imaging.contract import BadInput

if TYPE_CHECKING:
    from jobs.imaging.slide import Slide


class RenderedSlide(openslide.AbstractSlide):
    """What DeepZoomGenerator asks of a slide; its pixels are already in sRGB."""

    color_profile: Any = None

    def __init__(self, slide: Slide) -> None:
        super().__init__()
        self._slide = slide

    @property
    def properties(self) -> Mapping[str, str]:
        return self._slide.properties

    @property
    def dimensions(self) -> tuple[int, int]:
        return self._slide.width, self._slide.height

    @property
    def level_count(self) -> int:
        return len(self._slide.levels)

    @property
    def level_dimensions(self) -> tuple[tuple[int, int], ...]:
        return tuple((level.width, level.height) for level in self._slide.levels)

    @property
    def level_downsamples(self) -> tuple[float, ...]:
        return tuple((one.downsample_x + one.downsample_y) / 2 for one in self._slide.levels)

    def get_best_level_for_downsample(self, downsample: float) -> int:
        """The smallest level that is no smaller than asked for."""
        fit = [at for at, factor in enumerate(self.level_downsamples) if factor <= downsample]
        return max(fit, default=0)

    def set_cache(self, cache: object) -> None:
        """The slide keeps its own tiles."""

    def read_region(
        self, location: tuple[int, int], level: int, size: tuple[int, int]
    ) -> Image.Image:
        """RGBA; `location` in level-0 pixels. Raises OpenSlideError."""
        try:
            return Image.fromarray(self._slide.read_rgb(level, *location, size)).convert("RGBA")
        except BadInput as error:
            raise openslide.OpenSlideError(str(error)) from error

    @property
    def associated_images(self) -> Mapping[str, Image.Image]:
        return {}

    @classmethod
    def detect_format(cls, filename: Any) -> str | None:
        """OpenSlide knows none of these files."""
        return None

    def close(self) -> None:
        """The slide itself is closed by whoever opened it."""
