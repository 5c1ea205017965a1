"""Opening a whole-slide image: its levels, pixel size and bounds, and reading pixels of a level.

Torch-free: the web process uses it too. Coordinates: `_l0` level-0 pixels, `_lv` level pixels.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import openslide
from numpy.typing import NDArray
from PIL import Image, ImageCms

from jobs.imaging.contract import BadInput

MPP_LOW, MPP_HIGH = 0.1, 1.0
"""Pixel sizes (µm) at which nuclei can be segmented."""

CACHE_BYTES = 64 << 20
"""Decoded tiles that all handles of a slide keep together; each alone would keep 32 MB."""

GIVE_MPP = 'give the pixel size of the full-resolution image as "mpp" (µm per pixel) in params'
MICRONS = {"inch": 25_400.0, "centimeter": 10_000.0}


@dataclass(frozen=True)
class Level:
    """One layer of the pyramid; `downsample` is level-0 pixels per level pixel, by axis."""

    index: int
    width: int
    height: int
    downsample_x: float
    downsample_y: float


class Slide:
    """An open slide. Reads from any thread; each thread has its own handle."""

    def __init__(self, path: Path, *, mpp: float | None = None) -> None:
        self.path = path
        self._local = threading.local()
        self._handles: list[openslide.OpenSlide] = []
        self._cache = openslide.OpenSlideCache(CACHE_BYTES)
        self._lock = threading.Lock()
        self.handle = self._own_handle()
        self.width, self.height = self.handle.dimensions
        self.levels = tuple(
            Level(index, width, height, self.width / width, self.height / height)
            for index, (width, height) in enumerate(self.handle.level_dimensions)
        )
        properties = self.handle.properties
        self.vendor = properties.get(openslide.PROPERTY_NAME_VENDOR, "unknown")
        self.quickhash = properties.get(openslide.PROPERTY_NAME_QUICKHASH1)
        self.objective = _positive(properties.get(openslide.PROPERTY_NAME_OBJECTIVE_POWER))
        self.bounds = _bounds(properties)
        self.mpp, self.mpp_source = _pixel_size(properties, self.vendor, self.objective, mpp)

    def close(self) -> None:
        """Close every thread's handle."""
        with self._lock:
            for handle in self._handles:
                handle.close()
            self._handles.clear()

    def __enter__(self) -> Slide:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def read(self, level: int, x_l0: int, y_l0: int, size: tuple[int, int]) -> NDArray[np.uint8]:
        """RGB pixels (rows, cols, 3) in sRGB; where the scanner saw nothing they are white."""
        try:
            rgba = self._own_handle().read_region((x_l0, y_l0), level, size)
        except openslide.OpenSlideError as error:
            raise BadInput(
                f"{self.path.name} could not be read near x={x_l0}, y={y_l0} ({error}). The file "
                "may be truncated or damaged: compare its size with the original and copy it again."
            ) from error
        return self._srgb(_on_white(np.asarray(rgba)))

    def _own_handle(self) -> openslide.OpenSlide:
        handle = getattr(self._local, "handle", None)
        if handle is None:
            handle = self._local.handle = _opened(self.path)
            handle.set_cache(self._cache)
            with self._lock:
                self._handles.append(handle)
        return handle

    def _srgb(self, rgb: NDArray[np.uint8]) -> NDArray[np.uint8]:
        if not hasattr(self._local, "to_srgb"):
            self._local.to_srgb = _colour_transform(self._own_handle())
        transform = self._local.to_srgb
        if transform is None:
            return rgb
        return np.asarray(ImageCms.applyTransform(Image.fromarray(rgb), transform))


def open_slide(path: Path, *, mpp: float | None = None) -> Slide:
    """Open `path`; `mpp` (µm per level-0 pixel) overrides what the file says. Raises BadInput."""
    if not path.is_file():
        raise BadInput(f"There is no slide {path.name}: check the path, or upload the file again.")
    return Slide(path, mpp=mpp)


