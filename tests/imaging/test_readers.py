"""TIFF slides of every make: levels, pixel sizes, channels, and pixels equal to those written."""

from __future__ import annotations

import threading
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import openslide
import pytest
import tifffile
from numpy.typing import NDArray
from openslide.deepzoom import DeepZoomGenerator
from PIL import Image, ImageCms

from jobs.imaging.contract import BadInput
from jobs.imaging.plane import Plane, plane_geometry
from jobs.imaging.probing import probe_slide
from jobs.imaging.readers import tiffpages
from jobs.imaging.slide import ReadFailed, Slide, cell_channels, open_slide
from tests.imaging.slides import Pixels, write_levels

RANDOM = np.random.default_rng(11)
MIF = ["DAPI", "CD3", "CD8", "PanCK"]
TILED: dict[str, Any] = {"tile": (128, 128)}


def picture(dtype: str, *shape: int) -> NDArray[Any]:
    """Noise over a ramp, so that every place differs and codecs with loss stay near."""
    high = 1 if dtype == "float32" else np.iinfo(dtype).max
    ramp = np.linspace(0, 0.9, shape[0] * shape[1]).reshape(*shape[:2], *[1] * (len(shape) - 2))
    return ((ramp + RANDOM.random(shape) * 0.1) * high).astype(dtype)


def write_ome(path: Path, levels: list[NDArray[Any]], axes: str, **options: Any) -> Path:
    """An OME-TIFF whose smaller levels are SubIFDs, as Bio-Formats and QuPath write it."""
    metadata = options.pop("metadata", {})
    size = {"PhysicalSizeX": 500.0, "PhysicalSizeXUnit": "nm", "PhysicalSizeY": 0.5}
    options = TILED | options
    with tifffile.TiffWriter(path, bigtiff=True, ome=True) as writer:
        writer.write(
            levels[0],
            subifds=len(levels) - 1,
            metadata={"axes": axes, **size, **metadata},
            **options,
        )
        for level in levels[1:]:
            writer.write(level, subfiletype=1, **options)
    return path


@pytest.fixture(scope="module")
def mif(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, NDArray[Any]]:
    """Four channels of 16 bits, three levels; bright spots lie on the first."""
    pixels = picture("uint16", 600, 700, 4).transpose(2, 0, 1).copy()
    levels = [pixels, pixels[:, ::2, ::2].copy(), pixels[:, ::4, ::4].copy()]
    path = tmp_path_factory.mktemp("mif") / "mif.ome.tif"
    write_ome(
        path,
        levels,
        "CYX",
        compression="lzw",
        photometric="minisblack",
        metadata={"Channel": {"Name": MIF, "Color": [0xFF, 0xFF00FF, -16776961, 0x00FFFFFF]}},
    )
    return path, pixels


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


@pytest.mark.parametrize("mpp", [0.5, 0.25, 0.31, 0.6])
def test_the_plane_of_channels_is_the_mean_of_its_pixels(mif, mpp: float) -> None:
    path, pixels = mif
    with open_slide(path) as slide:
        plane = Plane(slide, plane_geometry(slide, 0.5, (mpp, mpp)))
        whole = plane.read(0, 0, plane.width, plane.height)
        assert (whole.dtype, whole.shape[2]) == (np.uint16, 4)
        for x, y in ((0, 0), (101, 57)):
            assert np.array_equal(plane.read(x, y, 60, 50), whole[y : y + 50, x : x + 60])
        assert abs(whole.mean() / pixels.mean() - 1) < 0.02


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_large_factors_neither_overflow_nor_drift(tmp_path: Path, dtype: str) -> None:
    high = 1.0 if dtype == "float32" else np.iinfo(dtype).max
    write_ome(tmp_path / "h.ome.tif", [np.full((1024, 1024), high, dtype)], "YX", tile=(512, 512))
    with open_slide(tmp_path / "h.ome.tif") as slide:
        plane = Plane(slide, plane_geometry(slide, 256.0, (0.5, 0.5)))
        assert plane.geometry.factor_x == 512
        assert (plane.read(0, 0, 2, 2) == high).all()


