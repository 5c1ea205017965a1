"""A short run of the real thing."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bench.chaos_verdict import VIOLATIONS
from tests.processes import REPOSITORY, plain_environment

ASKED_FOR = {
    *("jobs", "kills", "redis_losses", "recovery_s_p50", "recovery_s_max"),
    *("kills_holding_lease", "engine"),
}


def chaos(*arguments: str, timeout_s: float) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "bench/chaos.py", *arguments],
        cwd=REPOSITORY,
        env=plain_environment(),
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )


@pytest.mark.slow
@pytest.mark.stack
@pytest.mark.chaos
@pytest.mark.timeout(600)
def test_a_minute_of_chaos_violates_nothing(tmp_path: Path) -> None:
    kept = tmp_path / "evidence.json"
    options = ("--minutes", "1", "--seed", "7", "--json", "--evidence", str(kept))
    done = chaos(*options, timeout_s=500)
    assert done.stdout.count("\n") == 1, done.stderr
    row: dict[str, Any] = json.loads(done.stdout)
    assert {name: row[name] for name in VIOLATIONS} == dict.fromkeys(VIOLATIONS, 0), done.stderr
    assert done.returncode == 0
    assert row.keys() >= ASKED_FOR
    assert row["jobs"] > 50
    assert row["kills"] >= 5
    assert row["kills_holding_lease"] * 2 >= row["kills"]
    assert row["redis_losses"] >= 1
    assert row["own_deaths"] == []
    again = chaos("--judge", str(kept), "--json", timeout_s=60)
    assert json.loads(again.stdout) == row


def test_a_database_that_is_not_postgresql_is_refused_with_a_sentence() -> None:
    done = chaos("--database-url", "sqlite:///x", timeout_s=60)
    assert done.returncode == 1
    assert done.stderr.strip() == (
        "--database-url takes a postgresql:// URL; leave it out for SQLite."
    )
