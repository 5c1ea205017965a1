"""One slide on two real workers: the idle one helps, gives way, and the result is the same."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tifffile

from tests.client import Client, Row, probe, until
from tests.conftest import Cast
from tests.imaging.slides import write_levels
from tests.processes import Process
from tests.stack import Stack

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
GIVE_WAY_S = 10.0  # a look, a batch on a loaded machine, a pass
DRAIN = "from jobs.models import Worker; Worker.objects.filter(pid={}).update(draining={})"


@pytest.fixture(scope="module")
def pair() -> Iterator[Stack]:
    """Two workers that segment, on the CPU where there is no GPU."""
    with Stack(cpu_workers=1, gpu_workers=2) as stack:
        yield stack


@pytest.fixture
def stack(pair: Stack) -> Iterator[Stack]:
    pair.start()
    yield pair
    pair.settle()


@pytest.fixture(scope="module")
def mosaic(pair: Stack, sample_slide: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The sample slide four times: some thirty blocks."""
    picture = np.tile(tifffile.imread(sample_slide), (2, 2, 1))
    path = tmp_path_factory.mktemp("slides") / "mosaic.tif"
    return pair.add_slide(write_levels(path, [picture, picture[::4, ::4]], mpp=0.499))


def segmented(client: Client, slide: str) -> Row:
    made = client.submit(
        [
            {
                "job_id": "cells",
                "job_type": "cell_segmentation",
                "image_path": slide,
                "params": {"reuse": False},
            }
        ]
    )
    job: Row = made["jobs"][0]
    return job


def busy(client: Client) -> int:
    return int(client.dashboard()["workers"]["busy"])


def wait_for_help(client: Client) -> None:
    until(lambda: busy(client) == 2, timeout_s=120, what="a second worker helps", every_s=0.1)


def computing(stack: Stack, job: Row) -> list[Process]:
    """The workers that finished blocks of the job."""
    words = f"({job['id']}) attempt 1: block"
    return [each for each in stack.workers("gpu") if words in each.tail(1000)]


def helper(stack: Stack, job: Row) -> Process:
    """The worker that helps with the job: it began at another place than the first row."""
    words = f"({job['id']}) attempt 1: block 0, 0 "
    (found,) = (each for each in computing(stack, job) if words not in each.tail(1000))
    return found


def hashes(client: Client, job: Row) -> dict[str, str]:
    """What does not tell of the job itself: its cells."""
    rows = client.read(f"/api/jobs/{job['id']}/artifacts")
    rows = rows["results"] if isinstance(rows, dict) else rows
    return {row["kind"]: row["sha256"] for row in rows if row["kind"] in ("geojson", "cells_jsonl")}


def over(client: Client, job: Row) -> Row:
    return client.wait_job(job["id"], ["SUCCEEDED", "FAILED"], timeout_s=600)


def test_an_idle_worker_helps_gives_way_and_the_cells_are_those_of_one_worker(
    stack: Stack, cast: Cast, mosaic: str
) -> None:
    ann, bob = cast("ann", "bob")
    job = segmented(ann, mosaic)
    wait_for_help(ann)
    until(lambda: len(computing(stack, job)) == 2, timeout_s=60, what="both finish blocks")
    helps = helper(stack, job)

    asked = time.monotonic()
    waits = bob.submit([probe("short", queue="gpu")])["jobs"][0]
    bob.wait_job(waits["id"], ["SUCCEEDED"], timeout_s=60)
    waited_s = time.monotonic() - asked
    seen = ann.job(job["id"])
    assert (seen["state"], seen["attempt"]) == ("RUNNING", 1), "the slide was over before"
    assert waited_s < GIVE_WAY_S
    assert "helper 1 stops" in helps.tail(1000)
    spread = over(ann, job)
    assert (spread["state"], spread["attempt"]) == ("SUCCEEDED", 1)

    stack.manage("shell", "-c", DRAIN.format(helps.pid, True))
    alone = segmented(ann, mosaic)
    assert over(ann, alone)["state"] == "SUCCEEDED"
    stack.manage("shell", "-c", DRAIN.format(helps.pid, False))
    assert len(computing(stack, alone)) == 1
    assert hashes(ann, job) == hashes(ann, alone)


def test_helpers_stop_soon_after_a_cancel(stack: Stack, cast: Cast, mosaic: str) -> None:
    (ann,) = cast("ann")
    job = segmented(ann, mosaic)
    wait_for_help(ann)
    asked = time.monotonic()
    ann.cancel(job["id"])
    until(lambda: busy(ann) == 0, timeout_s=20, what="both workers are free", every_s=0.05)
    assert time.monotonic() - asked < GIVE_WAY_S
    assert ann.job(job["id"])["state"] == "CANCELLED"
    made = [probe(f"n{n}", queue="gpu") for n in range(2)]
    assert ann.wait(ann.submit(made)["id"], timeout_s=30)["state"] == "SUCCEEDED"


def test_a_helper_that_is_killed_costs_the_job_nothing(
    stack: Stack, cast: Cast, mosaic: str
) -> None:
    (ann,) = cast("ann")
    job = segmented(ann, mosaic)
    until(lambda: len(computing(stack, job)) == 2, timeout_s=120, what="both finish blocks")
    helper(stack, job).kill()
    seen = over(ann, job)
    assert (seen["state"], seen["attempt"]) == ("SUCCEEDED", 1)
