"""A slide of the bucket that is not on the machine when somebody wants to see it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from playwright.sync_api import BrowserContext, expect

from tests.client import Client, until
from tests.stack import Stack
from tests.synthetic import write_slide

SHOWN_MS = 30_000


def test_the_viewer_waits_for_a_slide_that_is_fetched(
    stack: Stack, signed_in: BrowserContext, operator: Client, bucket: Any, tmp_path: Path
) -> None:
    content = write_slide(tmp_path / "a.tiff", size=1024, mpp=0.25).read_bytes()
    bucket.put_object(Key="a.tiff", Body=content)
    job = {"job_id": "a", "job_type": "tissue_mask", "image_path": "a.tiff"}
    (job,) = operator.submit([job])["jobs"]
    operator.wait_job(job["id"], ["SUCCEEDED"])
    address = f"/api/visualization/{job['id']}/visualization"
    seen = operator.read(address)["slide"]["dzi"]
    bucket.put_object(Key="a.tiff", Body=content + b"\0")  # other bytes, which nobody has yet
    until(
        lambda: operator.read(address)["slide"]["dzi"] != seen,
        timeout_s=30,
        what="the other bytes are known",
    )
    page = signed_in.new_page()  # unwatched: browsers complain of every 503
    descriptors: list[int] = []
    page.on("response", lambda r: descriptors.append(r.status) if ".dzi" in r.url else None)
    page.goto(f"{stack.url}/jobs/{job['id']}/viewer/")
    message = page.locator("#viewer-message")
    expect(message).to_contain_text("is being fetched", timeout=SHOWN_MS)
    with page.expect_response(lambda r: ".jpeg" in r.url and r.status == 200, timeout=SHOWN_MS):
        pass
    assert descriptors[0] == 503
    expect(message).to_be_hidden()
    page.close()
