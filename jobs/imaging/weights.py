"""Where the InstanSeg weights are; never loads them, never downloads, never takes another model."""

from __future__ import annotations

import hashlib
import importlib.util
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

MODEL = "brightfield_nuclei"
FLUORESCENCE = "fluorescence_nuclei_and_cells"
PUBLISHED_VERSION = "0.1.1"
PUBLISHED_SHA256 = "0c724da169d507d8dd2e206ad3675a0b1566824eee6e20ad9a0ba916311d9dd0"
PUBLISHED = {
    PUBLISHED_SHA256: MODEL,
    "636833d26b5afcc03bde1357b3e669cf015e91dd1edda863aa51c19eee986562": FLUORESCENCE,
}
"""The published files of that version, by their hash."""

FILE = "instanseg.pt"


class MissingWeights(Exception):
    """No model file was found; the message says how to get one."""


@dataclass(frozen=True)
class Weights:
    """A TorchScript file and where it was found."""

    path: Path
    name: str
    version: str
    sha256: str
    source: str


def find_weights(
    cache: Path,
    *,
    name: str = MODEL,
    explicit: Path | None = None,
    instanseg: Path | None = None,
) -> Weights:
    """The weights that a job will use: `explicit`, else InstanSeg's own folder, else `cache`.

    name        of a published model
    instanseg   that folder, where INSTANSEG_BIOIMAGEIO_PATH moves it out of InstanSeg's package
    raises      MissingWeights
    """
    if explicit is not None:
        if not explicit.is_file():
            raise MissingWeights(
                f"There is no model file {explicit}. Give the path of an InstanSeg TorchScript file "
                "(instanseg.pt) as INSTANSEG_MODEL or --model, or neither for the published one."
            )
        return describe(explicit, "INSTANSEG_MODEL")
    for root, source in _roots(cache, instanseg):
        found = _newest(root / name)
        if found is not None:
            return describe(found, source)
    raise MissingWeights(
        f"No weights for {name}: looked in {cache / 'models'} and in InstanSeg's own folder. "
        "Run bin/demo or bin/serve once with network access, which fetches the published weights, "
        "or set INSTANSEG_MODEL to an InstanSeg TorchScript file."
    )


def _roots(cache: Path, instanseg: Path | None) -> list[tuple[Path, str]]:
    own = instanseg or _package_folder()
    roots = [(own, "InstanSeg's own folder")] if own is not None else []
    return [*roots, (cache / "models", "cache")]


def _package_folder() -> Path | None:
    """InstanSeg's default download folder, without importing the package (which loads torch)."""
    spec = importlib.util.find_spec("instanseg")
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(next(iter(spec.submodule_search_locations))) / "bioimageio_models"


def _newest(folder: Path) -> Path | None:
    files = [*folder.glob(f"*/{FILE}")]
    return max(files, key=lambda file: _version_key(file.parent.name)) if files else None


def _version_key(version: str) -> tuple[int, ...]:
    return tuple(int(part) if part.isdigit() else -1 for part in version.split("."))


def describe(path: Path, source: str) -> Weights:
    """Name, version and hash of a TorchScript file; the published ones are known by their hash."""
    path = path.resolve()
    status = path.stat()
    sha256 = _sha256(path, status.st_mtime_ns, status.st_size)
    if sha256 in PUBLISHED:
        return Weights(path, PUBLISHED[sha256], PUBLISHED_VERSION, sha256, source)
    folder = path.parent.parent.name
    if folder in PUBLISHED.values():
        return Weights(path, folder, path.parent.name, sha256, source)
    return Weights(path, path.stem, "custom", sha256, source)


@lru_cache(maxsize=8)
def _sha256(path: Path, _mtime_ns: int, _size: int) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
