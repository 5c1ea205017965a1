"""A worker is killed in the middle of a real slide: another one goes on, to the same bytes."""

from __future__ import annotations

import re
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.client import Client, Row, until
from tests.feed import Feed
from tests.stack import Stack

pytestmark = [pytest.mark.slow, pytest.mark.stack, pytest.mark.timeout(900)]

COMPUTED = re.compile(
    r"\((?P<job>[0-9a-f-]{36})\) attempt (?P<attempt>\d+): block (?P<key>\d+, \d+)"
)
LEASE_S = 6
LONG_S = 300


@pytest.fixture(scope="module")
def stack(sample_slide: Path) -> Iterator[Stack]:
    with Stack(cpu_workers=1, gpu_workers=1, settings={"LEASE_S": LEASE_S}) as made:
        made.add_slide(sample_slide, "a.svs")
        yield made


def begin(client: Client) -> Row:
    cells = {"job_id": "cells", "job_type": "cell_segmentation", "image_path": "a.svs"}
    job: Row = client.submit([{**cells, "params": {"reuse": False}}])["jobs"][0]
    return job


def shown(client: Client, job: Row) -> Row:
    """What a viewer is told once some blocks are finished."""

    def some() -> Row | None:
        told: Row = client.read(f"/api/visualization/{job['id']}/visualization")
        return told if told["counts"].get("blocks", 0) >= 3 or not told["provisional"] else None

    client.wait_job(job["id"], ["RUNNING"])
    until(lambda: client.read(f"/api/visualization/{job['id']}/visualization")["provisional"],
          timeout_s=LONG_S, what="a plan")  # fmt: skip
    found = until(some, timeout_s=LONG_S, what="three blocks", every_s=0.05)
    assert found is not None
    assert found["provisional"], "the job was over before it could be disturbed"
    return found


def computed(stack: Stack, job: Row) -> dict[int, Counter[str]]:
    """How often each attempt computed each block, by the log of the workers."""
    found: dict[int, Counter[str]] = {}
    for log in (stack.folder / "logs").glob("gpu-*.log"):
        for line in COMPUTED.finditer(log.read_text()):
            if line["job"] == job["id"]:
                found.setdefault(int(line["attempt"]), Counter())[line["key"]] += 1
    return found


def hashes(job: Row) -> dict[str, str]:
    """Kind → sha256 of all that the job left, but for the manifest, which tells of the run."""
    return {each["kind"]: each["sha256"] for each in job["artifacts"] if each["kind"] != "manifest"}


def test_a_killed_worker_costs_no_finished_block_and_changes_no_byte(stack: Stack) -> None:
    ann = stack.client("ann")
    job = begin(ann)
    with Feed(stack.websocket_url, user_id="ann") as feed:
        seen = shown(ann, job)
        ticks = [message.data for message in feed.messages if message.type == "cells"]
    assert ticks
    assert all(set(tick) == {"job", "chunk", "count", "bbox"} for tick in ticks)
    box = ",".join(str(side) for side in seen["bounds"])
    window = ann.read(f"/api/jobs/{job['id']}/cells?bbox={box}")
    assert window["provisional"]
    assert window["cells"]

    (worker,) = stack.workers("gpu")
    worker.send(signal.SIGKILL)
    worker.wait(10)
    stack.start_worker("gpu", 0)
    over = ann.wait_job(job["id"], ["SUCCEEDED", "FAILED"], timeout_s=LONG_S)
    assert (over["state"], over["attempt"]) == ("SUCCEEDED", 2), over["error"]

    times = computed(stack, job)
    assert sum(times.values(), Counter()) == Counter(dict.fromkeys(_all(times), 1))
    assert len(times[1]) >= 3

    whole = begin(ann)
    calm = ann.wait_job(whole["id"], ["SUCCEEDED", "FAILED"], timeout_s=LONG_S)
    assert (calm["state"], calm["attempt"]) == ("SUCCEEDED", 1), calm["error"]
    assert _all(computed(stack, whole)) == _all(times)
    assert hashes(over) == hashes(calm)
    assert {"segmentation", "cells_jsonl", "geojson"} <= set(hashes(over))


def _all(times: dict[int, Counter[str]]) -> set[str]:
    return {key for each in times.values() for key in each}
