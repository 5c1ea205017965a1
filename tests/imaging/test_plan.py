"""A plan is followed by whatever device comes later, or refused there in a sentence."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from jobs.imaging.network import Network
from jobs.imaging.normalisation import Normalisation
from jobs.imaging.plan import OtherDevice, Plan, Settled
from jobs.imaging.plane import Plane, plane_geometry
from jobs.imaging.slide import open_slide
from jobs.imaging.tiling import run_squares

SETTLED = Settled(
    width=448,
    height=448,
    tile=None,
    squares=run_squares(448, 448),
    scale=Normalisation((3.0, 4.0, 5.0), (250.0, 251.0, 252.0)),
    precision="bf16",
    smallest_um2=2.5,
    roi={"type": "Polygon", "coordinates": [[[0, 0], [448, 0], [448, 448], [0, 0]]]},
    tissue_mm2=0.05,
)


@pytest.fixture
def plane(small_slide: Path) -> Iterator[Plane]:
    with open_slide(small_slide) as slide:
        yield Plane(slide, plane_geometry(slide, 0.5, (0.5, 0.5)))


@pytest.mark.parametrize("tile", [None, 640])
def test_a_plan_is_read_as_it_was_kept(tile: int | None) -> None:
    settled = replace(SETTLED, tile=tile)
    read = Settled.decoded(settled.encoded())
    assert np.array_equal(read.squares, settled.squares)
    assert replace(read, squares=settled.squares) == settled


def test_the_tile_is_this_devices_own_unless_the_request_names_one(
    net: Network, plane: Plane
) -> None:
    own = Plan.of(SETTLED, plane, net, (0.5, 0.5))
    assert own.grid.tile == net.default_tile("bf16")
    assert own.grid.whole == (net.device.type != "cpu")
    named = Plan.of(replace(SETTLED, tile=640), plane, net, (0.5, 0.5))
    assert named.grid.tile == 640
    assert named.fingerprint() != own.fingerprint()


def test_a_precision_of_another_device_ends_the_attempt_with_a_sentence(
    net: Network, plane: Plane
) -> None:
    if net.device.type == "cuda":
        pytest.skip("a GPU has all three")
    with pytest.raises(OtherDevice, match="begun in fp16 on a GPU and goes on only there"):
        Plan.of(replace(SETTLED, precision="fp16"), plane, net, (0.5, 0.5))


def test_the_numerics_are_those_of_the_networks_device(net: Network, plane: Plane) -> None:
    plan = Plan.of(SETTLED, plane, net, (0.5, 0.5))
    numerics = plan.numerics()
    assert numerics["batch"] == plan.batch == 1  # the slide is one window
    assert (numerics["device"] == "cpu") == (net.device.type == "cpu")
    assert numerics["graph"].endswith("cropped" if net.device.type == "cpu" else "eager")
    assert plan.fingerprint() == plan.fingerprint()
