"""Slides in a bucket: listed and named like others, fetched once to a bounded folder, by workers at
once, for the viewer in the background."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import boto3
import environ
import pytest
from botocore.exceptions import EndpointConnectionError

from jobs.models import Job, Slide
from jobs.running import tasks
from jobs.scheduling import promotion
from jobs.slides import answers, deepzoom, downloads, roots, staging
from jobs.slides import bucket as objects
from jobs.slides.bucket import Gone, SlideAway
from jobs.slides.files import stamp_of
from labsched import environment
from tests import factories
from tests.api.conftest import People, by_header
from tests.processes import REPOSITORY
from tests.synthetic import write_slide

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_slide(tmp_path_factory.mktemp("made") / "a.tiff", size=1024, mpp=0.25)


@pytest.fixture
def bucket(
    s3_server: str, house: Path, settings: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Any]:
    """A bucket that SLIDES_URL names, and an empty cache."""
    for name, value in {
        "AWS_ENDPOINT_URL_S3": s3_server,
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_CONFIG_FILE": str(tmp_path / "none"),
        "SLIDES_URL": "s3://archive/of/lab",
    }.items():
        monkeypatch.setenv(name, value)
    settings.SLIDES_BUCKET = environment.slides_bucket(environ.Env())
    settings.LABSCHED_CACHE = tmp_path / "cache"
    monkeypatch.setattr("jobs.slides.answers.FRESH_S", 0.0)
    monkeypatch.setattr("jobs.slides.staging.LEFT_FREE", 0)
    objects.forget()
    made = boto3.resource("s3", region_name="us-east-1").create_bucket(Bucket="archive")
    yield made
    made.objects.all().delete()
    made.delete()
    objects.forget()


def put(bucket: Any, path: str, content: bytes) -> None:
    bucket.put_object(Key=f"of/lab/{path}", Body=content)


@pytest.fixture
def stored(bucket: Any, made: Path) -> Any:
    """The bucket with a slide at `deep/a.tiff`."""
    put(bucket, "deep/a.tiff", made.read_bytes())
    return bucket


def silent() -> None:
    """Nobody listens."""


def fetched(path: str) -> staging.Held:
    return staging.fetched(path, beat=silent)


def staged(settings: Any) -> list[str]:
    """The folders of the cache, by the bytes that their names tell."""
    folders = (settings.LABSCHED_CACHE / "slides-staged").glob("*/")
    return sorted(each.name.partition("-")[2] for each in folders)


def requests_of(operation: str) -> list[str]:
    """The paths of requests that are made from now on."""
    made: list[str] = []
    events = objects._client().meta.events
    events.register(
        f"before-send.s3.{operation}", lambda request, **_: made.append(request.url.split("?")[0])
    )
    return made


# --- what there is ------------------------------------------------------------------------


def test_they_are_listed_beside_the_others(stored: Any, house: Path, made: Path) -> None:
    shutil.copy(made, house / "slides" / "b.tiff")
    put(stored, "notes.txt", b"no slide")
    put(stored, "deep/", b"")  # how consoles make folders
    stored.put_object(Key="elsewhere.tiff", Body=b"outside the prefix")
    rows = by_header("new").get("/api/slides").json()["results"]
    assert [(row["root"], row["image_path"]) for row in rows] == [
        ("s3", "deep/a.tiff"),
        ("shared", "b.tiff"),
    ]
    assert (rows[0]["size"], rows[0]["error"]) == (made.stat().st_size, "")
    assert rows[0]["width"] is None  # nobody has looked inside yet


@pytest.mark.parametrize(
    "path", ["deep/b.tiff", "../../elsewhere.tiff", "/of/lab/deep/a.tiff", "deep", "deep/"]
)
def test_what_is_no_object_of_the_prefix_is_refused_like_every_other_path(
    stored: Any, path: str
) -> None:
    stored.put_object(Key="elsewhere.tiff", Body=b"outside the prefix")
    job = {"job_id": "a", "job_type": "tissue_mask", "image_path": path}
    answer = by_header("new").post("/api/workflows", {"name": "n", "jobs": [job]})
    assert answer.status_code == 400
    assert "is no slide that you may read" in str(answer.json())


def test_many_of_one_folder_are_asked_for_together(
    stored: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jobs.slides.answers.FRESH_S", 60.0)
    heads, lists = requests_of("HeadObject"), requests_of("ListObjectsV2")
    for number in range(100):
        with pytest.raises(Gone):
            objects.find(f"deep/{number}.tiff")
    assert objects.find("deep/a.tiff").path == "deep/a.tiff"
    assert (len(heads), len(lists)) == (objects.OFTEN, 1)


def test_many_of_many_folders_are_asked_for_together(
    stored: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jobs.slides.answers.FRESH_S", 60.0)
    heads, lists = requests_of("HeadObject"), requests_of("ListObjectsV2")
    for number in range(2 * objects.MANY):
        with pytest.raises(Gone):
            objects.find(f"{number}/a.tiff")
    assert objects.find("deep/a.tiff").path == "deep/a.tiff"
    assert (len(heads), len(lists)) == (objects.MANY, 1)


# --- workers ------------------------------------------------------------------------------


def test_a_worker_fetches_a_slide_and_its_result_is_that_of_the_same_bytes(
    stored: Any, people: People, house: Path, made: Path
) -> None:
    shutil.copy(made, house / "slides" / "b.tiff")
    for path in ("deep/a.tiff", "b.tiff"):
        factories.capacity()
        job = {"job_id": "a", "job_type": "tissue_mask", "image_path": path}
        body = {"name": "n", "jobs": [job]}
        assert people.client("token").post("/api/workflows", body).status_code == 201
        for pk, attempt in promotion.promote():
            tasks.run_job(pk, attempt)
    first, second = Job.objects.for_tenant(people.lab).order_by("id")
    assert (first.status.public, first.error) == ("SUCCEEDED", "")
    assert (second.status.public, second.reason) == ("SUCCEEDED", "reused")
    assert Slide.objects.for_tenant(people.lab).get(path="deep/a.tiff").root == "s3"


def test_two_at_once_fetch_once(stored: Any, made: Path) -> None:
    gets = requests_of("GetObject")
    held: list[staging.Held] = []
    threads = [
        threading.Thread(target=lambda: held.append(fetched("deep/a.tiff"))) for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [each.path.read_bytes() for each in held] == [made.read_bytes()] * 2
    assert len(gets) == 1


def test_a_beat_that_raises_ends_the_download_and_leaves_nothing(
    bucket: Any, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jobs.slides.downloads.BEAT_S", 0.001)
    put(bucket, "large.svs", bytes(40 << 20))

    class StoppedError(Exception):
        pass

    def stop() -> None:
        if staged(settings):
            raise StoppedError

    # the network answers nothing for long
    hanging = objects._client().meta.events
    hanging.register("before-send.s3.GetObject", wait := lambda **_: time.sleep(6))
    began = time.monotonic()
    with pytest.raises(StoppedError):
        staging.fetched("large.svs", beat=stop)
    assert time.monotonic() - began < 4
    assert staged(settings) == []
    hanging.unregister("before-send.s3.GetObject", wait)
    assert fetched("large.svs").path.stat().st_size == 40 << 20


def test_what_a_killed_process_left_is_filled_by_the_next(stored: Any, made: Path) -> None:
    parts = [objects.find("deep/a.tiff")]
    folder = staging._folder_of(parts)
    partial = folder.with_name(folder.name + staging.PARTIAL)
    staging._claim(folder, partial, parts)
    assert fetched("deep/a.tiff").path.read_bytes() == made.read_bytes()
    shutil.rmtree(folder)
    (partial / "files").mkdir(parents=True)  # killed before there was a lock
    assert fetched("deep/a.tiff").path.read_bytes() == made.read_bytes()


HANGING = """
import time, django
django.setup()
from jobs.slides import downloads, staging
from jobs.slides.files import staged_root
downloads.BEAT_S = 0.01
def beat():
    if list(staged_root().glob("*.partial")):
        print("under way", flush=True)
        time.sleep(600)
