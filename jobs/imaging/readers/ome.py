"""What OME-XML says about an image: its pixel size, magnification and channels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from jobs.imaging.readers.reader import Channel, Colour, Size

MICRONS = {"nm": 1e-3, "µm": 1.0, "um": 1.0, "mm": 1e3, "cm": 1e4, "m": 1e6, "Å": 1e-4}
Facts = Mapping[str, Any]


@dataclass(frozen=True)
class OmeImage:
    """One `Image` element. properties: under OpenSlide's names."""

    properties: dict[str, str] = field(default_factory=dict)
    channels: tuple[Channel, ...] = ()


def ome_image(document: Facts, size: Size) -> OmeImage:
    """The first image of `size` pixels; label and macro pictures have other sizes."""
    root = document.get("OME", {})
    for image in _listed(root.get("Image")):
        pixels = image.get("Pixels", {})
        if (pixels.get("SizeX"), pixels.get("SizeY")) == size:
            return OmeImage(_properties(root, image, pixels), _channels(pixels))
    return OmeImage()


def _properties(root: Facts, image: Facts, pixels: Facts) -> dict[str, str]:
    found: dict[str, str] = {}
    for axis in "XY":
        unit = MICRONS.get(str(pixels.get(f"PhysicalSize{axis}Unit", "µm")))
        value = pixels.get(f"PhysicalSize{axis}")
        if unit is not None and isinstance(value, int | float):
            found[f"openslide.mpp-{axis.lower()}"] = repr(value * unit)
    used = (image.get("ObjectiveSettings") or {}).get("ID")
    for instrument in _listed(root.get("Instrument")):
        for objective in _listed(instrument.get("Objective")):
            power = objective.get("NominalMagnification")
            if objective.get("ID") == used and power is not None:
                found["openslide.objective-power"] = str(power)
    return found


def _channels(pixels: Facts) -> tuple[Channel, ...]:
    return tuple(
        Channel(str(one.get("Name") or f"Channel {index}"), _colour(one.get("Color")))
        for index, one in enumerate(_listed(pixels.get("Channel")), start=1)
    )


def _colour(value: object) -> Colour | None:
    """OME keeps red, green, blue, alpha in a signed 32-bit number."""
    if not isinstance(value, int):
        return None
    red, green, blue, _ = (value & 0xFFFFFFFF).to_bytes(4, "big")
    return (red, green, blue) if red or green or blue else None


def _listed(value: Any) -> list[Any]:
    """XML with one child gives it bare, with several a list."""
    found = value if isinstance(value, list) else [value]
    return [one for one in found if isinstance(one, dict)]
