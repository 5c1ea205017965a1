"""Every bad input ends in a sentence that says what and what next, and leaves no artifact."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from jobs.imaging import probing
from jobs.imaging.contract import BadInput, TissueRequest
from jobs.imaging.network import Network
from jobs.imaging.pipeline import find_tissue
from jobs.imaging.probing import probe_slide
from tests.imaging import broken
from tests.imaging.slides import GLASS, Pixels, run_cells, silent, write_levels

REPOSITORY = Path(__file__).resolve().parents[2]

REFUSED: list[tuple[str, Callable[[Path], None], str]] = [
    ("empty.svs", broken.empty, r"is empty \(0 bytes\).* Copy the file again"),
    ("photo.svs", broken.jpeg, "is a JPEG picture.* export it again as one of these"),
    ("packed.svs", broken.archive, "is a ZIP archive.* export it again"),
    ("page.svs", broken.web_page, "a web page, perhaps the error page of a download"),
    ("secret.svs", broken.encrypted, "of no known format, or encrypted.* export it again"),
    ("scan.dcm", broken.dicom, "not a whole-slide image.* without encryption"),
    ("bits.tif", broken.black_and_white, r"has 1-bit pixels .* export it with 8 or 16"),
    ("palette.tif", broken.palette, "stores its colours as PALETTE.* export it as RGB"),
    ("cmyk.tif", broken.cmyk, "stores its colours as SEPARATED.* export it as RGB"),
    ("double.tif", broken.double, "has 64-bit pixels .* export it with 8 or 16"),
    ("stack.ome.tif", broken.focus_planes, "holds 3 focus planes.* Export it as such"),
    ("cut.ome.tif", broken.no_end, "truncated or damaged.* copy it again"),
    ("strips.tif", broken.no_parts, "strips as wide as the image.* tiled pyramidal TIFF"),
    ("wide.tif", partial(broken.sides, width=2**32 - 1, height=300), "copy it again|Copy it again"),
    ("flat.tif", partial(broken.sides, width=0, height=300), "copy it again|Copy it again"),
    ("vast.tif", partial(broken.sides, width=2**31, height=2**31), "opy it again"),
]


def tissue_of(slide: Path, out: Path, **params: object) -> dict[str, float | int | str]:
    return find_tissue(TissueRequest(slide, out, "J", "K", params), report=silent).summary


def left(out: Path) -> list[Path]:
    return list(out.rglob("*")) if out.exists() else []


@pytest.mark.parametrize(("name", "make", "sentence"), REFUSED, ids=[one[0] for one in REFUSED])
def test_what_is_no_slide_is_refused_by_both_jobs(
    tmp_path: Path, name: str, make: Callable[[Path], None], sentence: str
) -> None:
    path, out = tmp_path / name, tmp_path / "out"
    make(path)
    jobs = (partial(tissue_of, path, out), partial(run_cells, path, tmp_path / "no.pt", out))
    for job in jobs:
        with pytest.raises(BadInput, match=sentence) as refusal:
            job()
        assert str(refusal.value).startswith(name)
    assert left(out) == []


@pytest.mark.parametrize("part", [0.3, 0.9])
def test_a_truncated_slide_is_refused(cmu: Path, tmp_path: Path, part: float) -> None:
    path = tmp_path / "cut.svs"
    content = cmu.read_bytes()
    path.write_bytes(content[: int(part * len(content))])
    with pytest.raises(BadInput, match=r"cut\.svs .*copy it again"):
        tissue_of(path, tmp_path / "out")
    assert left(tmp_path / "out") == []


@pytest.fixture(params=[(1, 1), (7, 9), (64, 64)], ids=str)
def tiny(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    width, height = request.param
    path = tmp_path / "tiny.tif"
    broken.tiff(path, np.full((height, width, 3), 150, np.uint8))
    return path


def test_a_tiny_slide_has_its_tissue_found(tiny: Path, tmp_path: Path) -> None:
    assert tissue_of(tiny, tmp_path / "tissue")["tissue_fraction"] in (0.0, 1.0)


def test_a_tiny_slide_has_its_cells_segmented(tiny: Path, tmp_path: Path, net: Network) -> None:
    run = run_cells(tiny, net.path, tmp_path / "cells", tissue=False)
    assert run.document["total_cells"] == len(run.cells)


def test_a_slide_of_glass_has_no_cells(tmp_path: Path, net: Network) -> None:
    glass = np.full((700, 900, 3), GLASS, np.uint8)
    path = write_levels(tmp_path / "glass.tiff", [glass], mpp=0.5)
    assert tissue_of(path, tmp_path / "tissue")["tissue_fraction"] == 0
    run = run_cells(path, net.path, tmp_path / "cells")
    assert (run.document["total_cells"], run.cells) == (0, [])


@pytest.mark.parametrize("mpp", [0.004, 500.0])
def test_absurd_pixel_sizes_are_refused(tmp_path: Path, dense: Pixels, mpp: float) -> None:
    path = write_levels(tmp_path / "odd.tiff", [dense[:300, :300].copy()], mpp=mpp)
    jobs = (partial(tissue_of, path), partial(run_cells, path, tmp_path / "no.pt"))
    for job in jobs:
        with pytest.raises(BadInput, match=r'give the pixel size .* as "mpp"'):
            job(tmp_path / "out")
    assert left(tmp_path / "out") == []


def test_a_missing_pixel_size_is_needed_for_cells_alone(tmp_path: Path, dense: Pixels) -> None:
    path = write_levels(tmp_path / "none.tiff", [dense[:300, :300].copy()], mpp=None)
    assert "tissue_mm2" not in tissue_of(path, tmp_path / "tissue")
    with pytest.raises(BadInput, match=r'give the pixel size .* as "mpp"'):
        run_cells(path, tmp_path / "no.pt", tmp_path / "cells")
    assert left(tmp_path / "cells") == []


def test_a_probe_may_neither_compute_without_end_nor_write(tmp_path: Path) -> None:
    """The child's limits, set as it sets them."""
    script = (
        "import resource, pathlib, jobs.imaging.probing as p; p._limit();"
        "print([resource.getrlimit(getattr(resource, 'RLIMIT_' + n))[0] "
        "for n in ('AS', 'CPU', 'CORE', 'FSIZE')]);"
        f"pathlib.Path({str(tmp_path / 'new')!r}).write_text('x')"
    )
    child = subprocess.run(
        [sys.executable, "-c", script], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    assert child.stdout.strip() == str([probing.MEMORY, probing.CPU_S, 0, 0])
    assert "File too large" in child.stderr


def test_a_reader_that_dies_is_told(cmu: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probing.sys, "executable", "/bin/false")
    with pytest.raises(BadInput, match=r"made the slide reader fail .* copy it again"):
        probe_slide(cmu)


def test_a_reader_that_stalls_is_told(cmu: Path) -> None:
    with pytest.raises(BadInput, match=r"within 0\.01 s.* copy it to a local disk"):
        probe_slide(cmu, 0.01)


MEASURED = """
import sys
from pathlib import Path
from jobs.imaging.contract import TissueRequest
from jobs.imaging.tissue_job import find_tissue
seen = []
find_tissue(
    TissueRequest(Path(sys.argv[1]), Path(sys.argv[2]), "J", "K"),
    report=lambda phase, done, total: seen.append(phase),
)
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
print(int(status["VmHWM"].split()[0]) // 1024, len(seen))
"""


@pytest.mark.parametrize(
    "side", [4_000, pytest.param(100_000, marks=[pytest.mark.slow, pytest.mark.timeout(3600)])]
)
def test_a_slide_of_one_huge_level_is_read_in_flat_memory(tmp_path: Path, side: int) -> None:
    path = broken.one_level(tmp_path / "huge.tif", side)
    assert probe_slide(path).levels == [(side, side)]
    child = subprocess.run(
        [sys.executable, "-c", MEASURED, str(path), str(tmp_path / "out")],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    )
    peak_mb, reports = map(int, child.stdout.split())
    assert peak_mb < (400 if side < 10_000 else 1500)
    assert reports > 3
