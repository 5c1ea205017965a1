"""What the key of a result depends on: the bytes of every file of a slide, and what changes pixels."""

from __future__ import annotations

import os
import shutil
import struct
from pathlib import Path
from typing import Any

import pytest

from jobs import types
from jobs.imaging.contract import BadInput
from jobs.imaging.tissue import SMALLEST_UM2
from jobs.models import Slide
from jobs.running import resultkey
from jobs.slides.files import parts_of, series_of, stamp_of
from tests import factories


class Beats:
    """Counts the signs of life, of which every file that is read gives some."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self) -> None:
        self.count += 1


def silent() -> None:
    """Nobody listens."""


def names(main: Path) -> list[str]:
    return [part.relative_to(main.parent).as_posix() for part in parts_of(main, beat=silent)]


def canonical(kind: str, **params: Any) -> dict[str, Any]:
    return resultkey.canonical(types.get(kind), params)


@pytest.fixture
def mirax(tmp_path: Path) -> Path:
    """The files of a MIRAX slide by name, beside files that are not its own."""
    for name in ("a.mrxs", "a/Slidedat.ini", "a/Index.dat", "a/Data0000.dat", "b.mrxs", "b/x.dat"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    return tmp_path / "a.mrxs"


def test_a_mirax_slide_is_its_file_and_its_folder(mirax: Path) -> None:
    assert names(mirax) == ["a/Data0000.dat", "a/Index.dat", "a/Slidedat.ini", "a.mrxs"]


def test_a_hamamatsu_slide_is_its_key_file_and_what_that_names(tmp_path: Path) -> None:
    for name in ("one.jpg", "two.jpg", "map.jpg", "other.jpg", "secret"):
        (tmp_path / name).touch()
    key_file = tmp_path / "a.vms"
    key_file.write_text(
        "[Virtual Microscope Specimen]\nImageFile=one.jpg\nImageFile(1,0)=two.jpg\n"
        "MapFile=map.jpg\nOptimisationFile=../secret\nMacroImage=gone.jpg\n"
    )
    assert names(key_file) == ["a.vms", "map.jpg", "one.jpg", "two.jpg"]


def test_a_dicom_slide_is_its_series(assets: Path, tmp_path: Path) -> None:
    slides = assets / "slides"
    for file in (slides / "cmu_dicom").iterdir():
        shutil.copyfile(file, tmp_path / file.name)
    shutil.copyfile(slides / "camelyon_multiframe_jpeg.dcm", tmp_path / "other.dcm")
    (tmp_path / "notes.txt").write_text("not a slide")
    levels = sorted(file.name for file in tmp_path.glob("*.dcm") if file.name != "other.dcm")
    assert len(levels) > 1
    assert names(tmp_path / levels[0]) == levels
    assert names(tmp_path / "other.dcm") == ["other.dcm"]


def test_every_other_slide_is_one_file(sample_slide: Path) -> None:
    assert parts_of(sample_slide, beat=silent) == [sample_slide]


def element(group: int, number: int, kind: bytes, value: bytes) -> bytes:
    if kind == b"SQ":
        return struct.pack("<HH2s2xL", group, number, kind, 0xFFFFFFFF) + value
    return struct.pack("<HH2sH", group, number, kind, len(value)) + value


@pytest.mark.parametrize("explicit", [True, False])
def test_a_series_inside_a_sequence_is_not_the_slides_own(tmp_path: Path, explicit: bool) -> None:
    nested, own = b"1.2.99", b"1.2.3\0"
    syntax = b"1.2.840.10008.1.2.1\0" if explicit else b"1.2.840.10008.1.2\0"

    def plain(group: int, number: int, kind: bytes, value: bytes) -> bytes:
        if explicit:
            return element(group, number, kind, value)
        length = 0xFFFFFFFF if kind == b"SQ" else len(value)
        return struct.pack("<HHL", group, number, length) + value

    item = struct.pack("<HHL", 0xFFFE, 0xE000, 0xFFFFFFFF)
    item += plain(0x0020, 0x000E, b"UI", nested)
    item += struct.pack("<HHL", 0xFFFE, 0xE00D, 0) + struct.pack("<HHL", 0xFFFE, 0xE0DD, 0)
    content = b"\0" * 128 + b"DICM" + element(2, 0x0010, b"UI", syntax)
    content += plain(0x0008, 0x1115, b"SQ", item) + plain(0x0020, 0x000E, b"UI", own)
    (file := tmp_path / "a.dcm").write_bytes(content)
    assert series_of(file) == "1.2.3"
    for length in range(132, len(content)):
        file.write_bytes(content[:length])
        assert series_of(file) in (None, "1.2.3"[: max(0, length - len(content) + 6)] or None)


@pytest.mark.django_db
def test_a_slide_is_read_once_for_each_version_of_it(mirax: Path) -> None:
    owner = factories.tenant()
    slide = Slide.objects.create(tenant=owner, root="shared", path="a.mrxs")
    first = resultkey.content_of(slide, mirax, beat=silent)
    stored = Slide.objects.for_tenant(owner).get()
    assert stored.sha256 == first
    beats = Beats()
    assert resultkey.content_of(stored, mirax, beat=beats) == first
    assert beats.count == 0
    (mirax.parent / "a" / "Index.dat").write_text("a/Index.DAT")  # the same size
    other = resultkey.content_of(stored, mirax, beat=beats)
    assert other != first
    assert beats.count == 4


@pytest.mark.django_db
def test_one_file_is_known_by_its_own_sha256(tmp_path: Path) -> None:
    (file := tmp_path / "a.svs").write_bytes(b"abc")
    slide = Slide.objects.create(tenant=factories.tenant(), root="shared", path="a.svs")
    assert resultkey.content_of(slide, file, beat=silent).startswith("ba7816bf8f01cfea")


@pytest.mark.django_db
def test_a_slide_that_is_being_copied_is_refused_with_a_sentence(tmp_path: Path) -> None:
    (file := tmp_path / "a.svs").write_bytes(b"x" * 10)
    slide = Slide.objects.create(tenant=factories.tenant(), root="shared", path="a.svs")

    def growing() -> None:
        with file.open("ab") as stream:
            stream.write(b"x" if file.stat().st_size < 20 else b"")

    with pytest.raises(BadInput, match="changed while it was read"):
        resultkey.content_of(slide, file, beat=growing)
    assert Slide.objects.for_tenant(slide.tenant).get().sha256 == ""


def test_a_stamp_tells_files_of_equal_size_and_time_apart(tmp_path: Path) -> None:
    (file := tmp_path / "a").write_text("x")
    before = stamp_of([file])
    (other := tmp_path / "b").write_text("y")
    facts = file.stat()
    os.utime(other, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    os.replace(other, file)
    assert stamp_of([file]) != before


def test_what_changes_no_pixel_is_not_in_the_key() -> None:
    bare = canonical("tissue_mask")
    assert canonical("tissue_mask", timeout_s=9, stall_s=300, reuse=False) == bare
    assert canonical("tissue_mask", min_area_um2=4000) == bare
    assert canonical("tissue_mask", mpp=0.5) != bare
    assert canonical("tissue_mask", mpp=1) == canonical("tissue_mask", mpp=1.0)


def test_the_default_that_the_schema_tells_is_the_one_that_is_used() -> None:
    assert canonical("tissue_mask")["min_area_um2"] == SMALLEST_UM2


def test_the_model_the_rule_and_the_settled_precision_are_in_the_key_of_cells() -> None:
    bare = canonical("cell_segmentation")
    assert len(bare["model"]) == 64
    assert bare["precision"] in ("fp32", "bf16")
    assert "v1" in bare["normalisation"]
    assert canonical("cell_segmentation", precision="auto", tissue=True, min_area_um2=0) == bare
    assert canonical("cell_segmentation", precision=bare["precision"]) == bare
    assert canonical("cell_segmentation", tissue=False) != bare
