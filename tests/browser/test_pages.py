"""Submit → live progress → cells in the viewer, as a person sees it in a browser."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from playwright.sync_api import BrowserContext, Page, expect

from tests.browser.conftest import Watch
from tests.client import Client, Row, by_key, probe, summary, until
from tests.stack import Stack

LIVE_TIMEOUT_MS = 20_000
ENDS = ("SUCCEEDED", "FAILED", "CANCELLED")


@dataclass(frozen=True)
class Watched:
    """A workflow that was submitted by a button and watched to its end in one document."""

    workflow: Row
    states: list[str]
    progress: list[float]
    same_document: bool

    @property
    def cells(self) -> Row:
        return by_key(self.workflow)["cells"]


@pytest.fixture(scope="session")
def watched(stack: Stack, signed_in: BrowserContext, sample_slide: Path) -> Watched:
    """tissue → cells on the sample slide: the dashboard's button, then the page it leads to."""
    stack.add_slide(sample_slide)
    page = signed_in.new_page()
    page.goto(stack.url + "/")
    page.locator('form[action="/run-demo/"] button').first.click()
    page.wait_for_url("**/workflows/*/")
    page.evaluate("window.sameDocument = true")
    main = page.locator("main[data-workflow]")
    workflow_id = main.get_attribute("data-workflow") or ""
    seen: list[tuple[str, float]] = []
    deadline = time.monotonic() + 480
    while time.monotonic() < deadline and (not seen or seen[-1][0] not in ENDS):
        page.wait_for_timeout(250)
        bar = page.locator(f'progress[data-bar="{workflow_id}"]').first
        seen.append((main.get_attribute("data-state") or "", float(bar.evaluate("el => el.value"))))
    same = page.evaluate("window.sameDocument") is True
    page.close()
    over = stack.client("operator").workflow(workflow_id)
    return Watched(over, [state for state, _ in seen], [value for _, value in seen], same)


def test_a_click_submits_and_the_page_follows_to_the_end(watched: Watched) -> None:
    assert watched.workflow["state"] == "SUCCEEDED", summary(watched.workflow)
    assert watched.states[-1] == "SUCCEEDED"
    assert "RUNNING" in watched.states
    assert watched.same_document, "the page was loaded again"
    assert watched.progress == sorted(watched.progress)
    assert len(set(watched.progress)) >= 5, watched.progress


def test_the_sign_in_link_works_once(stack: Stack, browser: object) -> None:
    link = stack.sign_in_link()
    first = browser.new_context()  # type: ignore[attr-defined]
    page = first.new_page()
    page.goto(link)
    assert "/sign-in" not in page.url
    first.close()
    second = browser.new_context()  # type: ignore[attr-defined]
    page = second.new_page()
    page.goto(link)
    page.goto(stack.url + "/")
    assert "/sign-in" in page.url
    second.close()


def test_a_stranger_is_sent_to_the_sign_in_page(stack: Stack, browser: object) -> None:
    context = browser.new_context()  # type: ignore[attr-defined]
    page = context.new_page()
    watch = Watch(page)
    for path in ("/", "/workflows/new/", "/queue/"):
        page.goto(stack.url + path)
        assert "Traceback" not in page.content()
        assert "/sign-in" in page.url or page.locator("h1").count() > 0
    outside = [a for a in watch.addresses if f"127.0.0.1:{stack.port}" not in a]
    assert outside == []
    context.close()


@pytest.mark.parametrize(("path", "shown"), [("/docs", ".swagger-ui"), ("/redoc", "redoc")])
def test_the_api_pages_are_served_from_here(
    stack: Stack, page: Page, path: str, shown: str
) -> None:
    page.goto(stack.url + path)
    expect(page.locator(shown).first).to_be_visible(timeout=LIVE_TIMEOUT_MS)
    expect(page.get_by_text("/api/workflows").first).to_be_visible(timeout=LIVE_TIMEOUT_MS)


def test_the_dashboard_shows_the_workflow_that_was_submitted(
    stack: Stack, page: Page, operator: Client
) -> None:
    made = operator.submit([probe("shown", "x")], name="Shown on the dashboard")
    operator.wait(made["id"])
    page.goto(stack.url + "/")
    expect(page.get_by_text("Shown on the dashboard").first).to_be_visible()
    page.get_by_role("link", name="Shown on the dashboard").first.click()
    assert made["id"] in page.url


