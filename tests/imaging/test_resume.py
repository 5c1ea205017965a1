"""What is finished is not computed again, and resumed equals uninterrupted (DESIGN I6)."""

from __future__ import annotations

import hashlib
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from jobs.imaging.blocks import BlockFacts, FolderStore, Key
from jobs.imaging.course import Course, fraction
from jobs.imaging.network import Network
from jobs.imaging.pipeline import help_with_blocks, segment_cells
from jobs.imaging.tiling import Grid, Rect, run_squares
from tests.imaging.slides import Pixels, cell_request, on_glass, silent, write_levels


class Watched(FolderStore):
    """A folder of blocks that notes what was computed, and may fail after a number of blocks."""

    def __init__(self, folder: Path, *, stop_after: int | None = None) -> None:
        super().__init__(folder)
        self.computed: Counter[Key] = Counter()
        self.stop_after = stop_after

    def put(self, name: str, key: Key, content: bytes, facts: BlockFacts) -> None:
        if self.stop_after is not None and sum(self.computed.values()) >= self.stop_after:
            raise KeyboardInterrupt
        self.computed[key] += 1
        super().put(name, key, content, facts)


class Once(Watched):
    """The blocks of another process: what they finished is looked up at every question."""

    def finished(self, name: str) -> Mapping[Key, BlockFacts]:
        return FolderStore(self.folder).finished(name)


@pytest.fixture(scope="module")
def wide(dense: Pixels, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A slide of three blocks side by side with a little tissue in each."""
    picture = on_glass(dense[:224, :224], (120, 90), (2300, 420))
    for x in (940, 1930):
        picture[100:324, x : x + 224] = dense[224:448, 100:324]
    return write_levels(tmp_path_factory.mktemp("wide") / "wide.tiff", [picture], mpp=0.5)


@pytest.fixture(scope="module")
def whole(wide: Path, net: Network, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Name → sha256 of what one uninterrupted run leaves."""
    folder = tmp_path_factory.mktemp("whole")
    segment_cells(cell_request(wide, net.path, folder), report=silent)
    return _hashes(folder)


def _hashes(folder: Path) -> dict[str, str]:
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.iterdir()
        if path.is_file() and path.name != "manifest.json"
    }


def test_an_attempt_goes_on_from_the_blocks_of_the_last_one_and_leaves_equal_bytes(
    wide: Path, net: Network, whole: dict[str, str], tmp_path: Path
) -> None:
    first = Watched(tmp_path / "blocks", stop_after=2)
    request = cell_request(wide, net.path, tmp_path / "results")
    with pytest.raises(KeyboardInterrupt):
        segment_cells(replace(request, blocks=first), report=silent)
    assert not [path for path in (tmp_path / "results").iterdir() if path.is_file()]
    second = Watched(tmp_path / "blocks")
    segment_cells(replace(request, blocks=second), report=silent)
    assert sum(first.computed.values()) == 2
    assert max((first.computed + second.computed).values()) == 1
    assert len(second.computed) == 1
    assert _hashes(tmp_path / "results") == whole


def test_the_plan_that_was_kept_first_is_the_one_that_is_followed(
    wide: Path, net: Network, whole: dict[str, str], tmp_path: Path
) -> None:
    store = Watched(tmp_path / "blocks")
    request = replace(cell_request(wide, net.path, tmp_path / "results"), blocks=store)
    segment_cells(request, report=silent)
    phases: list[str] = []
    segment_cells(
        replace(request, out_dir=tmp_path / "again"),
        report=lambda phase, _done, _total: phases.append(phase),
    )
    assert sum(store.computed.values()) == 3
    assert _hashes(tmp_path / "again") == whole
    assert phases.count("tissue") <= 2  # begun and ended: nothing was looked at again


def test_two_workers_share_a_slide_and_leave_the_bytes_of_one(
    wide: Path, net: Network, whole: dict[str, str], tmp_path: Path
) -> None:
    mine, theirs = Once(tmp_path / "blocks"), Once(tmp_path / "blocks")
    request = cell_request(wide, net.path, tmp_path / "results")
    helper = threading.Thread(
        target=help_with_blocks,
        args=(replace(request, blocks=theirs),),
        kwargs={"report": silent, "shard": 1},
    )
    helper.start()
    segment_cells(replace(request, blocks=mine), report=silent)
    helper.join()
    assert _hashes(tmp_path / "results") == whole


def _course(finished: Callable[[], set[Key]], first: float = 0.0) -> tuple[Grid, Course]:
    grid = Grid(9000, 5000, tile=768, squares=run_squares(9000, 5000))
    return grid, Course(grid, finished, first=first)


def _walked(course: Course) -> list[Rect]:
    """The blocks in the order in which they become ready, when every window has its piece."""
    found = []
    for window in course.windows():
        course.take(window, None)  # type: ignore[arg-type]
        found += [block for block, _ in course.ready()]
    return found + [block for block, _ in course.ready()]


@pytest.mark.parametrize("shard", range(6))
def test_every_block_becomes_ready_once_wherever_a_shard_begins(shard: int) -> None:
    grid, course = _course(set, fraction(shard))
    walked = [grid.key(block) for block in _walked(course)]
    assert sorted(walked) == sorted(grid.key(block) for row in grid.rows() for block in row)


def test_finished_blocks_ask_for_no_window_and_count_as_done() -> None:
    grid, course = _course(lambda: {(row, col) for row in range(2) for col in range(9)})
    walked = _walked(course)
    assert {grid.key(block)[0] for block in walked} == {2, 3, 4}
    assert 0 < course.skipped < course.total


@pytest.mark.parametrize("workers", [2, 3, 4, 5])
def test_workers_that_meet_part_again(workers: int) -> None:
    """Equal workers, each a window ahead of the blocks it finished, do little twice."""
    done: set[Key] = set()
    grid = Grid(60 * 1024, 60 * 1024, tile=1216, squares=run_squares(60 * 1024, 60 * 1024))
    courses = [Course(grid, lambda: set(done), first=fraction(shard)) for shard in range(workers)]
    walks = [course.windows() for course in courses]
    computed = 0
    while walks:
        for course, walk in zip(list(courses), list(walks), strict=True):
            window = next(walk, None)
            if window is None:
                courses.remove(course)
                walks.remove(walk)
                continue
            course.take(window, None)  # type: ignore[arg-type]
            for block, _ in course.ready():
                computed += 1
                done.add(grid.key(block))
    assert len(done) == 3600
    assert computed < 1.05 * len(done)


def test_shards_begin_far_from_each_other() -> None:
    starts = np.array([fraction(shard) for shard in range(8)])
    assert sorted(starts) == [shard / 8 for shard in range(8)]