staging.fetched("large.svs", beat=beat)
"""


def test_who_waits_goes_on_when_the_process_that_fetches_is_killed(
    bucket: Any, settings: Any
) -> None:
    put(bucket, "large.svs", bytes(20 << 20))
    env = {
        **os.environ,
        "LABSCHED_CACHE": str(settings.LABSCHED_CACHE),
        "DJANGO_SETTINGS_MODULE": "labsched.settings",
    }
    command = [sys.executable, "-c", HANGING]
    with subprocess.Popen(command, env=env, cwd=REPOSITORY, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"under way\n"
        waiting = threading.Event()
        held: list[staging.Held] = []
        thread = threading.Thread(
            target=lambda: held.append(staging.fetched("large.svs", beat=waiting.set))
        )
        thread.start()
        assert waiting.wait(30)
        assert held == []
        child.kill()
        thread.join(60)
    assert held[0].path.read_bytes() == bytes(20 << 20)
    assert staged(settings) == [str(20 << 20)]


def test_another_version_is_another_file(stored: Any) -> None:
    first = fetched("deep/a.tiff")
    put(stored, "deep/a.tiff", b"others")
    second = fetched("deep/a.tiff")
    assert second.path != first.path
    assert second.path.read_bytes() == b"others"
    assert first.path.is_file()


def test_an_object_that_changes_meanwhile_is_told(stored: Any, tmp_path: Path) -> None:
    before = objects.find("deep/a.tiff")
    put(stored, "deep/a.tiff", b"others")
    with pytest.raises(SlideAway, match="changed while it was fetched"):
        downloads.fetch(before, tmp_path / "a.tiff", beat=silent)


def test_connections_that_break_are_made_again(
    stored: Any, made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jobs.slides.downloads.PAUSES_S", (0.01, 0.01))
    tries = broken("GetObject", times=2)
    assert fetched("deep/a.tiff").path.read_bytes() == made.read_bytes()
    assert len(tries) == 3


def test_a_short_outage_fails_no_attempt(
    stored: Any, made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jobs.slides.staging.RETRY_S", 0.1)
    tries = broken("HeadObject", times=4)
    assert fetched("deep/a.tiff").path.read_bytes() == made.read_bytes()
    assert len(tries) >= 5


def broken(question: str, *, times: int) -> list[str]:
    """The first questions of this kind do not reach the server. The addresses asked, as they come."""
    tries: list[str] = []

    def break_first(request: Any, **_: Any) -> None:
        tries.append(request.url)
        if len(tries) <= times:
            raise EndpointConnectionError(endpoint_url=request.url)

    objects._client().meta.events.register(f"before-send.s3.{question}", break_first)
    return tries


def test_a_staged_file_has_the_same_stamp_on_every_machine(
    stored: Any, settings: Any, tmp_path: Path
) -> None:
    first = stamp_of([fetched("deep/a.tiff").path])
    settings.LABSCHED_CACHE = tmp_path / "another"
    assert stamp_of([fetched("deep/a.tiff").path]) == first
    put(stored, "deep/a.tiff", b"others")
    assert stamp_of([fetched("deep/a.tiff").path]) != first


def test_of_equal_questions_at_once_one_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jobs.slides.answers.FRESH_S", 60.0)
    asked: list[int] = []

    def ask() -> int:
        asked.append(1)
        time.sleep(0.2)
        return 7

    question = object()
    with ThreadPoolExecutor(4) as pool:
        found = [pool.submit(answers.fresh, question, ask) for _ in range(4)]
    assert [each.result() for each in found] == [7] * 4
    assert len(asked) == 1


# --- room ---------------------------------------------------------------------------------


def test_what_was_used_longest_ago_makes_room_and_what_is_in_use_stays(
    bucket: Any, settings: Any
) -> None:
    settings.SLIDE_CACHE_GB = 100e-9
    for name, size in {"a": 40, "b": 41, "c": 42, "d": 43, "e": 101}.items():
        put(bucket, f"{name}.svs", bytes(size))
    first = fetched("a.svs")
    fetched("b.svs").release()
    fetched("c.svs").release()
    assert staged(settings) == ["40", "42"]
    second = fetched("d.svs")
    assert staged(settings) == ["40", "43"]
    with pytest.raises(SlideAway, match=r"no room for c\.svs"):
        fetched("c.svs")
    with pytest.raises(SlideAway, match="raise SLIDE_CACHE_GB"):
        fetched("e.svs")
    assert first.path.is_file()
    assert second.path.is_file()
    second.release()
    put(bucket, "f.svs", bytes(61))
    with pytest.raises(SlideAway, match=r"no room for f\.svs"):
        fetched("f.svs")
    assert staged(settings) == ["40", "43"]  # what would not have been enough is still there
    fetched("c.svs")
    assert staged(settings) == ["40", "42"]


def test_a_full_disk_is_a_sentence(
    stored: Any, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jobs.slides.staging.LEFT_FREE", 1 << 60)
    with pytest.raises(SlideAway, match="free some of the disk"):
        fetched("deep/a.tiff")
    assert staged(settings) == []


# --- slides of several files --------------------------------------------------------------


def dicom(series: str) -> bytes:
    """The smallest file of a series."""
    elements = [(2, 0x0010, b"1.2.840.10008.1.2.1\0"), (0x20, 0x0E, series.encode())]
    packed = [struct.pack("<HH2sH", *tag, b"UI", len(text)) + text for *tag, text in elements]
    return bytes(128) + b"DICM" + b"".join(packed)


@pytest.mark.parametrize(
    ("objects_", "main", "expected"),
    [
        (
            {"x/a.mrxs": b"", "x/a/Index.dat": b"1", "x/a/deep/no": b"", "x/b/Index.dat": b""},
            "x/a.mrxs",
            ["a/Index.dat", "a.mrxs"],
        ),
        (
            {"x/a.vms": b"[V]\nImageFile=1.jpg\nMapFile=../m.jpg\n", "x/1.jpg": b"1", "m.jpg": b""},
            "x/a.vms",
            ["1.jpg", "a.vms"],
        ),
        (
            {"x/1.dcm": dicom("1.22"), "x/2": dicom("1.22"), "x/3.dcm": dicom("1.24")},
            "x/1.dcm",
            ["1.dcm", "2"],
        ),
    ],
    ids=["mirax", "hamamatsu", "dicom"],
)
def test_what_belongs_to_a_slide_is_fetched_with_it(
    bucket: Any, objects_: dict[str, bytes], main: str, expected: list[str]
) -> None:
    for path, content in objects_.items():
        put(bucket, path, content)
    with fetched(main) as slide:
        found = sorted(each for each in slide.parent.rglob("*") if each.is_file())
        assert [each.relative_to(slide.parent).as_posix() for each in found] == expected
        assert all(
            each.read_bytes() == objects_[f"x/{name}"]
            for each, name in zip(found, expected, strict=True)
        )


# --- the viewer ---------------------------------------------------------------------------


def test_the_viewer_waits_for_a_slide_and_a_list_fetches_none(stored: Any, settings: Any) -> None:
    client = by_header("new")
    (slide,) = client.get("/api/slides").json()["results"]
    picture = client.get(slide["thumbnail"])
    assert (picture.status_code, "Retry-After" in picture.headers) == (503, False)
    assert "was not fetched yet" in picture.json()["detail"]
    assert client.get(f"/api/slides/{slide['id']}").json()["width"] is None
    assert not (settings.LABSCHED_CACHE / "slides-staged").exists()
    first = client.get(slide["dzi"])
    assert (first.status_code, first.headers["Retry-After"]) == (503, "5")
    assert "is being fetched" in first.json()["detail"]
    deadline = time.monotonic() + 30
    while (answer := client.get(slide["dzi"])).status_code == 503 and time.monotonic() < deadline:
        time.sleep(0.1)
    assert answer.status_code == 200
    assert client.get(slide["thumbnail"]).status_code == 200
    seen = client.get(f"/api/slides/{slide['id']}").json()
    assert (seen["width"], seen["dzi"]) == (1024, slide["dzi"])


def test_any_number_of_viewers_fetch_three_at_once(bucket: Any) -> None:
    go = threading.Event()
    events = objects._client().meta.events
    events.register("before-send.s3.GetObject", lambda **_: [go.wait(20)].clear())
    for number in range(5):
        put(bucket, f"{number}.tiff", bytes(10 + number))
        with pytest.raises(staging.NotStaged, match="is being" if number < 3 else "waits") as told:
            staging.opened(f"{number}.tiff")
        assert told.value.retry_s
    under_way = list(staging._under_way.values())
    assert len(under_way) == 3
    go.set()
    for thread in under_way:
        thread.join(20)
    assert staging.opened("0.tiff").path.is_file()


def test_a_request_looks_into_few_files_of_a_folder(
    bucket: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jobs.slides.staging.HEADS_A_REQUEST", 2)
    for number in range(4):
        put(bucket, f"{number}.dcm", dicom("1.22") + bytes(number))
    gets = requests_of("GetObject")
    assert staging.at_hand("0.dcm") is None
    assert len(gets) == 1
    with fetched("0.dcm") as main:
        assert len(list(main.parent.iterdir())) == 4
    assert staging.at_hand("0.dcm") is not None


def test_a_slide_that_nobody_looks_at_any_more_makes_room(
    stored: Any, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jobs.slides.deepzoom.KEPT_S", 0.3)
    fetched("deep/a.tiff").release()
    client = by_header("new")
    (slide,) = client.get("/api/slides").json()["results"]
    assert client.get(slide["dzi"]).status_code == 200
    put(stored, "b.svs", bytes(10))
    settings.SLIDE_CACHE_GB = (slide["size"] + 5) / 1e9
    with pytest.raises(SlideAway, match="in use"):
        fetched("b.svs")
    time.sleep(0.4)
    deepzoom._drop_unused()  # as its timer does
    fetched("b.svs").release()
    assert staged(settings) == ["10"]


def test_a_slide_that_left_the_bucket_is_gone(stored: Any, people: People) -> None:
    client = people.client("token")
    (slide,) = client.get("/api/slides").json()["results"]
    client.get(f"/api/slides/{slide['id']}")
    row = Slide.objects.for_tenant(people.lab).get()
    stored.objects.all().delete()
    assert client.get(slide["dzi"]).status_code == 404
    assert "no longer there" in client.get(f"/api/slides/{slide['id']}").json()["error"]
    with pytest.raises(roots.BadPath):
        roots.real_path(row)


# --- no answer ----------------------------------------------------------------------------


@pytest.fixture
def away(bucket: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody listens where the bucket was."""
    objects.forget()
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.setattr("jobs.slides.staging.PATIENCE_S", 0.0)


