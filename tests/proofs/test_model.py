"""The model of docs/model under spin: every interleaving is safe and drains, and each broken rule is found."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.processes import REPOSITORY

MODEL = REPOSITORY / "docs" / "model" / "scheduling.pml"
LONGEST_S = 240
STATES = re.compile(r"(\d+) states, stored")

pytestmark = [
    pytest.mark.proof,
    pytest.mark.timeout(2 * LONGEST_S),
    pytest.mark.skipif(
        shutil.which("spin") is None or shutil.which("gcc") is None,
        reason="The model needs spin and gcc: apt-get install spin gcc libc6-dev",
    ),
]


@dataclass(frozen=True)
class Verdict:
    """What the search found."""

    fault: str
    states: int


def search(
    folder: Path, switches: str, *, liveness: bool = False, optimise: str = "-O1"
) -> Verdict:
    """Search every state of the model with these switches. `fault` is empty where it found none."""
    defines = [f"-D{switch}" for switch in switches.split()]
    mode = ["-DNFAIR=4"] if liveness else ["-DSAFETY"]
    _run(folder, "spin", "-a", *defines, *(["-DLIVENESS"] if liveness else []), str(MODEL))
    # -w: the warnings are about code that spin wrote
    _run(folder, "gcc", "-w", optimise, "-DVECTORSZ=256", *mode, "-o", "pan", "pan.c")
    told = _run(folder, "./pan", "-m200000", "-w22", *(["-a", "-f"] if liveness else []))
    assert "search depth too small" not in told, told
    assert "out of memory" not in told, told
    found = re.search(r"^pan:1: (.*)$", told, re.MULTILINE)
    fault = found[1] if found else ""
    assert bool(fault) == ("errors: 0" not in told), told
    counted = STATES.search(told)
    assert counted, told
    return Verdict(fault, int(counted[1]))


def _run(folder: Path, *command: str) -> str:
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, timeout=LONGEST_S, check=False
    )
    assert done.returncode == 0, f"{command[0]}: {done.stdout[-2000:]}{done.stderr[-2000:]}"
    return done.stdout


SAFE = [
    "SLOTS=1 STOPS=1 CANCELS=1",
    "SLOTS=1 CRASHES=1",
    "SLOTS=2 STOPS=1",
    "SLOTS=1 REPEATS=1 LOSSES=1",
    "SLOTS=1 FAILURES=1 CANCELS=1",
    "SLOTS=1 NO_PASS_LOCK",
]
SAFE_TOO = [
    "SLOTS=2 CRASHES=1",
    "SLOTS=2 STOPS=1 REPEATS=1",
    "SLOTS=2 CRASHES=1 LOSSES=1",
    "SLOTS=2 STOPS=1 FAILURES=1",
    "SLOTS=2 STOPS=1 CANCELS=1 NO_PASS_LOCK",
]
DRAINING = ["CRASHES=1", "LOSSES=1", "CANCELS=1"]
DRAINING_TOO = ["STOPS=1", "LOSSES=1 REPEATS=1", "FAILURES=1 CANCELS=1", "SLOTS=2 CRASHES=1"]


@pytest.mark.parametrize("switches", SAFE)
def test_no_interleaving_breaks_a_rule(tmp_path: Path, switches: str) -> None:
    verdict = search(tmp_path, switches)
    assert verdict.fault == ""
    assert verdict.states > 10_000


@pytest.mark.slow
@pytest.mark.parametrize("switches", SAFE_TOO)
def test_no_interleaving_of_several_troubles_breaks_a_rule(tmp_path: Path, switches: str) -> None:
    assert search(tmp_path, switches).fault == ""


@pytest.mark.parametrize("switches", DRAINING)
def test_under_weak_fairness_every_job_ends(tmp_path: Path, switches: str) -> None:
    verdict = search(tmp_path, switches, liveness=True)
    assert verdict.fault == ""
    assert verdict.states > 10_000


@pytest.mark.slow
@pytest.mark.parametrize("switches", DRAINING_TOO)
def test_under_weak_fairness_every_job_ends_with_more_room(tmp_path: Path, switches: str) -> None:
    assert search(tmp_path, switches, liveness=True).fault == ""


@pytest.mark.parametrize(
    ("switches", "seen_by"),
    [
        ("SLOTS=2 NO_FENCE STOPS=1", "holder"),
        ("SLOTS=2 NO_START_CHECK REPEATS=1", "begun"),
        ("SLOTS=1 NO_PASS_LOCK NO_CONSTRAINT", "leases<=1"),
        ("SLOTS=2 NO_HEAD_RULE NO_CONSTRAINT", "<=1"),
        ("SLOTS=2 NO_TENANT_LOCK", "first_word"),
        ("SLOTS=2 NO_UPSTREAM", "state[0]==5"),
        ("SLOTS=2 NO_REPUSH LOSSES=1", "invalid end state"),
        ("SLOTS=2 NO_EXPIRY CRASHES=1", "invalid end state"),
        ("SLOTS=2 NO_WAKE", "invalid end state"),
        ("SLOTS=2 DEAF_CANCEL CANCELS=1", "cancel_asked"),
    ],
)
def test_a_broken_rule_is_found(tmp_path: Path, switches: str, seen_by: str) -> None:
    assert seen_by in search(tmp_path, switches, optimise="-O0").fault


def test_a_job_that_nobody_wakes_is_found_by_the_search_for_endless_histories(
    tmp_path: Path,
) -> None:
    assert "acceptance cycle" in search(tmp_path, "NO_WAKE", liveness=True, optimise="-O0").fault
