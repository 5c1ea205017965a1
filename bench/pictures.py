"""Pictures of found cells: the whole slide and a part of it with every outline drawn.

`python bench/pictures.py SLIDE RESULTS PICTURE --at X Y`: RESULTS is the folder that
`python -m jobs.imaging SLIDE --out RESULTS` wrote; X, Y (level-0 pixels) is the part's corner.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from jobs.imaging.slide import Slide, open_slide

HEIGHT = 720
PART = 480
"""Side of the part, in level-0 pixels; it is drawn `ZOOM` times as large."""
ZOOM = HEIGHT / PART
CELL, TISSUE, FRAME = (0, 90, 255), (0, 140, 60), (230, 120, 0)

Ring = list[tuple[float, float]]


def main() -> None:
    """Write the picture and say how many cells it shows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("slide", type=Path)
    parser.add_argument("results", type=Path)
    parser.add_argument("picture", type=Path)
    parser.add_argument("--at", type=int, nargs=2, default=(0, 0), metavar=("X", "Y"))
    options = parser.parse_args()
    rings = _rings(options.results)
    with open_slide(options.slide) as slide:
        left = _whole(slide, rings, _tissue(options.results), tuple(options.at))
        right = _part(slide, rings, tuple(options.at))
    sheet = Image.new("RGB", (left.width + 12 + right.width, HEIGHT), "white")
    sheet.paste(left, (0, 0))
    sheet.paste(right, (left.width + 12, 0))
    sheet.save(options.picture, quality=72, optimize=True)
    sys.stdout.write(f"{options.picture}: {len(rings)} cells\n")


def _rings(results: Path) -> list[Ring]:
    (lines,) = results.glob("*_cells.jsonl")
    with lines.open() as file:
        return [[(x, y) for x, y in json.loads(line)["polygon"]] for line in file]


def _tissue(results: Path) -> list[Ring]:
    features = json.loads((results / "tissue.geojson").read_text())["features"]
    rings = []
    for feature in features:
        geometry = feature["geometry"]
        polygons = geometry["coordinates"]
        for polygon in polygons if geometry["type"] == "MultiPolygon" else [polygons]:
            rings += [[(x, y) for x, y in ring] for ring in polygon]
    return rings


def _whole(slide: Slide, cells: list[Ring], tissue: list[Ring], at: tuple[int, int]) -> Image.Image:
    scale = HEIGHT / slide.height
    size = (round(slide.width * scale), HEIGHT)
    pixels = slide.read_rgb(0, 0, 0, (slide.width, slide.height))
    picture = Image.fromarray(pixels).resize(size, Image.Resampling.BOX)
    draw = ImageDraw.Draw(picture)
    for ring in cells:
        x, y = np.mean(ring, axis=0) * scale
        draw.point((x, y), fill=CELL)
    for ring in tissue:
        draw.line([(x * scale, y * scale) for x, y in ring], fill=TISSUE, width=2)
    corner = (at[0] * scale, at[1] * scale)
    draw.rectangle(
        (*corner, corner[0] + PART * scale, corner[1] + PART * scale), outline=FRAME, width=2
    )
    return picture


def _part(slide: Slide, cells: list[Ring], at: tuple[int, int]) -> Image.Image:
    pixels = slide.read_rgb(0, *at, (PART, PART))
    picture = Image.fromarray(pixels).resize((HEIGHT, HEIGHT), Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(picture)
    for ring in cells:
        moved = [((x - at[0]) * ZOOM, (y - at[1]) * ZOOM) for x, y in ring]
        if any(0 <= x <= HEIGHT and 0 <= y <= HEIGHT for x, y in moved):
            draw.line([*moved, moved[0]], fill=CELL, width=2)
    return picture


if __name__ == "__main__":
    main()
