"""The files of a `tissue_mask` job: mask, facts, outlines, and a picture for a quick look."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from jobs.imaging.artefacts import EDGE, PEN
from jobs.imaging.contract import BadInput
from jobs.imaging.tissue import Tissue

OUTLINE = (0, 90, 255)
MARKS = {PEN: (255, 140, 0), EDGE: (0, 150, 60)}


def write_mask(path: Path, tissue: Tissue) -> None:
    """Write the mask as 8-bit PNG: 255 is tissue, 0 is background."""
    Image.fromarray(np.where(tissue.mask, 255, 0).astype(np.uint8)).save(path, optimize=True)


def write_picture(path: Path, picture: NDArray[np.uint8], tissue: Tissue) -> None:
    """Write the thumbnail with outlines: tissue blue, pen left out orange, slide edges green."""
    shown = picture.copy()
    if tissue.marks is not None:
        for kind, colour in MARKS.items():
            shown[_rim(tissue.marks == kind)] = colour
    shown[_rim(tissue.mask)] = OUTLINE
    Image.fromarray(shown).save(path, quality=88, subsampling=0)


def _rim(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    return np.asarray(mask & ~ndimage.binary_erosion(mask, np.ones((3, 3))))


def write_facts(path: Path, facts: dict[str, Any]) -> None:
    """Write `tissue.json`."""
    path.write_bytes(orjson.dumps(facts, option=orjson.OPT_INDENT_2) + b"\n")


def read_mask(mask: Path, facts: Path | None, slide_size: tuple[int, int]) -> Tissue:
    """The tissue that an upstream job found; without its facts the mask is taken as whole-slide."""
    try:
        with Image.open(mask) as image:
            pixels = np.asarray(image.convert("L")) > 127
        told = orjson.loads(facts.read_bytes()) if facts is not None else {}
        rows, cols = pixels.shape
        whole = (slide_size[0] / cols, slide_size[1] / rows)
        scale = tuple(float(number) for number in told.get("scale_l0", whole))
        threshold = float(told.get("threshold", 0))
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise BadInput(
            f"The tissue mask of the upstream job cannot be read ({error}): retry that job, or "
            "leave the edge out, and this job finds the tissue itself."
        ) from error
    if len(scale) != 2 or min(scale) <= 0:
        raise BadInput("The tissue mask of the upstream job has no usable scale: retry that job.")
    return Tissue(pixels, (scale[0], scale[1]), threshold, "upstream job")
