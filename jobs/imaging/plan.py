"""What decides the cells of a slide, settled before the first block and kept with the blocks.

A plan is the same for every attempt and every worker of a job: who comes later takes the one that is
kept, so that its blocks fit those that are finished already.
"""

from __future__ import annotations

import hashlib
from base64 import b64decode, b64encode
from dataclasses import dataclass
from importlib import metadata
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from jobs.imaging import measurement, network, roi
from jobs.imaging.cells import Schema
from jobs.imaging.contract import PIPELINE_VERSION
from jobs.imaging.network import Network
from jobs.imaging.normalisation import Normalisation
from jobs.imaging.plane import Plane
from jobs.imaging.tiling import Grid

LIBRARIES = ("torch", "numpy", "numba", "shapely", "openslide-bin", "pillow", "tifffile")


@dataclass(frozen=True)
class Settled:
    """The part of a plan that is kept.

    tile, whole    side of a window in plane pixels, and whether each has that size
    squares        (rows, cols) of run squares
    roi            GeoJSON geometry in level-0 pixels; None is the whole slide
    tissue_mm2     what the mask covers, for the summary
    """

    width: int
    height: int
    tile: int
    whole: bool
    squares: NDArray[np.bool_]
    scale: Normalisation
    precision: str
    smallest_um2: float
    roi: dict[str, Any] | None
    tissue_mm2: float

    def encoded(self) -> bytes:
        """The content of a plan file."""
        return orjson.dumps(
            {
                "size": [self.width, self.height],
                "tile": self.tile,
                "whole": self.whole,
                "squares": b64encode(np.packbits(self.squares).tobytes()).decode(),
                "scale": [self.scale.low, self.scale.high],
                "precision": self.precision,
                "smallest_um2": self.smallest_um2,
                "roi": self.roi,
                "tissue_mm2": self.tissue_mm2,
                "shape": self.squares.shape,
            }
        )

    @classmethod
    def decoded(cls, content: bytes) -> Settled:
        """The plan of a file."""
        told = orjson.loads(content)
        rows, cols = told["shape"]
        bits = np.unpackbits(np.frombuffer(b64decode(told["squares"]), np.uint8), count=rows * cols)
        low, high = told["scale"]
        width, height = told["size"]
        return cls(
            width,
            height,
            told["tile"],
            told["whole"],
            bits.reshape(rows, cols).astype(np.bool_),
            Normalisation(tuple(low), tuple(high)),
            told["precision"],
            told["smallest_um2"],
            told["roi"],
            told["tissue_mm2"],
        )


@dataclass(frozen=True)
class Plan:
    """Everything that decides the cells of a slide, and what computes them.

    pixel_size   µm per plane pixel, by axis
    """

    plane: Plane
    grid: Grid
    scale: Normalisation
    network: Network
    precision: str
    pixel_size: tuple[float, float]
    smallest_um2: float
    roi: roi.Roi | None = None
    tissue_mm2: float = 0.0

    @classmethod
    def of(
        cls, settled: Settled, plane: Plane, net: Network, pixel_size: tuple[float, float]
    ) -> Plan:
        """The plan that was settled, for this process' slide and network."""
        return cls(
            plane,
            Grid(
                settled.width,
                settled.height,
                tile=settled.tile,
                squares=settled.squares,
                whole=settled.whole,
                halo=net.halo,
                context=net.head.context,
            ),
            settled.scale,
            net,
            settled.precision,
            pixel_size,
            settled.smallest_um2,
            roi.parse(settled.roi),
            settled.tissue_mm2,
        )

    def numerics(self) -> dict[str, Any]:
        """What the last bits of a result may depend on besides the plan."""
        return {
            **network.describe_device(),
            "precision": self.precision,
            "graph": self.network.graph,
            "batch": self.batch,
            "halo": self.grid.halo,
            "context": self.grid.context,
            "pipeline": PIPELINE_VERSION,
            "libraries": {name: _version(name) for name in LIBRARIES},
        }

    @property
    def stains(self) -> bool:
        """Whether the slide is H&E, whose stains are measured; else its channels are."""
        return self.plane.slide.kind == "brightfield"

    @property
    def schema(self) -> Schema:
        """What the columns of the cells mean."""
        outputs = self.network.outputs
        channels = None if self.stains else self.plane.slide.channels
        return Schema(measurement.object_type(outputs), measurement.names(outputs, channels))

    @property
    def batch(self) -> int:
        """Windows that the network is given at once."""
        channels = len(self.plane.slide.channels)
        return self.network.batch_size(self.grid.tile, self.precision, channels)

    def fingerprint(self) -> str:
        """Names the numerics: blocks of one plan and one fingerprint are equal to the last bit."""
        content = orjson.dumps(self.numerics(), option=orjson.OPT_SORT_KEYS)
        return hashlib.sha256(content).hexdigest()[:16]


def name_of(result_key: str) -> str:
    """The name under which the plan and blocks of a result are kept."""
    return hashlib.sha256(f"plan of {result_key}".encode()).hexdigest()[:32]


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "none"
