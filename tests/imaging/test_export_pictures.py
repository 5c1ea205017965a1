"""Chunks, overlay and label image show every cell where it is."""

from __future__ import annotations

import gzip
import io
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO
from xml.etree import ElementTree as ET

import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray
from openslide.deepzoom import DeepZoomGenerator
from PIL import Image

from jobs.imaging.contract import BadInput
from jobs.imaging.export.chunks import corners_of, decode, read_chunk
from jobs.imaging.export.overlay import read_tile
from jobs.imaging.export.pack import Pack
from jobs.imaging.export.places import CELL, CHUNK, NUCLEUS
from jobs.imaging.slide import open_slide
from tests.imaging.exported import FRAME, PLANE, Written, blocks_of, label_map, write
from tests.imaging.slides import write_levels


@pytest.fixture(scope="module")
def labels() -> NDArray[np.int32]:
    return label_map()


@pytest.fixture(scope="module")
def nuclei(labels: NDArray[np.int32], tmp_path_factory: pytest.TempPathFactory) -> Written:
    return write(tmp_path_factory.mktemp("nuclei"), blocks_of(labels))


@pytest.fixture(scope="module")
def cells(labels: NDArray[np.int32], tmp_path_factory: pytest.TempPathFactory) -> Written:
    blocks = blocks_of(labels, nuclei=True)
    return write(tmp_path_factory.mktemp("cells"), blocks, kind="cell")


def _open(written: Written, name: str) -> BinaryIO:
    return io.BytesIO((written.folder / name).read_bytes())


def _ranks(written: Written, labels: NDArray[np.int32]) -> NDArray[np.uint32]:
    """The label map with ranks in place of its own numbers."""
    table = np.zeros(labels.max() + 1, np.uint32)
    rank = 0
    for block in written.blocks:
        for x, y in block.seeds:
            rank += 1
            table[labels[y, x]] = rank
    return table[labels]


