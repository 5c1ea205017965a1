"""The main job as a person sees it: a stack is started, cells are found, and the result is checked."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from django.conf import settings
from rich.console import Console

from labsched import leash, loopback, stack
from labsched.bootstrap.assets import SAMPLE_SLIDE, place_sample
from labsched.bootstrap.console import Trouble
from labsched.bootstrap.places import make_folder, require_space
from labsched.demo_progress import Watcher
from labsched.verification import Verdict, verify

USER = "demo"
START_TIMEOUT_S = 240.0  # a first start also reads all of torch from a cold disk
STOP_GRACE_S = 15.0
POLL_S = 0.4
OVER = ("SUCCEEDED", "FAILED", "CANCELLED")
WITH_COMPANIONS = (".dcm", ".vms", ".vmu")  # formats of several files in one folder

Row = dict[str, Any]


@dataclass(frozen=True)
class Finding:
    """What one demo run found and where it left it."""

    workflow: Row
    folder: Path
    files: list[Path]
    verdict: Verdict
    tissue_mm2: float


class Demo:
    """One run against a stack of its own on `port`."""

    def __init__(self, console: Console, *, port: int, model: Path | None = None) -> None:
        self.console = console
        self.url = f"http://{stack.HOST}:{port}"
        self.port = port
        self.model = model

    # --- the stack -----------------------------------------------------------------------

    @contextmanager
    def running_stack(self) -> Iterator[subprocess.Popen[bytes]]:
        """`manage.py dev` as a child with its output in a log file; stopped afterwards."""
        log = make_folder(settings.LABSCHED_DATA / "log") / "demo.log"
        env = {**os.environ, "TRUST_USER_HEADER": "1", "PYTHONUNBUFFERED": "1"}
        env.setdefault("CPU_WORKERS", "2")  # one workflow: more would only start slower
        if self.model is not None:
            env["INSTANSEG_MODEL"] = str(self.model)
        command = stack.manage("dev", "--port", str(self.port))
        with log.open("wb") as sink:
            process = leash.spawn(command, env=env, stdout=sink)
        try:
            self._wait_until_healthy(process, log)
            yield process
        finally:
            leash.stop(process, grace_s=STOP_GRACE_S)

    def _wait_until_healthy(self, process: subprocess.Popen[bytes], log: Path) -> None:
        began = time.monotonic()
        with self.console.status("Starting Redis, web, scheduler and workers"):
            while time.monotonic() - began < START_TIMEOUT_S:
                if process.poll() is not None:
                    raise _failed_start(log)
                if self._is_healthy():
                    self.console.print(f"The stack is up after {time.monotonic() - began:.0f} s.")
                    return
                time.sleep(POLL_S)
        raise Trouble(
            f"The stack was not ready within {START_TIMEOUT_S:.0f} s.",
            f"Read {log}: its last lines say which process is missing and why.",
        )

    def _is_healthy(self) -> bool:
        try:
            return loopback.request("GET", f"{self.url}/health", timeout_s=5).status == 200
        except OSError:
            return False

    # --- the workflow --------------------------------------------------------------------

    def submit(self, image_path: str) -> Row:
        """Two branches, tissue before cells; earlier results are not reused, so that all is real."""
        slide = {"image_path": image_path}
        tissue = {"job_id": "tissue", "job_type": "tissue_mask", "branch": "tissue", **slide}
        cells = {"job_id": "cells", "job_type": "cell_segmentation", "branch": "cells", **slide}
        made = self.ask(
            "POST",
            "/api/workflows",
            {
                "name": f"Demo: {Path(image_path).name}"[:200],
                "jobs": [tissue, {**cells, "depends_on": ["tissue"]}],
                "reuse": False,
            },
        )
        return dict(made)

    def ask(self, method: str, path: str, body: object = None) -> Any:
        """The JSON of an answer that must be a good one, as user `demo`."""
        headers = {"X-User-ID": USER}
        try:
            answer = loopback.request(method, f"{self.url}{path}", body=body, headers=headers)
        except OSError as error:
            raise Trouble(
                f"The web process stopped answering: {error}.",
                f"Read {settings.LABSCHED_DATA / 'log' / 'demo.log'} and run the demo again.",
            ) from error
        if answer.status >= 400:
            said = answer.body.decode(errors="replace")[:300]
            raise Trouble(
                f"{method} {path} was refused with {answer.status}: {said}",
                "If that names the slide, give another one with --slide PATH.",
            )
        return answer.json()

    def watch(self, workflow: Row, process: subprocess.Popen[bytes]) -> Row:
        """The workflow once it is over, with a bar for each job meanwhile."""
        with Watcher(self.console, workflow["jobs"]) as watcher:
            while True:
                seen: Row = self.ask("GET", f"/api/workflows/{workflow['id']}")
                watcher.show(seen["jobs"])
                if seen["state"] in OVER and all(job["state"] in OVER for job in seen["jobs"]):
                    break
                if process.poll() is not None:
                    raise _failed_start(settings.LABSCHED_DATA / "log" / "demo.log")
                time.sleep(POLL_S)
        for job in seen["jobs"]:
            if job["state"] != "SUCCEEDED":
                reason = job["error"] or job["reason"] or "no reason was given"
                raise Trouble(
                    f"The job {job['job_id']} ended {job['state']}: {reason}",
                    "Solve what it names and run the demo again; --slide PATH takes another slide.",
                )
        return seen

    # --- the results ---------------------------------------------------------------------

    def collect(self, workflow: Row, slide: Path) -> Finding:
        """Download every artifact under its own name, and check the cells."""
        folder = self._result_folder(slide)
        by_key = {job["job_id"]: job for job in workflow["jobs"]}
        files = [self._download(a, folder) for job in by_key.values() for a in job["artifacts"]]
        tissue = json.loads(_ending(files, "tissue.json").read_text())
        with _open(slide) as opened:
            verdict = verify(
                _ending(files, "_cells.jsonl"),
                mask_png=_ending(files, "_tissue_mask.png"),
                scale_l0=tuple(tissue["scale_l0"]),
                read=lambda x, y, size: opened.read(0, x, y, (size, size)),
            )
        return Finding(workflow, folder, files, verdict, float(tissue["area_mm2"]))

    def _result_folder(self, slide: Path) -> Path:
        stamp = time.strftime("%Y%m%d-%H%M%S")
        return make_folder(settings.LABSCHED_DATA / "demo" / f"{slide.stem}-{stamp}")

    def _download(self, artifact: Mapping[str, Any], folder: Path) -> Path:
        target = folder / Path(artifact["name"]).name
        loopback.download(f"{self.url}{artifact['url']}", target, headers={"X-User-ID": USER})
        return target


def bring_slide(path: Path | None) -> str:
    """The `image_path` of the slide in the shared root; one from elsewhere is linked or copied in."""
    root = make_folder(settings.SLIDE_ROOT)
    if path is None:
        sample = place_sample(cache=settings.LABSCHED_CACHE, slide_root=root)
        if not sample.is_file():
            raise Trouble("The sample slide is not there.", "Run bin/setup, or give --slide PATH.")
        return SAMPLE_SLIDE
    source = path.expanduser().resolve()
    if not source.is_file():
        raise Trouble(f"There is no slide file {path}.", "Check the path that --slide names.")
    if source.is_relative_to(root.resolve()):
        return str(source.relative_to(root.resolve()))
    return _bring_in(source, root)


def _bring_in(source: Path, root: Path) -> str:
    inside = Path(source.parent.name) if source.suffix.lower() in WITH_COMPANIONS else Path()
    files = list(source.parent.iterdir()) if inside.name else [source]
    if source.suffix.lower() == ".mrxs":
        files += sorted((source.parent / source.stem).rglob("*"))
    size = sum(file.stat().st_size for file in files if file.is_file())
    require_space(root, gigabytes=size / 1e9 + 0.5, purpose="a copy of the slide")
    for file in files:
        if file.is_file():
            _link_or_copy(file, root / inside / file.relative_to(source.parent))
    return str(inside / source.name)


def _link_or_copy(source: Path, target: Path) -> None:
    """A second name for the same bytes where the disk allows it: symlinks out of a root are refused."""
    make_folder(target.parent)
    if target.exists() and target.stat().st_size == source.stat().st_size:
        return
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def _failed_start(log: Path) -> Trouble:
    """The sentence the stack ended with, else where its log is."""
    lines = log.read_text(errors="replace").splitlines()
    said = [line.removeprefix("labsched: ") for line in lines if line.startswith("labsched: ")]
    following = [line.strip().removeprefix("Next: ") for line in lines if "Next: " in line]
    if said and following:
        return Trouble(said[-1], following[-1])
    last = next((line for line in reversed(lines) if line.strip()), "it said nothing")
    return Trouble(f"The stack ended by itself: {last[:300]}", f"Read {log} for the rest.")


def _ending(files: list[Path], suffix: str) -> Path:
    found = [file for file in files if file.name.endswith(suffix)]
    if not found:
        raise Trouble(
            f"The results hold no file *{suffix}.", "Run the demo again; report it if it recurs."
        )
    return found[0]


@contextmanager
def _open(slide: Path) -> Iterator[Any]:
    from jobs.imaging.slide import open_slide

    opened = open_slide(slide)
    try:
        yield opened
    finally:
        opened.close()
