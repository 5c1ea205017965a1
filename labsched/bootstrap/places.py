"""The folders and files set-up writes; it runs before settings exist, so it reads two variables."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from labsched.bootstrap.console import Trouble

REPO = Path(__file__).resolve().parent.parent.parent


@dataclass(frozen=True)
class Places:
    """Where things go; the same variables and defaults as labsched/settings.py."""

    repo: Path
    data: Path
    cache: Path

    @classmethod
    def from_environment(cls) -> Places:
        var = REPO / "var"
        data = Path(os.environ.get("LABSCHED_DATA") or var).resolve()
        cache = Path(os.environ.get("LABSCHED_CACHE") or var / "cache").resolve()
        return cls(REPO, data, cache)

    @property
    def venv(self) -> Path:
        return self.repo / ".venv"

    @property
    def python(self) -> Path:
        return self.venv / "bin" / "python"

    @property
    def vendor(self) -> Path:
        return self.repo / "static" / "vendor"

    @property
    def log(self) -> Path:
        return self.repo / "var" / "log" / "setup.log"

    @contextmanager
    def scratch(self) -> Iterator[Path]:
        """A folder for large downloads, gone afterwards; beside the venv, as /tmp is often small."""
        root = make_folder(self.repo / "var" / "tmp")
        with TemporaryDirectory(dir=root) as folder:
            yield Path(folder)


def make_folder(folder: Path) -> Path:
    """The folder, made with its parents, or a sentence that says why not."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Trouble(
            f"The folder {folder} could not be made: {error.strerror}.",
            "Make it writable for you, or name other folders with LABSCHED_DATA and LABSCHED_CACHE.",
        ) from None
    return folder


def require_space(folder: Path, *, gigabytes: float, purpose: str) -> None:
    """Raise Trouble when the disk of `folder` has less than `gigabytes` free."""
    free = shutil.disk_usage(folder).free / 1e9
    if free < gigabytes:
        raise Trouble(
            f"The disk of {folder} has {free:.1f} GB free; {purpose} needs about {gigabytes:g} GB.",
            "Free some space or move this folder to a larger disk, then run the same command again.",
        )


def sha256(path: Path) -> str:
    """The hex digest of a file's bytes; empty where there is no such file."""
    if not path.is_file():
        return ""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