def test_each_chunk_has_the_cells_of_its_square_to_a_quarter_pixel(cells: Written) -> None:
    known = {
        rank: (block, index)
        for rank, (block, index) in enumerate(
            ((block, index) for block in cells.blocks for index in range(len(block))), 1
        )
    }
    stream = _open(cells, "chunks.bin")
    pack = Pack(stream)
    assert pack.facts["chunk"] == CHUNK
    seen = []
    for entry in pack.index:
        _, row, column = entry["key"].tolist()
        chunk = read_chunk(stream, (column, row))
        assert chunk is not None
        shapes = decode(gzip.decompress(chunk))
        x0, y0, x1, y1 = entry["box"]
        for head, ring in zip(shapes.heads, corners_of(shapes), strict=True):
            block, index = known[head["id"]]
            inner = head["kind"] == NUCLEUS
            ring_l0 = block.nucleus(index) if inner else block.ring(index)
            assert np.abs(ring - ring_l0).max() <= 0.125
            assert (ring_l0 >= [x0 - 0.01, y0 - 0.01]).all()
            assert (ring_l0 <= [x1 + 0.01, y1 + 0.01]).all()
            assert (block.centroid_l0[index] // CHUNK).tolist() == [column, row]
            seen.append((int(head["id"]), int(head["kind"])))
        assert entry["cells"] == (shapes.heads["kind"] == CELL).sum()
    with_nucleus = [rank for rank, (block, index) in known.items() if len(block.nucleus(index))]
    both = [(rank, CELL) for rank in known] + [(rank, NUCLEUS) for rank in with_nucleus]
    assert sorted(seen) == sorted(both)
    assert read_chunk(stream, (40, 40)) is None


def test_a_chunk_with_a_large_outline_is_wide(nuclei: Written, tmp_path: Path) -> None:
    block = nuclei.blocks[0]
    corners = block.corners.copy()
    corners[: block.starts[1]] *= [30, 1]
    written = write(tmp_path, [replace(block, corners=corners)])
    chunk = read_chunk(_open(written, "chunks.bin"), (0, 0))
    assert chunk is not None
    content = gzip.decompress(chunk)
    assert content[:4] == b"CEL1"
    assert content[8] == 1
    shapes = decode(content)
    assert np.abs(corners_of(shapes)[0] - corners[: block.starts[1]]).max() <= 0.125


def test_a_file_cut_short_is_refused(nuclei: Written) -> None:
    whole = (nuclei.folder / "chunks.bin").read_bytes()
    for content in (whole[:-1], whole[10:], b"", b"no pack"):
        with pytest.raises(BadInput, match="run the job once more"):
            Pack(io.BytesIO(content))


def test_overlay_tiles_lie_as_the_deep_zoom_of_the_slide(nuclei: Written, tmp_path: Path) -> None:
    pixels = np.zeros((FRAME.shown[3], FRAME.shown[2], 3), np.uint8)
    slide = write_levels(tmp_path / "slide.tiff", [pixels], mpp=0.2)
    with open_slide(slide) as opened:
        zoom = DeepZoomGenerator(opened.handle, tile_size=254, overlap=1, limit_bounds=True)
    stream = _open(nuclei, "overlay.bin")
    pack = Pack(stream)
    told = {one["level"]: one for one in pack.facts["levels"]}
    assert sorted(told) == list(range(zoom.level_count - 2))
    assert all(told[n]["downsample"] == 2 ** (zoom.level_count - 1 - n) for n in told)
    for level, column, row in pack.index["key"].tolist():
        tile = read_tile(stream, level, column, row)
        assert tile is not None
        with Image.open(io.BytesIO(tile)) as image:
            assert image.size == zoom.get_tile_dimensions(level, (column, row))
            assert np.asarray(image.convert("RGBA"))[..., 3].any()
    assert read_tile(stream, zoom.level_count, 0, 0) is None


@pytest.mark.parametrize("outlines", [True, False])
def test_every_cell_shows_on_the_overlay(nuclei: Written, *, outlines: bool) -> None:
    stream = _open(nuclei, "overlay.bin")
    facts = Pack(stream).facts
    x0, y0, width, height = facts["frame"]
    for level in (one for one in facts["levels"] if one["outlines"] is outlines):
        shown = _level(stream, level["level"], (width, height), level["downsample"])
        for block in nuclei.blocks:
            for index in range(len(block)):
                x, y = block.centroid_l0[index]
                points = block.ring(index) if outlines else np.array([[x, y]])
                at = ((points - [x0, y0]) // level["downsample"]).astype(int)
                inside = (at >= 0).all(axis=1) & (at[:, 0] < shown.shape[1])
                at = at[inside & (at[:, 1] < shown.shape[0])]
                assert (shown[at[:, 1], at[:, 0]] > 0).all()
        assert (shown == 0).any() or shown.size < 64


def _level(stream: BinaryIO, level: int, size: tuple[int, int], scale: int) -> NDArray[np.uint8]:
    """The opacity of a whole level, put together from its tiles."""
    width, height = -(-size[0] // scale), -(-size[1] // scale)
    shown = np.zeros((height, width), np.uint8)
    for column in range(-(-width // 254)):
        for row in range(-(-height // 254)):
            tile = read_tile(stream, level, column, row)
            if tile is None:
                continue
            with Image.open(io.BytesIO(tile)) as image:
                alpha = np.asarray(image.convert("RGBA"))[..., 3]
            left, top = max(0, column * 254 - 1), max(0, row * 254 - 1)
            shown[top : top + alpha.shape[0], left : left + alpha.shape[1]] = alpha
    return shown


def test_labels_are_the_label_map_pixel_for_pixel(
    nuclei: Written, labels: NDArray[np.int32]
) -> None:
    known = _ranks(nuclei, labels)
    with tifffile.TiffFile(nuclei.folder / "labels.ome.tiff") as file:
        assert file.is_ome
        assert file.pages[0].tags["Compression"].value == 8
        levels = [level.asarray().squeeze() for level in file.series[0].levels]
    assert np.array_equal(levels[0], known)
    assert len(levels) == 2
    assert np.array_equal(levels[1], known[1::2, 1::2][: levels[1].shape[0], : levels[1].shape[1]])


def test_labels_tell_the_pixel_size_and_hold_nuclei_as_a_second_channel(cells: Written) -> None:
    with tifffile.TiffFile(cells.folder / "labels.ome.tiff") as file:
        image = file.series[0].asarray()
        pixels = ET.fromstring(file.ome_metadata or "")[0][0]
    assert image.shape == (2, PLANE[1], PLANE[0])
    assert pixels.attrib["PhysicalSizeX"] == "0.5"
    assert pixels.attrib["Type"] == "uint32"
    rank = 0
    for block in cells.blocks:
        for index in range(len(block)):
            rank += 1
            nucleus = block.nucleus(index) / FRAME.scale
            at = np.round(nucleus.min(axis=0)).astype(int) if len(nucleus) else None
            assert (image[1] == rank).sum() == (0 if at is None else 4)
            if at is not None:
                assert (image[1][at[1] : at[1] + 2, at[0] : at[0] + 2] == rank).all()


def test_where_two_cells_overlap_the_smaller_is_seen(nuclei: Written, tmp_path: Path) -> None:
    block = nuclei.blocks[0]
    large = np.array([[50.0, 50.0], [800.0, 50.0], [800.0, 800.0], [50.0, 800.0]])
    last = block.starts[-2]
    corners = np.concatenate([block.corners[:last], large])
    starts = np.append(block.starts[:-1], len(corners))
    area = np.append(block.area_l0[:-1], 750.0**2)
    grown = replace(block, corners=corners, starts=starts, area_l0=area)
    centroid = grown.centroid_l0.copy()
    centroid[-1] = 425.0
    written = write(tmp_path, [replace(grown, centroid_l0=centroid)])
    image = tifffile.imread(written.folder / "labels.ome.tiff")
    assert np.unique(image).tolist() == list(range(len(block) + 1))


def test_a_slide_without_cells_has_empty_pictures(tmp_path: Path) -> None:
    written = write(tmp_path, [])
    assert len(Pack(_open(written, "chunks.bin")).index) == 0
    assert len(Pack(_open(written, "overlay.bin")).index) == 0
    assert not tifffile.imread(tmp_path / "labels.ome.tiff").any()
