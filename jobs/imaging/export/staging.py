"""A folder in which files are written, and from which they appear only when all are complete."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from jobs.imaging.contract import ArtifactFile


class Staging:
    """Files by the name they will have; `publish` moves them all into the folder beside it."""

    def __init__(self, folder: Path, target: Path) -> None:
        self.folder = folder
        self._target = target
        self._files: list[tuple[str, str]] = []

    def file(self, name: str, kind: str) -> Path:
        """Where the file called `name` is to be written."""
        self._files.append((name, kind))
        return self.folder / name

    def staged(self) -> list[ArtifactFile]:
        """The files so far, where they lie now."""
        return [ArtifactFile(name, kind, self.folder / name) for name, kind in self._files]

    def publish(self) -> list[ArtifactFile]:
        """Move the files to the target folder; from here on they are complete and visible."""
        for name, _ in self._files:
            os.replace(self.folder / name, self._target / name)
        return [ArtifactFile(name, kind, self._target / name) for name, kind in self._files]


@contextmanager
def staging(target: Path) -> Iterator[Staging]:
    """A staging folder inside `target`; gone at the end, whatever happens."""
    target.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=".writing-", dir=target))
    try:
        yield Staging(folder, target)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