def test_a_bucket_that_does_not_answer_is_told_and_stops_no_other_slide(
    away: None, people: People, house: Path, made: Path
) -> None:
    client = people.client("token")
    shutil.copy(made, house / "slides" / "b.tiff")
    listing = client.get("/api/slides")
    assert listing.status_code == 200
    assert [row["image_path"] for row in listing.json()["results"]] == ["b.tiff"]
    assert "bucket did not answer" in listing.json()["note"]
    for path, status in (("b.tiff", 201), ("c.tiff", 503)):
        job = {"job_id": "a", "job_type": "tissue_mask", "image_path": path}
        answer = client.post("/api/workflows", {"name": "n", "jobs": [job]})
        assert answer.status_code == status


def test_a_job_tries_again_when_the_bucket_does_not_answer(away: None, people: People) -> None:
    factories.capacity()
    place = ("s3", "a.tiff")
    row = roots.rows_of(people.lab, [place])[place]
    flow = factories.workflow(
        people.lab, [factories.job("a", job_type="tissue_mask", slide_id=str(row.uuid))]
    )
    for pk, attempt in promotion.promote():
        tasks.run_job(pk, attempt)
    job = factories.jobs_of(flow)["a"]
    assert job.status.name == "RETRY_WAIT"
    assert "bucket did not answer" in job.error
