"""TIFF slides of every make: levels, pixel sizes, channels, and pixels equal to those written."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray
from PIL import ImageCms

from jobs.imaging.contract import BadInput
from jobs.imaging.probing import probe_slide
from jobs.imaging.readers import tiffpages
from jobs.imaging.slide import open_slide
from tests.imaging.tiffs import MIF, RANDOM, TILED, picture, write_mif, write_ome


@pytest.fixture(scope="module")
def mif(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, NDArray[Any]]:
    return write_mif(tmp_path_factory.mktemp("mif"))


def test_an_ome_tiff_gives_channels_levels_and_pixel_size(mif) -> None:
    path, pixels = mif
    with open_slide(path) as slide:
        assert (slide.kind, slide.dtype, list(slide.channels)) == ("fluorescence", np.uint16, MIF)
        assert [(one.width, one.height) for one in slide.levels] == [
            (700, 600), (350, 300), (175, 150),
        ]  # fmt: skip
        assert (slide.mpp, slide.mpp_source) == (pytest.approx((0.5, 0.5)), "OME")
        assert np.array_equal(slide.read(0, 0, 0, (700, 600)), pixels.transpose(1, 2, 0))
        crop = slide.read(1, 202, 100, (300, 40))
        assert np.array_equal(crop[:, :249], pixels[:, 100:180:2, 202::2].transpose(1, 2, 0))
        assert not crop[:, 249:].any()
    facts = probe_slide(path, 30)
    assert (facts.kind, facts.channels, facts.dtype) == ("fluorescence", tuple(MIF), "uint16")


@pytest.mark.parametrize(
    ("compression", "loss"),
    [(None, 0), ("lzw", 0), ("adobe_deflate", 0), ("zstd", 0), ("jpeg", 25), ("jpeg2000", 30)],
)
def test_rgb_in_subifds_is_read_at_all_levels(tmp_path: Path, compression, loss: int) -> None:
    pixels = picture("uint8", 300, 400, 3)
    levels = [pixels, pixels[::2, ::2].copy()]
    path = write_ome(
        tmp_path / "rgb.ome.tif", levels, "YXS", compression=compression, photometric="rgb"
    )
    with open_slide(path) as slide:
        assert (slide.kind, slide.vendor, len(slide.levels)) == ("brightfield", "ome-tiff", 2)
        read = slide.read(0, 0, 0, (400, 300))
        assert np.abs(read.astype(int) - pixels).mean() <= loss / 2
        assert slide.read(1, 0, 0, (200, 150)).shape == (150, 200, 3)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
@pytest.mark.parametrize("tiled", [True, False])
@pytest.mark.parametrize("byteorder", ["<", ">"])
@pytest.mark.parametrize("compression", [None, "adobe_deflate"])
def test_planes_apart_strips_and_both_byte_orders(
    tmp_path: Path, dtype: str, tiled: bool, byteorder: Any, compression
) -> None:
    pixels = picture(dtype, 300, 400, 3)
    path = tmp_path / "apart.tif"
    how: dict[str, Any] = TILED if tiled else {"rowsperstrip": 7}
    tifffile.imwrite(
        path,
        pixels.transpose(2, 0, 1),
        photometric="rgb",
        planarconfig="separate",
        byteorder=byteorder,
        compression=compression,
        metadata=None,
        **how,
    )
    with open_slide(path) as slide:
        assert slide.kind == ("brightfield" if dtype == "uint8" else "fluorescence")
        read = slide.read(0, 100, 50, (200, 222))
        assert read.dtype == np.dtype(dtype)
        assert np.array_equal(read, pixels[50:272, 100:300])


def test_a_strip_of_the_whole_image_is_read_by_rows(tmp_path: Path) -> None:
    pixels = picture("uint8", 500, 600, 3)
    tifffile.imwrite(tmp_path / "one.tif", pixels, photometric="rgb", rowsperstrip=500)
    with open_slide(tmp_path / "one.tif") as slide:
        assert np.array_equal(slide.read(0, 77, 99, (300, 200)), pixels[99:299, 77:377])


def test_transparent_pixels_are_white(tmp_path: Path) -> None:
    pixels = picture("uint8", 200, 300, 4)
    pixels[..., 3] = 255
    pixels[:100, :, 3] = 0
    write_ome(
        tmp_path / "a.ome.tif", [pixels], "YXS", photometric="rgb", extrasamples=["unassalpha"]
    )
    with open_slide(tmp_path / "a.ome.tif") as slide:
        read = slide.read(0, 0, 0, (300, 200))
    assert (read[:100] == 255).all()
    assert np.array_equal(read[100:], pixels[100:, :, :3])


def test_smaller_pages_beside_the_first_are_its_levels(tmp_path: Path) -> None:
    """16 bits in the layout of libvips: OpenSlide would see eight of them."""
    pixels = picture("uint16", 400, 600)
    with tifffile.TiffWriter(tmp_path / "vips.tif") as writer:
        for index, step in enumerate((1, 2, 4)):
            writer.write(
                pixels[::step, ::step].copy(), subfiletype=int(index > 0), metadata=None, **TILED
            )
    with open_slide(tmp_path / "vips.tif") as slide:
        assert [one.width for one in slide.levels] == [600, 300, 150]
        assert np.array_equal(slide.read(2, 0, 0, (150, 100))[..., 0], pixels[::4, ::4])


def test_a_plain_pyramid_is_left_to_openslide(assets: Path) -> None:
    with open_slide(assets / "slides" / "derived_cmu_region_pyramid.tiff") as slide:
        assert (slide.vendor, len(slide.levels)) == ("generic-tiff", 4)


def test_many_threads_read_what_one_reads(mif, monkeypatch: pytest.MonkeyPatch) -> None:
    path, pixels = mif
    monkeypatch.setattr(tiffpages, "CACHE_BYTES", 200_000)  # six tiles: they come and go
    whole = pixels.transpose(1, 2, 0)
    places = [(int(x), int(y)) for x, y in RANDOM.integers(0, 500, (60, 2))]
    with open_slide(path) as slide, ThreadPoolExecutor(4) as pool:
        reads = pool.map(lambda place: slide.read(0, *place, (90, 90)), places)
        for (x, y), read in zip(places, reads, strict=True):
            inside = whole[y : y + 90, x : x + 90]
            assert np.array_equal(read[: inside.shape[0]], inside)


def swapped_profile() -> bytes:
    """A profile like sRGB whose red and blue are exchanged: it can not be mistaken for sRGB."""
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for old, new in ((b"rXYZ", b"????"), (b"bXYZ", b"rXYZ"), (b"????", b"bXYZ")):
        srgb = srgb.replace(old, new)
    return srgb.replace("sRGB".encode("utf-16-be"), "test".encode("utf-16-be"))


@pytest.mark.parametrize("name", ["generic.tiff", "own.ome.tif"])
def test_a_colour_profile_is_turned_into_srgb(tmp_path: Path, name: str) -> None:
    pixels = np.full((300, 300, 3), (200, 120, 40), np.uint8)
    options: dict[str, Any] = {"photometric": "rgb", "iccprofile": swapped_profile()}
    if name.endswith("ome.tif"):
        path = write_ome(tmp_path / name, [pixels], "YXS", **options)
    else:
        path = tmp_path / name
        tifffile.imwrite(path, pixels, metadata=None, **TILED, **options)
    with open_slide(path) as slide, ThreadPoolExecutor(3) as pool:
        assert slide.vendor == ("ome-tiff" if name.endswith("ome.tif") else "generic-tiff")
        for read in pool.map(lambda _: slide.read(0, 0, 0, (200, 200)), range(6)):
            assert np.abs(read.astype(int) - (40, 120, 200)).max() <= 1


def test_several_images_in_one_file_are_refused_with_what_they_are(tmp_path: Path) -> None:
    stack = picture("uint8", 3, 300, 300)
    write_ome(tmp_path / "z.ome.tif", [stack], "ZYX")
    tifffile.imwrite(tmp_path / "pages.tif", stack, photometric="minisblack", **TILED)
    for name, what in (("z.ome.tif", "3 focus planes"), ("pages.tif", "3 pages")):
        with pytest.raises(BadInput, match=f"holds {what}: one image"):
            open_slide(tmp_path / name)


def test_files_named_inside_a_slide_are_not_opened(tmp_path: Path, mif) -> None:
    """OME-XML may name files beside the slide, or anywhere; they may belong to others."""
    path, _ = mif
    (tmp_path / "victim.ome.tif").write_bytes(path.read_bytes())
    text = tifffile.tiffcomment(path)
    named = (
        '<TiffData IFD="0" PlaneCount="4"><UUID FileName="victim.ome.tif">urn:uuid:x</UUID>'
        "</TiffData>"
    )
    changed = text.replace('<TiffData IFD="0" PlaneCount="4"/>', named)
    assert changed != text
    here = tmp_path / "names_another.ome.tif"
    dark = np.zeros((256, 256), np.uint16)
    tifffile.imwrite(here, dark, description=changed, metadata=None, **TILED)
    with open_slide(here) as slide:
        assert not slide.read(0, 0, 0, (slide.width, slide.height)).any()
