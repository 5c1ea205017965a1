"""Colours for the eye: the ICC profile of a brightfield slide, and channels mixed into RGB."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms

from jobs.imaging.readers.reader import Channel, Colour, Pixels

BLACK_BELOW, WHITE_ABOVE = 0.5, 99.8
"""Percentiles of a channel that are shown as black and as its full colour."""

PALETTE: tuple[Colour, ...] = (
    (0, 0, 255), (0, 255, 0), (255, 0, 0), (255, 255, 0), (255, 0, 255), (0, 255, 255),
)  # fmt: skip
"""Channels without a colour of their own, in order: the first is most often DAPI."""


class ToSrgb:
    """A slide's ICC profile to sRGB; without one, with sRGB or a broken one, nothing changes."""

    def __init__(self, profile: Any | None) -> None:
        self._profile = profile if _differs(profile) else None
        self._local = threading.local()

    def __call__(self, rgb: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """RGB (rows, cols, 3) in sRGB."""
        if self._profile is None:
            return rgb
        if not hasattr(self._local, "transform"):  # one transform must not run in two threads
            self._local.transform = _transform(self._profile)
        if self._local.transform is None:
            return rgb
        return np.asarray(ImageCms.applyTransform(Image.fromarray(rgb), self._local.transform))


def _differs(profile: Any | None) -> bool:
    try:
        return profile is not None and "srgb" not in ImageCms.getProfileDescription(profile).lower()
    except ImageCms.PyCMSError:
        return False  # a damaged profile says nothing about the pixels, which are still good


def _transform(profile: Any) -> Any | None:
    try:
        intent = ImageCms.Intent(ImageCms.getDefaultIntent(profile))
        return ImageCms.buildTransform(
            profile, ImageCms.createProfile("sRGB"), "RGB", "RGB", intent
        )
    except ImageCms.PyCMSError:
        return None  # as above


class Rendering:
    """Channels as RGB, each from dark to its colour; the brighter one is seen.

    sample  (pixels, channels), from all over the slide: what is dark and what is bright
    """

    def __init__(self, channels: Sequence[Channel], sample: Pixels) -> None:
        low, high = np.percentile(sample, (BLACK_BELOW, WHITE_ABOVE), axis=0)
        self.low = low.astype(np.float32)
        self.width = np.maximum(high - low, 1e-6 if sample.dtype.kind == "f" else 1.0).astype(
            np.float32
        )
        alone = ((255, 255, 255),) if len(channels) == 1 else PALETTE
        self.colours: list[Colour] = [
            channel.colour or alone[index % len(alone)] for index, channel in enumerate(channels)
        ]

    def __call__(self, pixels: Pixels) -> NDArray[np.uint8]:
        """RGB (rows, cols, 3) of pixels (rows, cols, channels)."""
        out = np.zeros((*pixels.shape[:2], 3), np.float32)
        for index, colour in enumerate(self.colours):
            shown = (pixels[..., index] - self.low[index]) / self.width[index]
            np.maximum(
                out, np.clip(shown, 0, 1)[..., None] * np.asarray(colour, np.float32), out=out
            )
        return np.asarray(out + np.float32(0.5)).astype(np.uint8)
