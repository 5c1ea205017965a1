"""What every test folder shares: options, the rule against silent skips, slides, stacks."""

from __future__ import annotations

import os
import uuid
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

from tests.client import Client
from tests.processes import REPOSITORY
from tests.stack import Stack

NO_SKIPS = os.environ.get("LABSCHED_NO_SKIPS") == "1"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--image-path", default=None, help="the slide that tests/test_e2e.py runs on")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "stack: starts a private stack of real processes")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """With LABSCHED_NO_SKIPS=1 a skip is a failure, except where a GPU is what is missing."""
    report = yield
    excused = hasattr(report, "wasxfail") or item.get_closest_marker("gpu") is not None
    if NO_SKIPS and report.skipped and not excused:
        report.outcome = "failed"
        report.longrepr = f"skipped although LABSCHED_NO_SKIPS=1: {report.longrepr}"
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """The same for a whole file that skips itself."""
    report = yield
    if NO_SKIPS and report.skipped:
        report.outcome = "failed"
        report.longrepr = f"file skipped although LABSCHED_NO_SKIPS=1: {report.longrepr}"
    return report


@pytest.fixture(scope="session")
def assets() -> Path:
    """The folder of further slides and ground truth."""
    named = os.environ.get("LABSCHED_ASSETS", "")
    if not named or not Path(named).is_dir():
        pytest.skip("LABSCHED_ASSETS does not name a folder of slides and ground truth")
    return Path(named)


@pytest.fixture(scope="session")
def sample_slide() -> Path:
    """The sample slide that set-up fetches."""
    cache = Path(os.environ.get("LABSCHED_CACHE") or REPOSITORY / "var" / "cache")
    slide = cache / "slides" / "CMU-1-Small-Region.svs"
    if not slide.is_file():
        pytest.skip(f"{slide} is not there: bin/setup fetches the sample slide")
    return slide


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """An S3 server of its own; its address."""
    from moto.server import ThreadedMotoServer  # late: few tests need it, and it loads much

    served = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    served.start()
    host, port = served.get_host_and_port()
    yield f"http://{host}:{port}"
    served.stop()


@pytest.fixture(scope="session")
def probe_stack() -> Iterator[Stack]:
    """The one stack, with the defaults of the acceptance scenarios, that tests of probes share."""
    with Stack() as stack:
        yield stack


@pytest.fixture
def stack(probe_stack: Stack) -> Iterator[Stack]:
    """The shared stack; afterwards nothing runs and no user slot is held."""
    probe_stack.start()
    yield probe_stack
    probe_stack.settle()


@pytest.fixture
def cast(stack: Stack) -> Cast:
    """New users for one test, so that no test sees another's rows."""
    return Cast(stack)


class Cast:
    """The people of one test by short name: `ann, bob = cast("ann", "bob")`."""

    def __init__(self, stack: Stack) -> None:
        self.stack = stack
        self.suffix = uuid.uuid4().hex[:8]

    def __call__(self, *names: str) -> list[Client]:
        return [self.stack.client(f"{name}-{self.suffix}") for name in names]
