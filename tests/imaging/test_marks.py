"""Pen, slide edges and lines are no tissue; the tissue under and within them is. Pale tissue stays."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter
from scipy import ndimage

from jobs.imaging.artefacts import EDGE, PEN
from jobs.imaging.contract import TissueRequest
from jobs.imaging.pipeline import find_tissue as run_tissue_job
from jobs.imaging.preparation import look_for_tissue
from jobs.imaging.slide import open_slide
from jobs.imaging.tissue import SMALLEST_UM2, Tissue, find_bright_tissue, find_tissue
from tests.imaging.slides import Pixels, silent, write_levels

Mask = np.ndarray
ROWS, COLS = 400, 480
RING = [(60, 60), (250, 50), (262, 290), (150, 300), (62, 286), (60, 60)]
ACROSS = [(20, 120), (320, 340)]
WORD = [(300, 60), (312, 150), (340, 70), (362, 150), (390, 60), (402, 140)]
STROKES = {"ring": (RING, 14), "across": (ACROSS, 20), "word": (WORD, 10)}
INKS = {
    "blue": (35, 50, 150),
    "light blue": (60, 120, 205),
    "navy": (30, 35, 95),
    "violet": (90, 30, 140),
    "green": (20, 110, 70),
    "black": (30, 30, 34),
    "red": (200, 30, 40),
}


@pytest.fixture(scope="session")
def real(cmu: Path) -> Pixels:
    """The real slide at 8 µm per pixel, on more glass: 400 × 480 pixels."""
    with open_slide(cmu) as slide:
        picture, _ = look_for_tissue(slide, (0.499, 0.499), SMALLEST_UM2, lambda *_: None)
    placed = _glass()
    placed[80 : 80 + picture.shape[0], 90 : 90 + picture.shape[1]] = picture
    return placed


@pytest.fixture(scope="session")
def truth(real: Pixels) -> Mask:
    """Its tissue, where nobody drew on it."""
    found = _find(real)
    assert found.marks is not None
    assert not found.marks.any()
    return found.mask


def _glass() -> Pixels:
    noise = np.random.default_rng(5).normal(245, 1.5, (ROWS, COLS, 3))
    return noise.clip(0, 254).astype(np.uint8)


def _find(picture: Pixels) -> Tissue:
    return find_tissue(picture, (16.0, 16.0), mpp=8.0, smallest_um2=SMALLEST_UM2)


def _drawn(
    picture: Pixels, points: list[tuple[int, int]], width: int, ink: tuple[int, int, int]
) -> tuple[Pixels, Mask]:
    """The picture with a marker's stroke, streaky and soft at its rim; and where that is."""
    rows, cols = picture.shape[:2]
    sheet = Image.new("L", (cols * 4, rows * 4))
    fine = [(x * 4, y * 4) for x, y in points]
    ImageDraw.Draw(sheet).line(fine, fill=255, width=width * 4, joint="curve")
    soft = sheet.resize((cols, rows), Image.Resampling.LANCZOS)
    cover = np.asarray(soft.filter(ImageFilter.GaussianBlur(0.8))) / 255.0
    streaks = ndimage.gaussian_filter(np.random.default_rng(1).normal(0, 40, (rows, cols)), 3)
    colour = (np.array(ink) + streaks[..., None]).clip(0, 255)
    weight = (0.92 * cover)[..., None]
    return (picture * (1 - weight) + colour * weight).astype(np.uint8), cover > 0.5


def _overlap(one: Mask, other: Mask) -> float:
    return float((one & other).sum() / (one | other).sum())


@pytest.mark.parametrize("stroke", STROKES)
@pytest.mark.parametrize("ink", INKS)
def test_pen_is_left_out_and_the_tissue_stays(
    real: Pixels, truth: Mask, ink: str, stroke: str
) -> None:
    picture, pen = _drawn(real, *STROKES[stroke], INKS[ink])
    found = _find(picture)
    free = pen & ~truth
    assert _overlap(found.mask, truth) >= 0.97
    assert (found.mask & free).sum() < 0.05 * free.sum()
    assert found.marks is not None
    assert (found.marks[free] == PEN).mean() > 0.9


@pytest.mark.parametrize("colour", [(200, 120, 170), (70, 110, 170), (150, 60, 140), (60, 60, 60)])
def test_what_is_textured_or_compact_is_no_pen(colour: tuple[int, int, int]) -> None:
    """A needle core in any stain, blue collagen too; and a compact block, however even."""
    grain = np.random.default_rng(2).normal(0, 14, (40, 300, 1))
    picture = _glass()
    picture[60:100, 40:340] = (np.array(colour) + grain).clip(0, 255)
    picture[200:300, 100:250] = colour
    expected = np.zeros((ROWS, COLS), bool)
    expected[60:100, 40:340] = expected[200:300, 100:250] = True
    if colour == (70, 110, 170):  # an even block of ink's colour is ink
        expected[200:300, 100:250] = False
    assert _overlap(_find(picture).mask, expected) > 0.95


