"""What decides the cells of a slide, settled before the first block and kept with the blocks.

A plan is the same for every attempt and every worker of a job: who comes later takes the one that is
kept, so that its blocks fit those that are finished already.
"""

from __future__ import annotations

import functools
import hashlib
from base64 import b64decode, b64encode
from dataclasses import dataclass
from functools import cached_property
from importlib import metadata
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from jobs.imaging import measurement, roi
from jobs.imaging.cells import Schema
from jobs.imaging.contract import PIPELINE_VERSION
from jobs.imaging.cuda import Shape
from jobs.imaging.device import describe_device, precisions
from jobs.imaging.network import Network
from jobs.imaging.normalisation import Normalisation
from jobs.imaging.plane import Plane
from jobs.imaging.tiling import Grid

LIBRARIES = (
    "torch",
    "numpy",
    "numba",
    "shapely",
    "openslide-bin",
    "simplejpeg",
    "imagecodecs",
    "pillow",
    "tifffile",
)


@dataclass(frozen=True)
class Settled:
    """The part of a plan that is kept: what decides the cells, on whatever device they are computed.

    tile           side of a window in plane pixels, if the request names one; else each device has
                   its own
    squares        (rows, cols) of run squares
    roi            GeoJSON geometry in level-0 pixels; None is the whole slide
    tissue_mm2     what the mask covers, for the summary
    """

    width: int
    height: int
    tile: int | None
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
        """The plan that was settled, for this process' slide and network. Raises OtherDevice."""
        if settled.precision not in precisions(net.device):
            raise OtherDevice(settled.precision)
        return cls(
            plane,
            Grid(
                settled.width,
                settled.height,
                tile=settled.tile or net.default_tile(settled.precision),
                squares=settled.squares,
                whole=net.device.type != "cpu",
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
        """What the last bits of a result may depend on besides the plan, as it is now: a GPU whose
        memory was short goes on with smaller batches."""
        batch = self.batch
        return {
            **describe_device(self.network.device),
            "precision": self.precision,
            "graph": self.network.form(self._shape, self.precision, batch),
            "tile": self.grid.tile,
            "batch": batch,
            "halo": self.grid.halo,
            "context": self.grid.context,
            "pipeline": PIPELINE_VERSION,
            "libraries": dict(_libraries()),
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
        """Windows that the network is given at once, now: no more than there are."""
        most = self.network.batch_size(self._shape, self.precision)
        return most if most == 1 else max(1, min(most, self._windows))

    @property
    def _shape(self) -> Shape:
        """(rows, cols, channels) of a window that has a tile's full size."""
        padded, tile = self.grid.padded, self.grid.tile
        return min(tile, padded.height), min(tile, padded.width), len(self.plane.slide.channels)

    @cached_property
    def _windows(self) -> int:
        grid = self.grid
        down, across = (-(-side // grid.core) for side in (grid.plane.height, grid.plane.width))
        return sum(grid.window(row, col) is not None for row, col in np.ndindex(down, across))

    def fingerprint(self) -> str:
        """Names the numerics of this moment: blocks of one plan and one fingerprint are equal to the
        last bit."""
        content = orjson.dumps(self.numerics(), option=orjson.OPT_SORT_KEYS)
        return hashlib.sha256(content).hexdigest()[:16]


def name_of(result_key: str) -> str:
    """The name under which the plan and blocks of a result are kept."""
    return hashlib.sha256(f"plan of {result_key}".encode()).hexdigest()[:32]


class OtherDevice(RuntimeError):
    """A plan that this device cannot follow; one like that which made it can."""

    def __init__(self, precision: str) -> None:
        super().__init__(
            f"This job was begun in {precision} on a GPU and goes on only there: start a worker with "
            f'a GPU and retry it, or submit it again with "precision": "fp32".'
        )


@functools.cache
def _libraries() -> dict[str, str]:
    return {name: _version(name) for name in LIBRARIES}


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "none"