def cell_pixel_size(slide: Slide) -> tuple[float, float]:
    """Pixel size (µm, by axis) of a slide on which cells can be segmented, or BadInput."""
    if slide.mpp is None:
        raise BadInput(f"{slide.path.name} does not say how large its pixels are: {GIVE_MPP}.")
    low, high = min(slide.mpp), max(slide.mpp)
    if low < MPP_LOW or high > MPP_HIGH:
        raise BadInput(
            f"{slide.path.name} has pixels of {high:g} µm ({slide.mpp_source}); nuclei can be "
            f"segmented from {MPP_LOW} to {MPP_HIGH} µm per pixel. If that number is wrong, "
            f"{GIVE_MPP}; if it is right, this image is too {'coarse' if high > 1 else 'fine'}."
        )
    return slide.mpp


def _opened(path: Path) -> openslide.OpenSlide:
    try:
        return openslide.OpenSlide(path)
    except openslide.OpenSlideUnsupportedFormatError as error:
        raise BadInput(
            f"{path.name} is not a slide that OpenSlide can read. Supported: SVS, NDPI, MRXS, SCN, "
            "DICOM, BIF, and tiled (pyramidal) TIFF; export it again as one of these."
        ) from error
    except openslide.OpenSlideError as error:
        raise BadInput(
            f"{path.name} cannot be opened ({error}). The file may be truncated or damaged: "
            "compare its size with the original and copy it again."
        ) from error


def _pixel_size(
    properties: Mapping[str, str], vendor: str, objective: float | None, given: float | None
) -> tuple[tuple[float, float] | None, str]:
    """Pixel size and where it comes from: request, metadata, TIFF tags, objective power."""
    if given is not None:
        if _positive(given) is None:
            raise BadInput(f'"mpp" is {given!r}: give a positive number of µm per pixel.')
        return (float(given), float(given)), "request"
    x = _positive(properties.get(openslide.PROPERTY_NAME_MPP_X))
    y = _positive(properties.get(openslide.PROPERTY_NAME_MPP_Y))
    if x is not None or y is not None:
        source = "TIFF tags" if vendor == "generic-tiff" else "metadata"
        return (x or y or 0.0, y or x or 0.0), source
    tags = _tag_pixel_size(properties)
    if tags is not None:
        return tags, "TIFF tags"
    if objective is not None:
        return (10.0 / objective, 10.0 / objective), "assumed from objective power"
    return None, "unknown"


def _tag_pixel_size(properties: Mapping[str, str]) -> tuple[float, float] | None:
    """From TIFF resolution tags, where they are a scanner's and not a printer's (72, 300 dpi)."""
    unit = MICRONS.get(properties.get("tiff.ResolutionUnit", ""))
    x = _positive(properties.get("tiff.XResolution"))
    y = _positive(properties.get("tiff.YResolution"))
    if unit is None or x is None or y is None or max(unit / x, unit / y) > 10.0:
        return None
    return unit / x, unit / y


def _positive(value: object) -> float | None:
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) and number > 0 else None


def _bounds(properties: Mapping[str, str]) -> tuple[int, int, int, int] | None:
    """The scanned part (x, y, width, height), only where all four are given, as QuPath has it."""
    names = (
        openslide.PROPERTY_NAME_BOUNDS_X,
        openslide.PROPERTY_NAME_BOUNDS_Y,
        openslide.PROPERTY_NAME_BOUNDS_WIDTH,
        openslide.PROPERTY_NAME_BOUNDS_HEIGHT,
    )
    try:
        x, y, width, height = (int(properties[name]) for name in names)
    except (KeyError, ValueError):
        return None
    return x, y, width, height


def _on_white(rgba: NDArray[np.uint8]) -> NDArray[np.uint8]:
    alpha = rgba[..., 3]
    if (alpha == 255).all():
        return np.ascontiguousarray(rgba[..., :3])
    weight = alpha[..., None].astype(np.uint16)
    mixed = (rgba[..., :3] * weight + 255 * (255 - weight) + 127) // 255
    return mixed.astype(np.uint8)


def _colour_transform(handle: openslide.OpenSlide) -> Any | None:
    """ICC transform to sRGB, or None where there is no profile, it is sRGB, or it is broken."""
    profile = handle.color_profile
    if profile is None:
        return None
    try:
        if "srgb" in ImageCms.getProfileDescription(profile).lower():
            return None
        intent = ImageCms.Intent(ImageCms.getDefaultIntent(profile))
        return ImageCms.buildTransform(
            profile, ImageCms.createProfile("sRGB"), "RGB", "RGB", intent
        )
    except ImageCms.PyCMSError:
        return None  # a damaged profile says nothing about the pixels, which are still good
