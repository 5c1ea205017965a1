"""`manifest.json`: what was done to which slide, with what, and the hash of every file it made."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Callable, Iterable
from importlib import metadata
from pathlib import Path
from typing import Any

import orjson

from jobs.imaging.contract import PIPELINE_VERSION, ArtifactFile

PACKAGES = (
    "torch",
    "numba",
    "numpy",
    "scipy",
    "scikit-image",
    "shapely",
    "pillow",
    "pyarrow",
    "tifffile",
    "isal",
    "openslide-python",
    "openslide-bin",
    "simplejpeg",
    "imagecodecs",
    "instanseg-torch",
)


def hashed(artifacts: Iterable[ArtifactFile], tick: Callable[[], None]) -> list[dict[str, Any]]:
    """Name, kind, size and sha256 of every file; `tick` is called for every 16 MB."""
    return [
        {
            "name": artifact.name,
            "kind": artifact.kind,
            "size": artifact.path.stat().st_size,
            "sha256": sha256(artifact.path, tick),
        }
        for artifact in artifacts
    ]


def write_manifest(path: Path, facts: dict[str, Any], artifacts: list[dict[str, Any]]) -> None:
    """Write the manifest; `facts` come first, then versions and what was `hashed`."""
    document = {
        "pipeline_version": PIPELINE_VERSION,
        **facts,
        "software": _versions(),
        "artifacts": artifacts,
    }
    options = orjson.OPT_INDENT_2 | orjson.OPT_SERIALIZE_NUMPY
    path.write_bytes(orjson.dumps(document, option=options) + b"\n")


def sha256(path: Path, tick: Callable[[], None] = lambda: None) -> str:
    """The file's SHA-256; `tick` is called for every 16 MB."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(1 << 24):
            digest.update(chunk)
            tick()
    return digest.hexdigest()


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found
