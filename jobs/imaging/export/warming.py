"""Loading what the export needs before the first job does."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np

from jobs.imaging.cells import Cells, Schema
from jobs.imaging.export.all import Names, exports
from jobs.imaging.export.frame import Frame
from jobs.imaging.export.staging import staging


def warm() -> None:
    """Write one cell to every format, so that machine code is compiled and libraries are loaded."""
    ring = np.array([[8.0, 8.0], [16.0, 8.0], [16.0, 16.0], [8.0, 16.0]])
    cell = Cells(
        seeds=np.array([[12, 12]], np.int32),
        corners=ring,
        starts=np.array([0, 4]),
        area_l0=np.array([64.0]),
        centroid_l0=np.array([[12.0, 12.0]]),
        replaced=np.array([False]),
        values=np.ones((1, 1)),
        origin_l0=np.zeros(2),
    )
    size = (512, 512)
    with (
        tempfile.TemporaryDirectory() as folder,
        staging(Path(folder)) as stage,
        exports(
            stage,
            names=Names("lines", "document", "slide", 1, "direct"),
            schema=Schema("detection", ("Area µm^2",)),
            frame=Frame(size, (0.5, 0.5), size, (1.0, 1.0)),
            result_key="warm",
            threads=1,
        ) as files,
    ):
        files.add(cell, 1)
        files.close()