def test_the_workflow_page_lives_without_being_loaded_again(
    stack: Stack, page: Page, operator: Client
) -> None:
    jobs = [
        probe("first", "x", seconds=4, ticks=40),
        probe("second", "x", seconds=0.5, ticks=5),
        probe("third", "y", after=["second"]),
    ]
    made = operator.submit(jobs, name="Live")
    ids = {key: job["id"] for key, job in by_key(made).items()}
    sockets: list[str] = []
    page.on("websocket", lambda socket: sockets.append(socket.url))
    page.goto(f"{stack.url}/workflows/{made['id']}/")
    page.evaluate("window.sameDocument = true")

    first = page.locator(f'[data-job="{ids["first"]}"]').first
    expect(first).to_have_attribute("data-state", "RUNNING", timeout=LIVE_TIMEOUT_MS)
    seen = values_of_bar(page, ids["first"])
    expect(first).to_have_attribute("data-state", "SUCCEEDED", timeout=LIVE_TIMEOUT_MS)
    for key in ("second", "third"):
        job = page.locator(f'[data-job="{ids[key]}"]').first
        expect(job).to_have_attribute("data-state", "SUCCEEDED", timeout=LIVE_TIMEOUT_MS)
    whole = page.locator(f'[data-workflow="{made["id"]}"]').first
    expect(whole).to_have_attribute("data-state", "SUCCEEDED", timeout=LIVE_TIMEOUT_MS)

    assert len(set(seen)) >= 3, f"the bar did not move: {seen}"
    assert seen == sorted(seen)
    assert page.evaluate("window.sameDocument") is True
    assert any("/api/progress/ws" in address for address in sockets)


def values_of_bar(page: Page, job_id: str) -> list[float]:
    """What the job's bar said over two seconds."""
    bar = f'[data-job="{job_id}"] progress, [data-job="{job_id}"] [role=progressbar]'
    read = "el => Number(el.getAttribute('aria-valuenow') ?? el.value)"
    values = []
    for _ in range(10):
        values.append(float(page.locator(bar).first.evaluate(read)))
        time.sleep(0.2)
    return values


def test_a_running_job_is_cancelled_on_the_page(stack: Stack, page: Page, operator: Client) -> None:
    made = operator.submit([probe("long", "x", seconds=60, ticks=240)], name="To be cancelled")
    (job,) = made["jobs"]
    operator.wait_job(job["id"], ["RUNNING"])
    page.goto(f"{stack.url}/workflows/{made['id']}/")
    page.on("dialog", lambda dialog: dialog.accept())
    page.get_by_role("button", name="Cancel").first.click()
    until(
        lambda: operator.job(job["id"])["state"] == "CANCELLED", timeout_s=15, what="job cancelled"
    )
    shown = page.locator(f'[data-job="{job["id"]}"]').first
    expect(shown).to_have_attribute("data-state", "CANCELLED", timeout=LIVE_TIMEOUT_MS)


def test_the_viewer_shows_the_slide_and_its_cells(
    stack: Stack, page: Page, watched: Watched, screenshots: Path
) -> None:
    job = watched.cells
    tiles: list[int] = []
    page.on("response", lambda r: tiles.append(r.status) if ".jpeg" in r.url else None)
    page.goto(f"{stack.url}/jobs/{job['id']}/viewer/")
    page.wait_for_function(f"() => {CELLS} > 0", timeout=LIVE_TIMEOUT_MS)
    assert page.evaluate(CELLS) == job["summary"]["cells"]
    page.wait_for_load_state("networkidle")
    assert len(tiles) >= 4, "tiles of the slide"
    assert set(tiles) == {200}

    with_cells = stage_of(page, screenshots / "viewer-cells.png")
    assert len(np.unique(with_cells.reshape(-1, 3), axis=0)) > 1000, "the slide is one plain colour"
    page.get_by_role("checkbox", name="Cells", exact=False).first.uncheck()
    without = stage_of(page, screenshots / "viewer-no-cells.png")
    changed = (with_cells != without).any(axis=2).mean()
    assert changed > 0.01, "taking the cells away changes the picture"
    page.get_by_role("checkbox", name="Cells", exact=False).first.check()
    again = stage_of(page, screenshots / "viewer-cells-again.png")
    assert (with_cells != again).any(axis=2).mean() < 0.01


