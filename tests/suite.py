"""What bin/test runs: every test, each kind in the pytest process that suits it. Arguments go to pytest.

A path among the arguments makes it one run of what they name, and -m one run on each database; without PostgreSQL's
programs the second one is left out with a line that says so.
"""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

from tests.private_postgres import find_programs, private_postgres

REPOSITORY = Path(__file__).resolve().parent.parent
SCRATCH = REPOSITORY / "var" / "test"
BROWSER = "tests/browser"
TIMED = "tests/acceptance"  # bounds in seconds: nothing else runs meanwhile
WITHOUT_A_CLOCK = (  # but these, which only look at answers
    "tests/acceptance/test_11_isolation.py",
    "tests/acceptance/test_12_paths.py",
    "tests/acceptance/test_20_start.py",
    "tests/acceptance/test_unprefixed_routes.py",
)
USUAL = "not slow and not proof and not gpu"
NO_TESTS_FOUND = 5
TWO_AT_A_TIME = ("-n", "2", "--dist", "loadfile")
THREE_AT_A_TIME = ("-n", "3", "--dist", "loadfile")  # stacks wait more than they compute
ONE_AT_A_TIME = ("-n", "0")
SHARED = {"OMP_NUM_THREADS": "1"}  # two processes on two cores: torch takes one each


@dataclass(frozen=True)
class Part:
    """One pytest process."""

    title: str
    marks: str
    options: Sequence[str]
    env: Mapping[str, str] = field(default_factory=dict)


@dataclass
class Tally:
    """How many tests ended how, over all parts."""

    passed: int = 0
    failed: int = 0
    skipped: int = 0

    def add(self, report: Path) -> None:
        """Count what a part's report holds; a part that died without one is a failure."""
        if not report.is_file():
            self.failed += 1
            return
        for suite in ET.parse(report).getroot().iter("testsuite"):
            number = {name: int(suite.get(name, 0)) for name in ("tests", "errors", "failures")}
            skipped = int(suite.get("skipped", 0))
            failed = number["errors"] + number["failures"]
            self.failed += failed
            self.skipped += skipped
            self.passed += max(0, number["tests"] - failed - skipped)


def main(arguments: Sequence[str]) -> int:
    """Run every part that the arguments leave. Returns the exit code."""
    began = time.monotonic()
    tally, bad = Tally(), 0
    SCRATCH.mkdir(parents=True, exist_ok=True)
    named = any(_is_path(argument) for argument in arguments)
    with nullcontext() if named else postgres_url() as url:
        for number, part in enumerate(parts(arguments, postgres=url)):
            bad = run(part, number, arguments, tally) or bad
    print(f"\n{time.monotonic() - began:.0f} s in all")
    print(f"{tally.passed} passed, {tally.failed} failed, {tally.skipped} skipped", flush=True)
    return bad


def parts(arguments: Sequence[str], *, postgres: str | None) -> Iterator[Part]:
    """The pytest processes of this run, in order."""
    paths = [argument for argument in arguments if _is_path(argument)]
    if "-m" in arguments and not paths:
        yield from _marked(arguments, postgres)
        return
    if paths:
        browser = any(path.startswith(BROWSER) for path in paths)
        marks = next((m for each, m in pairwise(arguments) if each == "-m"), USUAL)
        yield Part("the named tests", marks, () if browser else (f"--ignore={BROWSER}",))
        return
    everything = ("tests", f"--ignore={BROWSER}")
    timed = (TIMED, *(f"--ignore={path}" for path in WITHOUT_A_CLOCK))
    others = sorted(str(path.relative_to(REPOSITORY)) for path in (REPOSITORY / "tests").iterdir())
    untimed = [path for path in others if _holds_tests(path) and path not in (BROWSER, TIMED)]
    yield Part("units, on SQLite", f"{USUAL} and not stack", (*everything, *TWO_AT_A_TIME), SHARED)
    yield Part("whole stacks by the clock, on SQLite", USUAL, (*timed, *ONE_AT_A_TIME))
    yield Part(
        "whole stacks, on SQLite",
        f"{USUAL} and stack",
        (*untimed, *WITHOUT_A_CLOCK, *THREE_AT_A_TIME),
    )
    if postgres is not None:
        env = {"DATABASE_URL": postgres}
        rows = f"{USUAL} and (django_db or postgres)"
        shared = {**env, **SHARED}
        yield Part(
            "rows, on PostgreSQL", f"{rows} and not stack", (*everything, *TWO_AT_A_TIME), shared
        )
        yield Part(
            "whole stacks, on PostgreSQL", f"{rows} and stack", (*everything, *ONE_AT_A_TIME), env
        )
    # its own process: Playwright keeps an event loop that breaks every later asyncio test
    yield Part("in a browser", USUAL, (BROWSER, *ONE_AT_A_TIME))


def _marked(arguments: Sequence[str], postgres: str | None) -> Iterator[Part]:
    """What a marker names, on each database."""
    (marks,) = [after for each, after in pairwise(arguments) if each == "-m"]
    nowhere_else = ("tests", f"--ignore={BROWSER}", *ONE_AT_A_TIME)
    yield Part(f"{marks}, on SQLite", marks, nowhere_else)
    if postgres is not None:
        rows = f"({marks}) and (django_db or postgres)"
        yield Part(f"{marks}, on PostgreSQL", rows, nowhere_else, {"DATABASE_URL": postgres})


def run(part: Part, number: int, arguments: Sequence[str], tally: Tally) -> int:
    """Run one part with the machine's temporary data. Returns its exit code, 0 where it had nothing."""
    print(f"\n=== {part.title} ===", flush=True)
    report = SCRATCH / f"report-{number}.xml"
    report.unlink(missing_ok=True)
    command = [
        *(sys.executable, "-m", "pytest", "-m", part.marks, f"--junitxml={report}"),
        *(*part.options, *_without_marks(arguments)),
    ]
    env = {
        "DJANGO_SECRET_KEY": secrets.token_hex(32),
        **os.environ,
        "LABSCHED_DATA": str(SCRATCH / f"data-{number}"),
        **part.env,
    }
    code = subprocess.run(command, cwd=REPOSITORY, env=env, check=False).returncode
    if code == NO_TESTS_FOUND:
        return 0
    tally.add(report)
    return code


def _without_marks(arguments: Sequence[str]) -> list[str]:
    """The arguments but -m, which is part of every part's own."""
    kept = list(arguments)
    if "-m" in kept:
        at = kept.index("-m")
        del kept[at : at + 2]
    return kept


@contextmanager
def postgres_url() -> Iterator[str | None]:
    """A server for this run, or the one that LABSCHED_TEST_POSTGRES names, or None with a line."""
    if named := os.environ.get("LABSCHED_TEST_POSTGRES"):
        yield named
        return
    programs = find_programs()
    if programs is None:
        print("PostgreSQL is not installed: its half of the tests is left out", flush=True)
        yield None
        return
    with private_postgres(programs) as url:
        yield url


def _holds_tests(path: str) -> bool:
    name = Path(path).name
    return name.startswith("test_") or (not name.startswith(("_", ".")) and "." not in name)


def _is_path(argument: str) -> bool:
    return not argument.startswith("-") and (REPOSITORY / argument.split("::")[0]).exists()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