def test_a_plane_is_read_in_parts_where_a_level_is_large(
    cmu: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_slide(cmu) as slide:
        plane = Plane(slide, plane_geometry(slide, 8.0, (0.499, 0.499)))
        whole = plane.read(0, 0, plane.width, plane.height)
        monkeypatch.setattr("jobs.imaging.plane.MOST_PIXELS", 1 << 20)
        assert np.array_equal(plane.read(0, 0, plane.width, plane.height), whole)


def test_channels_are_shown_in_their_colours_the_same_everywhere(mif) -> None:
    path, _ = mif
    with open_slide(path) as slide:
        whole = slide.read_rgb(0, 0, 0, (700, 600))
        assert (whole.dtype, whole.shape) == (np.uint8, (600, 700, 3))
        assert whole[:20].mean() < 60 < 200 < whole[-20:].mean()  # the ramp goes from top to foot
        assert np.array_equal(slide.read_rgb(0, 64, 32, (50, 40)), whole[32:72, 64:114])
        plane = Plane(slide, plane_geometry(slide, 2.0, (0.5, 0.5)))
        assert plane.read_rgb(0, 0, 100, 100).shape == (100, 100, 3)


def test_models_get_the_channels_they_are_made_for(mif, cmu: Path, tmp_path: Path) -> None:
    three = write_ome(tmp_path / "3.ome.tif", [picture("uint8", 3, 300, 300)], "CYX")
    fits = {cmu: (3, None), mif[0]: (4, None), three: (None,)}
    for path, fitting in fits.items():
        with open_slide(path) as slide:
            for wanted in (None, 2, 3, 4):
                if wanted in fitting:
                    cell_channels(slide, wanted)
                    continue
                with pytest.raises(BadInput, match=rf"{path.name} is a .* choose a model for"):
                    cell_channels(slide, wanted)


def test_deep_zoom_serves_fluorescence(mif) -> None:
    path, _ = mif
    with open_slide(path) as slide:
        slide.handle.set_cache(openslide.OpenSlideCache(1 << 20))
        zoom = DeepZoomGenerator(slide.handle, tile_size=254, overlap=1, limit_bounds=True)
        assert zoom.level_dimensions[-1] == (700, 600)
        assert np.asarray(zoom.get_tile(zoom.level_count - 1, (1, 1))).shape == (256, 256, 3)
        assert slide.handle.get_best_level_for_downsample(3.0) == 1
        assert np.asarray(zoom.get_tile(0, (0, 0))).shape == (1, 1, 3)


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


def level_0(slide: Slide, mpp: float, plane_box: tuple[int, int, int, int]) -> Pixels:
    plane = Plane(slide, plane_geometry(slide, mpp, (0.499, 0.499)))
    return np.asarray(plane.read(*plane_box))


def shift(ours: Pixels, theirs: Pixels) -> tuple[float, float]:
    """By how many pixels (x, y) one picture lies beside the other: the peak of their correlation."""
    grey = [one.astype(float).mean(axis=2) for one in (ours, theirs)]
    first, second = (np.fft.fft2(one - one.mean()) for one in grey)
    cross = np.fft.fftshift(np.fft.ifft2(first * second.conj()).real)
    row, col = (int(at) for at in np.unravel_index(int(cross.argmax()), cross.shape))
    rows, cols = (side // 2 for side in cross.shape)
    return (
        col - cols + _top(cross[row, col - 1 : col + 2]),
        row - rows + _top(cross[row - 1 : row + 2, col]),
    )


def _top(three: NDArray[np.float64]) -> float:
    """Where the parabola through three values has its top, from the middle one."""
    return float((three[0] - three[2]) / (2 * (three[0] - 2 * three[1] + three[2])))


def dicom(assets: Path) -> Path:
    return max((assets / "slides" / "cmu_dicom").iterdir(), key=lambda file: file.stat().st_size)


@pytest.mark.parametrize("mpp", [0.499, 0.998, 1.497, 1.996])
@pytest.mark.parametrize("name", ["derived_cmu_region_pyramid.tiff", "cmu_dicom"])
def test_planes_of_other_formats_lie_where_the_svs_lies(
    assets: Path, cmu: Path, name: str, mpp: float
) -> None:
    """The SVS has one level; the TIFF's planes come from its own levels, whose sides are rounded."""
    other = dicom(assets) if name == "cmu_dicom" else assets / "slides" / name
    with open_slide(cmu) as svs, open_slide(other) as slide:
        far = (int(1800 * 0.499 / mpp), int(2500 * 0.499 / mpp), 100, 100)
        for box in ((50, 60, 150, 150), far):
            ours, theirs = level_0(slide, mpp, box), level_0(svs, mpp, box)
            scale = mpp / 0.499
            assert max(abs(by) * scale for by in shift(ours, theirs)) < 1
            if name == "cmu_dicom":
                assert np.array_equal(ours, theirs)


def test_levels_whose_colours_are_wrong_are_not_used(assets: Path, cmu: Path) -> None:
    """The smaller levels of this DICOM slide say RGB and hold YCbCr, and lack the ends of tiles."""
    with open_slide(dicom(assets)) as slide, open_slide(cmu) as svs:
        assert len(slide.levels) == 1
        ours, theirs = slide.handle, svs.handle
        zooms = [
            DeepZoomGenerator(one, tile_size=254, overlap=1, limit_bounds=True)
            for one in (ours, theirs)
        ]
        tiles = [np.asarray(zoom.get_tile(10, (0, 1))).astype(int) for zoom in zooms]
    assert np.abs(tiles[0] - tiles[1]).mean() < 2


def test_bounds_move_no_pixel(tmp_path: Path, dense: Pixels) -> None:
    """Tiles that were never written give a generic TIFF bounds; coordinates stay level 0's."""
    tiles: list[bytes] = []
    for row in range(6):
        for col in range(6):
            y, x = (row - 2) * 256, (col - 1) * 256
            inside = 0 <= y < 1024 and 0 <= x < 1024
            tile = dense[y : y + 256, x : x + 256].tobytes()
            tiles.append(zlib.compress(tile) if inside else b"")
    path = tmp_path / "holes.tiff"
    tifffile.imwrite(
        path,
        iter(tiles),
        shape=(1536, 1536, 3),
        dtype=np.uint8,
        tile=(256, 256),
        photometric="rgb",
        compression="adobe_deflate",
        metadata=None,
    )
    with open_slide(path) as slide:
        assert slide.bounds == (256, 512, 1024, 1024)
        assert np.array_equal(slide.read(0, 256, 512, (1024, 1024)), dense)
        plane = Plane(slide, plane_geometry(slide, 0.998, (0.499, 0.499)))
        read = plane.read(0, 0, plane.width, plane.height)
        assert (read[:256] == 255).all()
        mean = dense.reshape(512, 2, 512, 2, 3).astype(float).mean(axis=(1, 3))
        assert np.abs(read[256:, 128:640] - mean).max() <= 0.5


def damaged(slide: Path, path: Path, tiles: list[int]) -> Path:
    """A copy of `slide`, a TIFF, in which the bytes of some tiles are destroyed."""
    content = bytearray(slide.read_bytes())
    with tifffile.TiffFile(slide) as tiff:
        page = tiff.pages[0]
        for index in tiles:
            at, count = page.dataoffsets[index], page.databytecounts[index]
            content[at : at + count] = bytes(count)
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("kind", ["svs", "ome"])
def test_a_destroyed_tile_hurts_only_its_own_place(cmu: Path, tmp_path: Path, kind: str) -> None:
    source = cmu
    if kind == "ome":
        with open_slide(cmu) as slide:
            pixels = slide.read(0, 0, 0, (1200, 1200))
        source = write_ome(
            tmp_path / "whole.ome.tif", [pixels], "YXS", photometric="rgb", compression="jpeg"
        )
    path = damaged(source, tmp_path / f"damaged.{kind}.tif", [0])
    with open_slide(path) as slide, open_slide(source) as whole:
        with pytest.raises(ReadFailed, match=r"could not be read near x=0, y=0 .* copy it again"):
            slide.read(0, 0, 0, (64, 64))
        plane = Plane(slide, plane_geometry(slide, 0.499, (0.499, 0.499)))
        with pytest.raises(ReadFailed):
            plane.read(0, 0, 300, 300)
        assert np.array_equal(
            slide.read(0, 500, 600, (300, 300)), whole.read(0, 500, 600, (300, 300))
        )


def test_damaged_channels_are_still_shown(tmp_path: Path) -> None:
    pixels = picture("uint16", 2, 700, 700)
    whole = write_ome(tmp_path / "two.ome.tif", [pixels], "CYX", compression="lzw")
    with open_slide(damaged(whole, tmp_path / "damaged.ome.tif", [0])) as slide:
        assert slide.read_rgb(0, 300, 300, (50, 50)).any()
        with pytest.raises(ReadFailed):
            slide.read_rgb(0, 0, 0, (50, 50))


def test_threads_do_not_suffer_from_a_place_that_breaks_the_handle(
    cmu: Path, tmp_path: Path
) -> None:
    path = damaged(cmu, tmp_path / "damaged.svs", [0])
    stop = threading.Event()
    with open_slide(path) as slide, open_slide(cmu) as whole:
        expected = whole.read(0, 900, 900, (300, 300))

        def break_it() -> int:
            broken = 0
            while not stop.is_set():
                with pytest.raises(ReadFailed):
                    slide.read(0, 0, 0, (64, 64))
                broken += 1
            return broken

        with ThreadPoolExecutor(3) as pool:
            breaking = pool.submit(break_it)
            try:
                for read in pool.map(lambda _: slide.read(0, 900, 900, (300, 300)), range(12)):
                    assert np.array_equal(read, expected)
            finally:
                stop.set()
            assert breaking.result() > 0


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


def test_a_levels_place_is_exact_where_the_sides_do_not_divide(tmp_path: Path) -> None:
    pixels = picture("uint8", 1001, 1003, 3)
    small = np.asarray(Image.fromarray(pixels).resize((501, 500)))
    path = write_levels(tmp_path / "odd.tiff", [pixels, small], mpp=0.25)
    with open_slide(path) as slide:
        plane = Plane(slide, plane_geometry(slide, 0.5, (0.25, 0.25)))
        assert plane.geometry.level.index == 1
        assert (
            np.abs(plane.read(300, 300, 150, 150).astype(int) - small[300:450, 300:450]).max() <= 40
        )
