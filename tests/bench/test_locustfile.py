"""The load of tests/locustfile.py on a real stack: what it asks is answered."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path

import pytest

from tests.processes import REPOSITORY, plain_environment
from tests.stack import Stack

SECONDS = 8


@pytest.mark.stack
@pytest.mark.proof
def test_a_load_of_people_meets_no_failure(stack: Stack, tmp_path: Path) -> None:
    where = ["-f", "tests/locustfile.py", "--host", stack.url, "--csv", str(tmp_path / "load")]
    size = ["--headless", "--users", "10", "--spawn-rate", "10", "--run-time", f"{SECONDS}s"]
    done = subprocess.run(
        [sys.executable, "-m", "locust", *where, *size],
        cwd=REPOSITORY,
        env=plain_environment(),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    rows = {
        row["Name"]: row
        for row in csv.DictReader((tmp_path / "load_stats.csv").read_text().splitlines())
    }
    assert int(rows["/api/workflows/[id]"]["Request Count"]) > 0
    assert rows["Aggregated"]["Failure Count"] == "0"
