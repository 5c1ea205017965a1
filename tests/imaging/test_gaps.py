"""What can not be read is told, no more is lost than that, and a retry computes no more than that."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import tifffile

from jobs.imaging.blocks import FolderStore
from jobs.imaging.contract import BadInput, CellRequest
from jobs.imaging.network import Network
from jobs.imaging.pipeline import segment_cells
from tests.imaging.slides import Run, cell_request, outlines_of, silent
from tests.imaging.test_resume import Watched

ROI = [[520, 1320, 900, 420]]
TILE = (3, 6)
"""Column and row of the tile of the sample slide that is destroyed: dense tissue, 240 pixels a side."""


@pytest.fixture(scope="module")
def damaged(cmu: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sample slide with one tile overwritten."""
    path = Path(shutil.copy(cmu, tmp_path_factory.mktemp("damaged") / "damaged.svs"))
    path.chmod(0o644)
    with tifffile.TiffFile(path) as file:
        page = file.pages[0]
        assert page.tilewidth == page.tilelength == 240
        number = TILE[1] * -(-page.imagewidth // 240) + TILE[0]
        place, size = page.dataoffsets[number], page.databytecounts[number]
    with path.open("r+b") as stream:
        stream.seek(place)
        stream.write(bytes(size))
    return path


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> FolderStore:
    """Where the plan of the sound slide is: brightness is measured without damaged places, so that
    a plan made on the damaged one differs by a hair."""
    return FolderStore(tmp_path_factory.mktemp("plan"))


@pytest.fixture(scope="module")
def sound(
    cmu: Path, net: Network, plan: FolderStore, tmp_path_factory: pytest.TempPathFactory
) -> Run:
    folder = tmp_path_factory.mktemp("sound")
    return Run(
        segment_cells(replace(_request(cmu, net, folder), blocks=plan), report=silent), folder
    )


@pytest.fixture
def blocks(sound: Run, plan: FolderStore, tmp_path: Path) -> Watched:
    """No blocks yet, and the plan of the sound slide."""
    for kept in plan.folder.glob("*/plan"):
        target = tmp_path / "blocks" / kept.parent.name / "plan"
        target.parent.mkdir(parents=True)
        shutil.copy(kept, target)
    return Watched(tmp_path / "blocks")


def _request(slide: Path, net: Network, folder: Path, most: float = 1.0) -> CellRequest:
    return replace(cell_request(slide, net.path, folder, roi=ROI), most_gaps=most)


def test_a_damaged_tile_is_mapped_and_costs_only_the_cells_in_it(
    damaged: Path, sound: Run, net: Network, blocks: Watched, tmp_path: Path
) -> None:
    request = replace(_request(damaged, net, tmp_path / "out"), blocks=blocks)
    run = Run(segment_cells(request, report=silent), tmp_path / "out")
    left, top = TILE[0] * 240, TILE[1] * 240
    assert run.outcome.summary["gaps"] >= 1
    for x, y, width, height in run.manifest["gaps_l0"]:
        assert left - 64 <= x <= left + 240 + 64
        assert top - 64 <= y <= top + 240 + 64
        assert width <= 64
        assert height <= 64
    area = sum(width * height for _, _, width, height in run.manifest["gaps_l0"])
    assert 240 * 240 <= area <= (240 + 2 * 64) ** 2
    far = [cell for cell in sound.cells if not _touches(cell, left - 170, top - 170, 240 + 340)]
    assert outlines_of(far) <= outlines_of(run.cells)
    inside = [cell for cell in run.cells if _touches(cell, left, top, 240)]
    assert inside == []
    flagged = [cell for cell in run.cells if cell.get("near_gap")]
    assert 0 < len(flagged) < len(run.cells)
    assert all(_touches(cell, left - 180, top - 180, 240 + 360) for cell in flagged)


def _touches(cell: dict, left: float, top: float, side: float) -> bool:
    xs, ys = zip(*cell["polygon"], strict=True)
    beside = max(xs) <= left or min(xs) >= left + side
    return not (beside or max(ys) <= top or min(ys) >= top + side)


def test_a_retry_on_the_mended_slide_computes_the_damaged_blocks_alone(
    cmu: Path, damaged: Path, sound: Run, net: Network, blocks: Watched, tmp_path: Path
) -> None:
    request = _request(damaged, net, tmp_path / "first")
    segment_cells(replace(request, blocks=blocks), report=silent)
    second = Watched(tmp_path / "blocks")
    mended = replace(_request(cmu, net, tmp_path / "second"), blocks=second)
    run = Run(segment_cells(mended, report=silent), tmp_path / "second")
    assert 0 < len(second.computed) < len(blocks.computed)
    assert "gaps" not in run.outcome.summary
    assert outlines_of(run.cells) == outlines_of(sound.cells)


def test_too_much_damage_is_a_sentence_and_no_result(
    damaged: Path, net: Network, tmp_path: Path
) -> None:
    with pytest.raises(BadInput, match="more of its tissue can not be read"):
        segment_cells(_request(damaged, net, tmp_path, most=0.01), report=silent)
    assert not [path for path in tmp_path.iterdir() if path.is_file()]
