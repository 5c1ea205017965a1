"""The real weights and the real slide; both are fetched by set-up, and without them tests fail."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from jobs.imaging import network
from jobs.imaging.slide import open_slide
from jobs.imaging.weights import MissingWeights, Weights, find_weights
from tests.imaging.slides import Pixels, Run, run_cells, write_levels

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def cache() -> Path:
    return Path(os.environ.get("LABSCHED_CACHE") or REPOSITORY / "var" / "cache")


@pytest.fixture(scope="session")
def weights(cache: Path) -> Weights:
    try:
        return find_weights(cache)
    except MissingWeights as error:
        pytest.fail(str(error))


@pytest.fixture(scope="session")
def cmu(cache: Path) -> Path:
    slide = cache / "slides" / "CMU-1-Small-Region.svs"
    if not slide.is_file():
        pytest.fail(f"{slide} is not there: run bin/test or bin/demo once, which fetches it")
    return slide


@pytest.fixture(scope="session")
def net(weights: Weights) -> network.Network:
    network.warm(weights.path)
    return network.load(weights.path)


@pytest.fixture(scope="session")
def dense(cmu: Path) -> Pixels:
    """1024 × 1024 pixels of the CMU slide, dense tissue, whose corner is on no grid."""
    with open_slide(cmu) as slide:
        return np.ascontiguousarray(slide.read(0, 613, 1451, (1024, 1024)))


@pytest.fixture(scope="session")
def small_slide(dense: Pixels, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A slide of 448 × 448 pixels of tissue."""
    path = tmp_path_factory.mktemp("slide") / "small.tiff"
    return write_levels(path, [np.ascontiguousarray(dense[:448, :448])], mpp=0.5)


@pytest.fixture(scope="session")
def small_run(
    small_slide: Path, net: network.Network, tmp_path_factory: pytest.TempPathFactory
) -> Run:
    """The small slide, segmented once for all tests that only look at results."""
    return run_cells(small_slide, net.path, tmp_path_factory.mktemp("run") / "results")
