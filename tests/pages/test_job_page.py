"""The page of a job and its viewer."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from jobs import pages, services
from jobs.models import JobProgress
from tests import factories
from tests.pages.conftest import Lab, People, artifact
from tests.synthetic import write_slide


def shown(people: People, url: str, name: str = "mel") -> str:
    answer = people.client(name).get(url)
    assert answer.status_code == 200
    return str(answer.content.decode())


def test_a_finished_job_tells_its_result_and_its_files(people: People, lab: Lab) -> None:
    page = shown(people, lab.job_url("done"))
    assert "<dd>1,522</dd>" in page
    assert "drag it into QuPath" in page
    assert "ab" * 32 in page  # the whole sha256
    assert "2.0\xa0KB" in page
    order = [page.index(name) for name in ("cells.geojson.gz", "x_cells.jsonl", "manifest.json")]
    assert order == sorted(order)


def test_a_failed_job_says_why_and_what_to_do(people: People, lab: Lab) -> None:
    page = shown(people, lab.job_url("failed"))
    assert "The slide is &lt;damaged&gt;." in page
    assert "Mend the slide or the parameters" in page
    ended = shown(people, lab.job_url("ended"))
    assert "a job it depends on did not succeed" in ended
    assert "Retry the job that failed" in ended


def test_a_waiting_job_says_what_it_waits_for(people: People, lab: Lab) -> None:
    assert "It waits for running." in shown(people, lab.job_url("joined"))
    assert "Jobs of branch c run one at a time" in shown(people, lab.job_url("waiting"))
    for key in ("running", "done"):
        assert "Why it waits" not in shown(people, lab.job_url(key))


def test_phases_are_shown_with_their_durations(people: People, lab: Lab) -> None:
    job = lab.jobs["running"]
    row = JobProgress(
        job=job,
        tenant=people.lab,
        phase="sleep",
        progress=0.4,
        phases=[{"name": "open", "seconds": 1.25}, {"name": "sleep", "seconds": 70}],
    )
    JobProgress.objects.for_tenant(people.lab).filter(job=job).delete()
    row.save()
    page = shown(people, lab.job_url("running"))
    assert "<title>40 % · running" in page
    assert "Opening the slide" in page
    assert "1.2 s" in page
    assert '<span class="took">now</span>' in page


def test_cancel_and_retry_lead_back_to_where_the_button_was(people: People, lab: Lab) -> None:
    client = people.client("mel")
    answer = client.post(lab.job_url("waiting", "cancel/"), {"next": lab.url})
    assert answer["Location"] == lab.url
    assert lab.jobs["waiting"].status.public == "CANCELLED"
    again = client.post(lab.job_url("waiting", "cancel/"), {"next": "https://evil.example/"})
    assert again["Location"] == lab.job_url("waiting")
    assert "is over already" in client.get(lab.url).content.decode()
    client.post(lab.job_url("waiting", "retry/"))
    assert lab.jobs["waiting"].status.public == "PENDING"
    refused = client.post(lab.job_url("done", "retry/"), follow=True).content.decode()
    assert "only failed and cancelled jobs are retried" in refused


def facts(page: str) -> dict[str, str]:
    found = re.search(r'<script id="viewer-facts" type="application/json">(.*?)</script>', page)
    assert found is not None
    read: dict[str, str] = json.loads(found[1])
    return read


@pytest.fixture
def over_slide(people: People, house: Path) -> Lab:
    """A job with a slide that waits for a tissue mask."""
    write_slide(house / "slides" / "one.tif", size=512)
    lab = Lab.__new__(Lab)
    lab.workflow = factories.workflow(
        people.lab,
        [
            {"job_id": "tissue", "job_type": "tissue_mask", "image_path": "one.tif"},
            {
                "job_id": "cells",
                "job_type": "cell_segmentation",
                "image_path": "one.tif",
                "depends_on": ["tissue"],
            },
        ],
    )
    return lab


def test_the_viewer_loads_its_library_and_names_the_data(
    people: People, over_slide: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pages.finders, "find", lambda name: f"/somewhere/{name}")
    page = shown(people, over_slide.job_url("cells", "viewer/"))
    assert "/static/vendor/openseadragon/openseadragon.min.js" in page
    uuid = over_slide.jobs["cells"].uuid
    assert facts(page) == {
        "job": str(uuid),
        "visualization": f"/api/visualization/{uuid}/visualization",
    }


def test_the_viewer_draws_the_outline_of_the_mask_that_was_used(
    people: People, over_slide: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pages.finders, "find", lambda name: f"/somewhere/{name}")
    from jobs.scheduling import promotion

    promotion.promote()
    tissue = over_slide.jobs["tissue"]
    services.start(tissue.pk, tissue.attempt, "cpu-0")
    files = [artifact("tissue.geojson", "tissue_geojson")]
    assert services.succeed(tissue.pk, tissue.attempt, artifacts=files, summary={})
    for key in ("tissue", "cells"):
        page = shown(people, over_slide.job_url(key, "viewer/"))
        wanted = f"/api/jobs/{tissue.uuid}/artifacts/tissue.geojson"
        assert f'data-outline="{wanted}"' in page


def test_without_its_library_the_viewer_says_what_is_missing(
    people: People, over_slide: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pages.finders, "find", lambda name: None)
    page = shown(people, over_slide.job_url("cells", "viewer/"))
    assert "OpenSeadragon, is not installed" in page
    assert "bin/setup" in page
    assert "viewer.js" not in page


def test_a_job_without_a_slide_has_nothing_to_view(people: People, lab: Lab) -> None:
    page = shown(people, lab.job_url("done", "viewer/"))
    assert "This job has no slide" in page
    assert "viewer.js" not in page
