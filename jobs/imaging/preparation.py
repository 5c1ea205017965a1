"""What is settled about a slide before the first block: pixel size, tissue, brightness scale."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from jobs.imaging import tissue as tissues
from jobs.imaging.ahead import in_order
from jobs.imaging.contract import BadInput
from jobs.imaging.gaps import Patient
from jobs.imaging.normalisation import Histogram, Normalisation, sample_blocks
from jobs.imaging.plane import Plane, plane_geometry
from jobs.imaging.probing import probe_slide
from jobs.imaging.progress import Tick
from jobs.imaging.slide import GIVE_MPP, Slide, open_slide
from jobs.imaging.tiling import Rect, run_squares, squares_of_mask
from jobs.imaging.tissue import Tissue

OPEN_TIMEOUT_S = 60.0
UNKNOWN_MPP = 0.5
"""What a tissue job takes a pixel for when nobody says; its areas are then left out."""

TISSUE_MPP_LOW, TISSUE_MPP_HIGH = 0.05, 100.0


@contextmanager
def checked_slide(path: Path, mpp: float | None) -> Iterator[Slide]:
    """The slide, opened here only after a child process has opened it unharmed."""
    if path.is_file():
        probe_slide(path, OPEN_TIMEOUT_S, mpp=mpp)
    with open_slide(path, mpp=mpp) as slide:
        yield slide


def tissue_pixel_size(slide: Slide) -> tuple[float, float]:
    """Pixel size (µm, by axis) by which tissue is looked for, or BadInput for an absurd one."""
    if slide.mpp is None:
        return UNKNOWN_MPP, UNKNOWN_MPP
    low, high = min(slide.mpp), max(slide.mpp)
    if low < TISSUE_MPP_LOW or high > TISSUE_MPP_HIGH:
        raise BadInput(
            f"{slide.path.name} has pixels of {high:g} µm ({slide.mpp_source}), which no slide "
            f"scanner makes: {GIVE_MPP}."
        )
    return slide.mpp


def look_for_tissue(
    slide: Slide, pixel_size: tuple[float, float], smallest_um2: float, tick: Tick
) -> tuple[NDArray[np.uint8], Tissue]:
    """A picture of the slide at about 8 µm per pixel, and the tissue on it."""
    mpp = max(tissues.MPP, *pixel_size)
    plane = Patient(Plane(slide, plane_geometry(slide, mpp, pixel_size)))
    picture = tissues.thumbnail(plane, tick)
    scale = plane.geometry.scale
    bright = slide.kind == "fluorescence"
    find = tissues.find_bright_tissue if bright else tissues.find_tissue
    found = find(picture, scale, mpp=mpp, smallest_um2=smallest_um2)
    for gap in plane.gaps:  # nobody knows what is there: the job that needs it will tell
        found.mask[gap.slices(Rect(0, 0, plane.width, plane.height))] = True
    return picture, found


def brightness(plane: Plane, tick: Tick) -> Normalisation:
    """The slide's normalisation, from fixed blocks of the model plane; damaged ones do not count."""
    blocks = sample_blocks(plane.width, plane.height)
    patient = Patient(plane)
    histogram = Histogram(len(plane.slide.channels), plane.slide.dtype)
    with ThreadPoolExecutor(2, thread_name_prefix="count") as pool:
        for done, (pixels, gaps) in enumerate(
            in_order(pool, patient.read_telling, blocks, ahead=4)
        ):
            if not gaps:
                histogram.add(pixels)
            tick(done + 1, len(blocks))
    if not histogram.counts.any():
        raise BadInput(
            f"{plane.slide.path.name} is damaged: no part of it can be read at full resolution. "
            "Compare its size with the original and copy it again."
        )
    return histogram.normalisation()


def squares_to_run(
    tissue: Tissue | None, plane: Plane, pixel_size: tuple[float, float]
) -> NDArray[np.bool_]:
    """The run squares of the model plane: those the widened mask touches, or all without one."""
    if tissue is None:
        return run_squares(plane.width, plane.height)
    mask = tissues.widened(tissue.mask, mpp=tissue.scale[0] * pixel_size[0])
    across, down = plane.geometry.scale
    scale = (tissue.scale[0] / across, tissue.scale[1] / down)
    return squares_of_mask(mask, scale, plane.width, plane.height)
