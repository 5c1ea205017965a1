"""Scenario 12 (without uploads): no path leaves the slide roots, and no answer tells what is there."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import requests

from tests.client import Client, by_key, probe
from tests.conftest import Cast
from tests.stack import Stack
from tests.synthetic import write_slide


def submit(client: Client, image_path: str, job_type: str = "tissue_mask") -> requests.Response:
    job = {"job_id": "a", "job_type": job_type, "image_path": image_path}
    return client.post("/api/workflows", {"name": "paths", "jobs": [job]})


def told(answer: requests.Response, image_path: str) -> str:
    """The answer without the path that it may repeat."""
    assert "Traceback" not in answer.text
    return answer.text.replace(image_path, "PATH")


@pytest.fixture
def root(stack: Stack) -> Path:
    return stack.data / "slides"


@pytest.mark.parametrize(
    ("existing", "missing"),
    [
        ("/etc/passwd", "/etc/nope"),
        ("../../../../../../../../etc/passwd", "../../../../../../../../etc/nope"),
        ("x/../../../../../../../../../etc/passwd", "x/../../../../../../../../../etc/nope"),
        ("../db.sqlite3", "../nope.sqlite3"),
        ("/proc/self/environ", "/proc/self/nope"),
        ("/dev/zero", "/dev/nope"),
    ],
)
@pytest.mark.parametrize("job_type", ["tissue_mask", "cell_segmentation"])
def test_12_a_path_outside_is_refused_whether_or_not_it_exists(
    stack: Stack, cast: Cast, existing: str, missing: str, job_type: str
) -> None:
    (ann,) = cast("ann")
    there, nowhere = submit(ann, existing, job_type), submit(ann, missing, job_type)
    assert 400 <= there.status_code < 500
    assert there.status_code == nowhere.status_code
    assert told(there, existing) == told(nowhere, missing)
    assert ann.read("/api/workflows")["results"] == [], "nothing half-written"


def test_12_a_link_that_leaves_the_root_is_refused_like_a_broken_one(
    stack: Stack, cast: Cast, root: Path
) -> None:
    (ann,) = cast("ann")
    for name, target in (("leaves.svs", "/etc/passwd"), ("broken.svs", "/etc/nope")):
        (root / name).unlink(missing_ok=True)
        (root / name).symlink_to(target)
    leaves, broken = submit(ann, "leaves.svs"), submit(ann, "broken.svs")
    assert 400 <= leaves.status_code < 500
    assert leaves.status_code == broken.status_code
    assert told(leaves, "leaves.svs") == told(broken, "broken.svs")


def test_12_special_files_and_folders_are_refused(stack: Stack, cast: Cast, root: Path) -> None:
    (ann,) = cast("ann")
    pipe = root / "pipe.svs"
    pipe.unlink(missing_ok=True)
    os.mkfifo(pipe)
    (root / "folder").mkdir(exist_ok=True)
    for path in ("pipe.svs", "folder", ".", ""):
        answer = submit(ann, path)
        assert 400 <= answer.status_code < 500, path
        assert "Traceback" not in answer.text


@pytest.mark.parametrize(
    "path", ["a\x00b.svs", "a" * 5000, "nope.svs", "//etc/passwd", "~/x", "\ud7ff"]
)
def test_12_odd_and_missing_names_are_answered_with_a_sentence(
    stack: Stack, cast: Cast, path: str
) -> None:
    (ann,) = cast("ann")
    answer = submit(ann, path)
    assert 400 <= answer.status_code < 500
    assert len(answer.text) > 20
    assert "Traceback" not in answer.text


def test_12_a_slide_that_is_swapped_for_a_link_after_submission_is_not_opened(
    stack: Stack, cast: Cast, root: Path
) -> None:
    (ann,) = cast("ann")
    slide = write_slide(root / f"swapped-{ann.user}.tiff", size=512)
    job = {"job_id": "a", "job_type": "tissue_mask", "branch": "x", "image_path": slide.name}
    made = ann.submit([probe("hold", "x", seconds=2), job])
    slide.unlink()
    slide.symlink_to("/etc/passwd")
    swapped = by_key(ann.wait(made["id"], timeout_s=60))["a"]
    assert swapped["state"] == "FAILED"
    assert swapped["reason"] == "bad_input"
    assert swapped["error"]
    assert "root:" not in swapped["error"]
    assert "Traceback" not in swapped["error"]
