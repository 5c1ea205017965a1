"""A real Chromium on a stack of real processes; no request may leave the host.

Run as a process of its own (`pytest tests/browser`): sync Playwright keeps an event loop in the thread,
which breaks asyncio tests that come after it.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import boto3
import pytest
from playwright.sync_api import Browser, BrowserContext, Page, sync_playwright

from tests.client import Client
from tests.stack import Stack

HERE = Path(__file__).parent
OPERATOR = "operator"
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
]
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker(pytest.mark.browser)
            item.add_marker(pytest.mark.timeout(600))


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    program = next((found for name in NAMES if (found := shutil.which(name))), None)
    if program is None:
        pytest.skip("no Chromium on PATH: install the package `chromium` to run the browser tests")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def stack(bucket: Any, s3_server: str) -> Iterator[Stack]:
    """One worker for probes and masks, one for cells, the pages' static files, slides in a bucket."""
    settings = {
        "SLIDES_URL": f"s3://{bucket.name}",
        "AWS_ENDPOINT_URL_S3": s3_server,
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    with Stack(cpu_workers=1, gpu_workers=1, pages=True, settings=settings) as made:
        yield made


@pytest.fixture(scope="session")
def bucket(s3_server: str) -> Any:
    """The bucket of SLIDES_URL."""
    keys = {"aws_access_key_id": "key", "aws_secret_access_key": "secret"}
    server = boto3.resource("s3", endpoint_url=s3_server, region_name="us-east-1", **keys)
    return server.create_bucket(Bucket="archive")


@pytest.fixture(scope="session")
def signed_in(browser: Browser, stack: Stack) -> Iterator[BrowserContext]:
    """A session of the operator, opened by the one-time link."""
    context = browser.new_context(viewport={"width": 1600, "height": 1000})
    page = context.new_page()
    page.goto(stack.sign_in_link())
    assert "/sign-in" not in page.url
    page.close()
    yield context
    context.close()


@pytest.fixture
def page(signed_in: BrowserContext, stack: Stack) -> Iterator[Page]:
    """A tab whose requests all stay on this host and whose scripts raise nothing."""
    page = signed_in.new_page()
    watch = Watch(page)
    yield page
    page.close()
    watch.check(stack.port)


class Watch:
    """What a tab asked for, and what its scripts complained about."""

    def __init__(self, page: Page) -> None:
        self.addresses: list[str] = []
        self.complaints: list[str] = []
        page.on("request", lambda request: self.addresses.append(request.url))
        page.on("websocket", lambda socket: self.addresses.append(socket.url))
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("console", lambda message: self._console(message.type, message.text))

    def _console(self, kind: str, text: str) -> None:
        if kind == "error":
            self.complaints.append(text)

    def check(self, port: int) -> None:
        outside = [address for address in self.addresses if not _stays(address, port)]
        assert outside == [], "a request left the host"
        assert self.complaints == []


def _stays(address: str, port: int) -> bool:
    parts = urlsplit(address)
    return parts.scheme in ("data", "blob") or (parts.hostname, parts.port) == ("127.0.0.1", port)


@pytest.fixture
def operator(stack: Stack) -> Client:
    """The same tenant as the page's, over the API."""
    return stack.client(OPERATOR)


@pytest.fixture(scope="session")
def screenshots(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where pictures go: LABSCHED_SCREENSHOTS, or a folder of this run."""
    named = os.environ.get("LABSCHED_SCREENSHOTS")
    folder = Path(named) if named else tmp_path_factory.mktemp("screenshots")
    folder.mkdir(parents=True, exist_ok=True)
    return folder
