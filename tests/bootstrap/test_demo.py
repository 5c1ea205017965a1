"""What the demo does before and around the stack: slides come in, the stack's last words come out."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from django.test import override_settings
from rich.console import Console

from labsched import demo, loopback, stack
from labsched.bootstrap.console import Trouble
from labsched.demo_progress import Watcher, note
from labsched.management.commands import dev
from labsched.management.commands.demo import check_model, judge
from labsched.verification import Verdict

JOB = {
    "job_id": "cells",
    "state": "RUNNING",
    "reason": "",
    "phase": "segment",
    "progress": 0.5,
    "tiles_done": 3,
    "tiles_total": 24,
    "started_at": "2026-01-01T00:00:00Z",
    "finished_at": None,
}


@pytest.fixture
def slide_root(tmp_path: Path) -> Iterator[Path]:
    root = tmp_path / "data" / "slides"
    with override_settings(SLIDE_ROOT=root, LABSCHED_CACHE=tmp_path / "cache"):
        yield root


def test_a_slide_from_elsewhere_becomes_a_real_file_of_the_root(
    slide_root: Path, tmp_path: Path
) -> None:
    (tmp_path / "mine.svs").write_bytes(b"pixels")
    assert demo.bring_slide(tmp_path / "mine.svs") == "mine.svs"
    brought = slide_root / "mine.svs"
    assert brought.read_bytes() == b"pixels"
    assert not brought.is_symlink()  # one that leaves the root would be refused


def test_another_slide_of_the_same_name_takes_its_place(slide_root: Path, tmp_path: Path) -> None:
    for folder, content in (("a", b"first"), ("b", b"the second")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "mine.svs").write_bytes(content)
        demo.bring_slide(tmp_path / folder / "mine.svs")
    assert (slide_root / "mine.svs").read_bytes() == b"the second"
    assert (tmp_path / "a" / "mine.svs").read_bytes() == b"first"


def test_a_slide_of_several_files_brings_them_all(slide_root: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    for name in ("mine.mrxs", "mine/Data0000.dat", "mine/Slidedat.ini"):
        (tmp_path / name).write_text(name)
    assert demo.bring_slide(tmp_path / "mine.mrxs") == "mine.mrxs"
    assert (slide_root / "mine" / "Slidedat.ini").is_file()
    (tmp_path / "dicom").mkdir()
    for name in ("1.dcm", "2.dcm"):
        (tmp_path / "dicom" / name).write_text(name)
    assert demo.bring_slide(tmp_path / "dicom" / "1.dcm") == "dicom/1.dcm"
    assert (slide_root / "dicom" / "2.dcm").is_file()


def test_a_slide_that_is_already_there_stays(slide_root: Path) -> None:
    slide_root.mkdir(parents=True)
    (slide_root / "here.svs").write_bytes(b"pixels")
    assert demo.bring_slide(slide_root / "here.svs") == "here.svs"


@pytest.mark.usefixtures("slide_root")
def test_a_slide_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(Trouble, match=r"no slide file .*nope\.svs"):
        demo.bring_slide(tmp_path / "nope.svs")
    with pytest.raises(Trouble, match="Run bin/setup"):
        demo.bring_slide(None)


def test_the_stacks_own_sentence_is_passed_on(tmp_path: Path) -> None:
    log = tmp_path / "demo.log"
    log.write_text("noise\nlabsched: Port 1 is taken.\n  Next: Take another.\n")
    trouble = demo._failed_start(log)
    assert (trouble.wrong, trouble.next_step) == ("Port 1 is taken.", "Take another.")
    log.write_text("something else\n\n")
    assert "something else" in demo._failed_start(log).wrong


def test_progress_is_told_in_lines_without_a_terminal() -> None:
    with open(os.devnull, "w") as sink:
        console = Console(file=sink, record=True, width=200)
        with Watcher(console, [JOB]) as watcher:
            watcher.show([JOB])
            watcher.show([{**JOB, "tiles_done": 4}])
            watcher.show([{**JOB, "state": "SUCCEEDED", "progress": 1.0, "phase": ""}])
        lines = console.export_text().splitlines()
    assert [line.split()[1] for line in lines] == ["50%", "100%"]


def test_a_waiting_job_says_why() -> None:
    waiting = {**JOB, "state": "PENDING", "reason": "user_limit", "tiles_total": 0}
    assert note(waiting) == "pending, user limit"
    assert note(JOB) == "running, segment, 3/24 tiles"


@pytest.mark.parametrize("sample", [True, False])
def test_only_the_sample_slide_must_have_cells(sample: bool, tmp_path: Path) -> None:
    empty = demo.Finding({}, tmp_path, [], Verdict(0, 0, 0, 0), 0.0)
    if not sample:
        judge(empty, sample=False)
        return
    with pytest.raises(Trouble, match="no nuclei"):
        judge(empty, sample=True)


def test_a_stack_is_web_scheduler_and_the_wanted_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5")
    made = stack.services(port=8000, cpu_workers=2, gpu_workers=None, extra={"REDIS_URL": "r"})
    assert [s.name for s in made] == ["web", "scheduler", "cpu-0", "cpu-1", "gpu-0", "gpu-1"]
    assert [s.env.get("CUDA_VISIBLE_DEVICES") for s in made[-2:]] == ["2", "5"]
    assert all(s.env["REDIS_URL"] == "r" for s in made)


def test_without_a_gpu_one_worker_serves_the_gpu_queue(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    made = stack.services(port=8000, cpu_workers=1, gpu_workers=None, extra={})
    assert [s.name for s in made][2:] == ["cpu-0", "gpu-0"]
    none = stack.services(port=8000, cpu_workers=1, gpu_workers=0, extra={})
    assert [s.name for s in none][2:] == ["cpu-0"]


class _Sick(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(503)
        self.end_headers()
        self.wfile.write(
            b'{"checks": {"redis": {"status": "ok"}, "scheduler": {"status": "failed"}}}'
        )

    def log_message(self, *_: object) -> None:
        return


def test_what_health_misses_is_named() -> None:
    server = HTTPServer(("127.0.0.1", 0), _Sick)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    url = f"http://127.0.0.1:{server.server_port}"
    try:
        assert dev.unhealthy(url) == "/health misses scheduler"
        assert loopback.request("GET", url).status == 503
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    assert dev.unhealthy(url) == "the web process does not answer yet"


def test_a_model_that_is_none_is_named_before_anything_starts(tmp_path: Path) -> None:
    with pytest.raises(Trouble, match=r"no model file .*nope\.pt"):
        check_model(tmp_path / "nope.pt")
    (tmp_path / "notes.pt").write_text("no weights")
    with pytest.raises(
        Trouble, match=r"notes\.pt cannot be loaded as a TorchScript model\."
    ) as told:
        check_model(tmp_path / "notes.pt")
    assert "--model" in told.value.next_step