@pytest.mark.parametrize("shade", [0, 25, 90])
def test_dark_edges_and_scanner_background_are_left_out(
    real: Pixels, truth: Mask, shade: int
) -> None:
    """A frame that fades into the glass over 100 µm, uneven as a sawn slide is."""
    rows, cols = np.indices((ROWS, COLS))
    wavy = 30 + 4 * np.sin(cols / 17) + 3 * np.sin(rows / 11)
    depth = np.minimum.reduce([rows, cols, ROWS - 1 - rows, COLS - 1 - cols]) - wavy
    light = np.clip(depth / 12 + 1, 0, 1)[..., None]
    picture = (real * light + shade * (1 - light)).astype(np.uint8)
    found = _find(picture)
    assert _overlap(found.mask, truth) >= 0.97
    assert found.marks is not None
    assert (found.marks[depth < -12] == EDGE).all()


def test_a_stroke_from_the_slide_edge_takes_no_tissue_with_it(real: Pixels, truth: Mask) -> None:
    picture, pen = _drawn(real, [(0, 108), (320, 340)], 20, INKS["black"])
    picture[:30] = picture[:, :30] = 15
    found = _find(picture).mask
    free = pen & ~truth
    assert _overlap(found, truth) >= 0.97
    assert (found & free).sum() < 0.05 * free.sum()


@pytest.mark.parametrize("padding", [0, 255])
def test_padding_is_no_tissue(real: Pixels, truth: Mask, padding: int) -> None:
    picture = np.full((ROWS + 150, COLS + 90, 3), padding, np.uint8)
    picture[:ROWS, :COLS] = real
    found = _find(picture).mask
    assert _overlap(found[:ROWS, :COLS], truth) >= 0.97
    assert not found[ROWS:].any()
    assert not found[:, COLS:].any()


def test_lines_of_a_cover_slip_and_rims_of_bubbles_are_left_out(real: Pixels, truth: Mask) -> None:
    """Grey lines of 30 µm, straight over the slide and round a bubble."""
    picture = real.copy()
    picture[350:354] = (120, 122, 124)
    picture[:, 440:444] = (90, 92, 96)
    y, x = np.indices((ROWS, COLS))
    picture[np.abs(np.hypot(y - 120, x - 340) - 40) < 2] = (100, 100, 102)
    assert _overlap(_find(picture).mask, truth) >= 0.97


@pytest.mark.parametrize("stain", [(233, 222, 233), (238, 226, 236), (229, 215, 224)])
def test_pale_tissue_is_found(real: Pixels, truth: Mask, stain: tuple[int, int, int]) -> None:
    """Fat and pale stroma: 12-30 grey values below the glass, and coloured."""
    grain = np.random.default_rng(4).normal(0, 2, (110, 130, 3))
    picture = real.copy()
    picture[40:150, 320:450] = (np.array(stain) + grain).clip(0, 255)
    expected = truth.copy()
    expected[40:150, 320:450] = True
    assert _overlap(_find(picture).mask, expected) >= 0.97


def test_dust_and_shading_are_no_tissue() -> None:
    rows, cols = np.indices((ROWS, COLS))
    shading = 245 - 4 * cols / COLS - 2 * np.sin(rows / 40)
    picture = (shading[..., None] + np.random.default_rng(6).normal(0, 1, (ROWS, COLS, 3))).clip(
        0, 254
    )
    for y, x in ((40, 60), (200, 300), (330, 90)):
        picture[y : y + 6, x : x + 6] = 80
    assert not _find(picture.astype(np.uint8)).mask.any()


def test_on_fluorescence_slides_tissue_is_what_is_bright() -> None:
    noise = np.random.default_rng(7)
    picture = noise.normal(12, 2, (ROWS, COLS, 3)).clip(0, 255)
    expected = np.zeros((ROWS, COLS), bool)
    expected[100:250, 120:300] = True
    nuclei = noise.random((ROWS, COLS)) < 0.2
    picture[expected & nuclei, 2] = 180
    found = find_bright_tissue(
        picture.astype(np.uint8), (16.0, 16.0), mpp=8.0, smallest_um2=SMALLEST_UM2
    )
    assert _overlap(found.mask, expected) > 0.9


def test_the_job_tells_and_draws_what_it_left_out(cmu: Path, tmp_path: Path) -> None:
    """On the real slide at full size: a black line of 50 µm, 0.8 mm long, at its left."""
    with open_slide(cmu) as slide:
        pixels = slide.read(0, 0, 0, (slide.width, slide.height)).copy()
    pixels[1300:2900, 60:160] = (25, 25, 28)
    facts = _job(write_levels(tmp_path / "pen.tiff", [pixels], mpp=0.499), tmp_path / "pen")
    assert facts["pen_mm2"] == pytest.approx(0.0398, rel=0.2)
    assert facts["edge_mm2"] == 0
    assert facts["area_mm2"] == pytest.approx(0.608, rel=0.01)
    shown = np.asarray(Image.open(tmp_path / "pen" / "tissue_qc.jpg")).astype(int)
    orange = (shown[..., 0] > 190) & (shown[..., 2] < 90)
    assert orange[80:182, 2:12].sum() > 100
    assert not orange[:, 30:].any()


def _job(slide: Path, folder: Path) -> dict:
    run_tissue_job(TissueRequest(slide, folder, "J", "K", {}), report=silent)
    found: dict = json.loads((folder / "tissue.json").read_text())
    return found
