"""Slides over HTTP: the list, the facts, deep-zoom tiles; all through the tenant's door."""

from __future__ import annotations

import io
import shutil
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from rest_framework.test import APIClient

from jobs.models import Slide
from jobs.slides import catalogue
from tests import factories
from tests.api.conftest import GONE, People, by_header
from tests.synthetic import write_slide

pytestmark = pytest.mark.django_db


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_slide(tmp_path_factory.mktemp("made") / "a.tiff", size=1024, mpp=0.25)


@pytest.fixture
def root(settings: Any, made: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A root with two slides, a damaged one, and files that are none."""
    monkeypatch.setattr("jobs.slides.catalogue.LIST_PROBES_S", 60)  # busy machines open slowly
    folder: Path = settings.SLIDE_ROOT
    shutil.copy(made, folder / "a.tiff")
    (folder / "deep").mkdir()
    shutil.copy(made, folder / "deep" / "b c.tiff")
    (folder / "broken.svs").write_bytes(made.read_bytes()[:3000])
    (folder / "notes.txt").write_text("no slide")
    (folder / "out.svs").symlink_to("/etc/passwd")
    return folder


def by_name(client: APIClient) -> dict[str, dict[str, Any]]:
    rows = client.get("/api/slides").json()["results"]
    return {row["image_path"]: row for row in rows}


def test_slides_are_listed_with_their_facts_and_nothing_else(root: Path) -> None:
    rows = by_name(by_header("new"))
    assert list(rows) == ["a.tiff", "broken.svs", "deep/b c.tiff"]
    good = rows["a.tiff"]
    assert (good["width"], good["height"], good["levels"]) == (1024, 1024, 2)
    assert good["mpp_x"] == pytest.approx(0.25)
    assert good["error"] == ""
    assert "broken.svs" in rows["broken.svs"]["error"]


def test_an_id_stays_when_the_tenant_and_the_row_are_made(root: Path, capacity: None) -> None:
    client = by_header("new")
    before = by_name(client)["a.tiff"]["id"]
    assert client.get(f"/api/slides/{before}").json()["image_path"] == "a.tiff"
    assert not Slide.objects.across_tenants("a count").exists()
    job = {"job_id": "a", "job_type": "tissue_mask", "slide_id": before}
    assert client.post("/api/workflows", {"name": "n", "jobs": [job]}).status_code == 201
    assert Slide.objects.across_tenants("a count").get().path == "a.tiff"
    assert by_name(client)["a.tiff"]["id"] == before


def test_the_facts_are_kept_in_the_row(root: Path, people: People) -> None:
    client = people.client("token")
    slide = by_name(client)["a.tiff"]["id"]
    client.get(f"/api/slides/{slide}")
    row = Slide.objects.for_tenant(people.lab).get(uuid=slide)
    assert (row.width_l0, row.levels, row.error) == (1024, 2, "")
    catalogue._facts.clear()
    assert by_name(client)["a.tiff"]["width"] == 1024


def test_one_tenants_ids_are_not_anothers(root: Path, people: People) -> None:
    mine = by_name(people.client("token"))["a.tiff"]
    client = people.client("bob")
    assert by_name(client)["a.tiff"]["id"] != mine["id"]
    paths = (f"/api/slides/{mine['id']}", mine["dzi"], mine["thumbnail"])
    for path in (*paths, f"/api/slides/{mine['id']}_files/0/0_0.jpeg"):
        foreign, unknown = client.get(path), client.get(path.replace(mine["id"], GONE))
        assert foreign.status_code == unknown.status_code == 404
        assert foreign.content == unknown.content
        assert people.client("nobody").get(path).status_code == 401


def test_tiles_follow_the_descriptor(root: Path) -> None:
    client = by_header("new")
    slide = by_name(client)["a.tiff"]
    descriptor = client.get(slide["dzi"])
    assert descriptor.headers["Content-Type"] == "application/xml"
    image = ET.fromstring(descriptor.content)
    size = image[0].attrib
    assert (image.attrib["TileSize"], image.attrib["Overlap"]) == ("254", "1")
    assert (size["Width"], size["Height"]) == ("1024", "1024")
    base = slide["dzi"].split(".dzi")[0]
    for level, address, expected in (
        (10, "0_0", (255, 255)),
        (10, "1_1", (256, 256)),
        (0, "0_0", (1, 1)),
    ):
        tile = client.get(f"{base}_files/{level}/{address}.jpeg")
        assert tile.status_code == 200
        assert Image.open(io.BytesIO(tile.content)).size == expected


@pytest.mark.parametrize(
    "tile", ["10/99_0.jpeg", "99/0_0.jpeg", "10/0_0.gif", "10/x.jpeg", "x/0_0.jpeg", "-1/0_0.jpeg"]
)
def test_a_tile_that_is_none_is_404(root: Path, tile: str) -> None:
    client = by_header("new")
    slide = by_name(client)["a.tiff"]["id"]
    assert client.get(f"/api/slides/{slide}_files/{tile}").status_code == 404


def test_tiles_are_kept_by_browsers_until_the_file_changes(root: Path) -> None:
    client = by_header("new")
    slide = by_name(client)["a.tiff"]
    first = client.get(slide["thumbnail"])
    assert "immutable" in first.headers["Cache-Control"]
    assert "private" in first.headers["Cache-Control"]
    bare = slide["thumbnail"].split("?")[0]
    assert "no-cache" in client.get(bare).headers["Cache-Control"]
    assert client.get(bare, HTTP_IF_NONE_MATCH=first.headers["ETag"]).status_code == 304
    shutil.copy(root / "deep" / "b c.tiff", root / "a.tiff")
    again = client.get(bare, HTTP_IF_NONE_MATCH=first.headers["ETag"])
    assert again.status_code == 200


@pytest.mark.parametrize(("asked", "side"), [("64", 64), ("1", 32), ("99999", 1024), ("x", 256)])
def test_thumbnails_are_bounded(root: Path, asked: str, side: int) -> None:
    client = by_header("new")
    base = by_name(client)["a.tiff"]["thumbnail"].split("?")[0]
    image = Image.open(io.BytesIO(client.get(f"{base}?size={asked}").content))
    assert max(image.size) == side


def test_a_damaged_slide_is_a_sentence(root: Path) -> None:
    client = by_header("new")
    slide = by_name(client)["broken.svs"]
    base = slide["dzi"].split(".dzi")[0]
    for path in (slide["dzi"], slide["thumbnail"], f"{base}_files/0/0_0.jpeg"):
        answer = client.get(path)
        assert answer.status_code == 422
        assert "broken.svs" in answer.json()["detail"]
    assert client.get(f"/api/slides/{slide['id']}").json()["error"]


def test_a_slide_that_was_taken_away_is_404(root: Path, people: People) -> None:
    client = people.client("token")
    slide = by_name(client)["a.tiff"]
    client.get(f"/api/slides/{slide['id']}")
    (root / "a.tiff").unlink()
    assert client.get(slide["dzi"]).status_code == 404
    assert "no longer there" in client.get(f"/api/slides/{slide['id']}").json()["error"]


def test_the_list_is_paged(root: Path) -> None:
    client = by_header("new")
    first = client.get("/api/slides?page_size=2").json()
    rest = client.get(first["next"]).json()
    names = [row["image_path"] for row in first["results"] + rest["results"]]
    assert names == ["a.tiff", "broken.svs", "deep/b c.tiff"]
    assert rest["next"] is None


def test_a_workflow_of_a_slide_shows_it_in_the_viewer(root: Path, people: People) -> None:
    factories.capacity()
    body = {
        "name": "n",
        "jobs": [{"job_id": "a", "job_type": "tissue_mask", "image_path": "a.tiff"}],
    }
    client = people.client("token")
    job = client.post("/api/workflows", body).json()["jobs"][0]["id"]
    found = client.get(f"/api/visualization/{job}/visualization").json()
    assert found["slide"]["image_path"] == "a.tiff"
    assert found["slide"]["width"] == 1024
    assert client.get(found["slide"]["dzi"]).status_code == 200
    assert client.get(f"/api/jobs/{job}").json()["image_path"] == "a.tiff"