def test_cells_appear_while_the_job_runs_and_are_replaced_by_the_result(
    stack: Stack, page: Page, operator: Client, watched: Watched
) -> None:
    slide = operator.job(watched.cells["id"])["image_path"]
    again = {"job_id": "again", "job_type": "cell_segmentation", "params": {"reuse": False}}
    made = operator.submit([{**again, "image_path": slide}])
    (job,) = made["jobs"]
    operator.wait_job(job["id"], ["RUNNING"])
    page.goto(f"{stack.url}/jobs/{job['id']}/viewer/")
    finished = "Number(document.querySelector('#viewer')?.dataset.finished ?? 0)"
    page.wait_for_function(f"() => {finished} > 0", timeout=6 * LIVE_TIMEOUT_MS)
    assert page.evaluate(CELLS) == 0, "the job was over before its cells were looked at"
    page.wait_for_function(f"() => {CELLS} > 0", timeout=6 * LIVE_TIMEOUT_MS)
    over = operator.job(job["id"])
    assert page.evaluate(CELLS) == over["summary"]["cells"] > page.evaluate(finished)


def test_a_click_on_a_cell_shows_its_measurements(
    stack: Stack, page: Page, operator: Client, watched: Watched
) -> None:
    job = watched.cells
    page.goto(f"{stack.url}/jobs/{job['id']}/viewer/")
    page.wait_for_function(f"() => {CELLS} > 0", timeout=LIVE_TIMEOUT_MS)
    page.wait_for_load_state("networkidle")
    x, y = place_on_screen(page, biggest_cell(operator, job), slide_size=(2220, 2967))
    card = page.locator("#cell-card")
    expect(card).to_be_hidden()
    page.mouse.click(x, y)
    expect(card).to_be_visible()
    expect(card).to_contain_text("µm")


def biggest_cell(client: Client, job: Row) -> tuple[float, float]:
    """The centroid of the largest cell, in level-0 pixels."""
    cells = client.read(f"/api/jobs/{job['id']}/results")["cells"]
    x, y = max(cells, key=lambda cell: cell["area"])["centroid"]
    return x, y


def place_on_screen(
    page: Page, point: tuple[float, float], *, slide_size: tuple[int, int]
) -> tuple[float, float]:
    """Where a point of the slide lies while the whole slide is in view, in the middle."""
    box = page.locator("#viewer").bounding_box()
    assert box is not None
    scale = min(box["width"] / slide_size[0], box["height"] / slide_size[1])
    left = box["x"] + (box["width"] - slide_size[0] * scale) / 2
    top = box["y"] + (box["height"] - slide_size[1] * scale) / 2
    return left + point[0] * scale, top + point[1] * scale


CELLS = "Number(document.querySelector('#viewer')?.dataset.cells ?? 0)"


def stage_of(page: Page, picture: Path) -> NDArray[np.uint8]:
    """The pixels of the viewer once it stands still, also kept as a picture."""
    page.wait_for_timeout(800)
    page.locator("#viewer").screenshot(path=str(picture))
    with Image.open(picture) as image:
        return np.asarray(image.convert("RGB"))


@pytest.mark.parametrize("width", [390, 1600])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_page_fits_its_window(
    stack: Stack,
    signed_in: BrowserContext,
    watched: Watched,
    screenshots: Path,
    width: int,
    scheme: str,
) -> None:
    page = signed_in.new_page()
    watch = Watch(page)
    page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
    page.set_viewport_size({"width": width, "height": 900})
    for name, path in pages_of(watched.workflow).items():
        answer = page.goto(stack.url + path)
        assert answer is not None
        assert answer.status == 200, (path, answer.status)
        page.wait_for_load_state("load")
        time.sleep(0.5)
        page.screenshot(path=str(screenshots / f"{name}-{width}-{scheme}.png"), full_page=True)
        overflow = page.evaluate("document.documentElement.scrollWidth - window.innerWidth")
        assert overflow <= 0, f"{path} is {overflow} px wider than {width} px"
    page.close()
    watch.check(stack.port)


def pages_of(workflow: Row) -> dict[str, str]:
    """The pages there are, by a name for their picture."""
    job = by_key(workflow)["cells"]["id"]
    return {
        "dashboard": "/",
        "workflow": f"/workflows/{workflow['id']}/",
        "job": f"/jobs/{job}/",
        "viewer": f"/jobs/{job}/viewer/",
    }
