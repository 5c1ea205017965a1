"""Scenario 20: the documented commands start what they say, health tells the truth, all of it goes."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import requests

from tests.client import Client, probe, until
from tests.conftest import Cast
from tests.processes import REPOSITORY, Process, free_port, plain_environment, run
from tests.stack import Stack

SERVE_WITHIN_S = 180


class Served:
    """`bin/serve` on a folder and port of its own."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        env = plain_environment()
        env |= {"LABSCHED_DATA": str(folder / "data"), "CPU_WORKERS": "1", "GPU_WORKERS": "1"}
        env |= {"LABSCHED_ENABLE_PROBE_JOBS": "1", "PYTHONUNBUFFERED": "1"}
        command = [str(REPOSITORY / "bin" / "serve"), "--port", str(self.port)]
        self.process = Process("serve", command, env=env, log=folder / "serve.log")

    def status(self) -> int:
        assert self.process.alive, self.process.tail(60)
        try:
            return requests.get(f"{self.url}/health", timeout=10).status_code
        except requests.RequestException:
            return 0

    def wait(self) -> None:
        until(lambda: self.status() == 200, timeout_s=SERVE_WITHIN_S, what="bin/serve is healthy")

    def link(self) -> str:
        """The sign-in link that is printed once /health is 200."""

        def printed() -> str:
            found = re.search(r"http://[^\s]*/sign-in/\?token=[^\s]+", self.process.log.read_text())
            return found.group() if found else ""

        return until(printed, timeout_s=20, what="the sign-in link is printed")


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    made = Served(tmp_path)
    under: list[psutil.Process] = []
    try:
        yield made
        under = made.process.descendants()
    finally:
        made.process.end_tree([*under, *made.process.descendants()], wait_s=0)


def test_20_serve_is_healthy_runs_a_job_signs_in_and_stops_by_one_ctrl_c(served: Served) -> None:
    served.wait()
    ann = Client(served.url, "ann")
    assert ann.wait(ann.submit([probe("noop", "x")])["id"])["state"] == "SUCCEEDED"

    page = requests.get(served.link(), timeout=20)
    assert page.status_code == 200
    assert "/sign-in/" not in page.url

    under = served.process.descendants()
    assert len(under) >= 5, "Redis, web, scheduler and two workers"
    served.process.send(signal.SIGINT)
    assert served.process.wait(20), "one Ctrl-C stops it"
    _, alive = psutil.wait_procs(under, timeout=2)
    assert alive == []


def test_20_no_process_outlives_a_killed_serve_by_two_seconds(served: Served) -> None:
    served.wait()
    under = served.process.descendants()
    served.process.send(signal.SIGKILL)
    served.process.wait(5)
    _, alive = psutil.wait_procs(under, timeout=2)
    assert [process.cmdline() for process in alive] == []


def test_20_health_is_503_while_a_queue_has_no_worker(stack: Stack, cast: Cast) -> None:
    assert _status(stack) == 200
    workers = stack.workers()
    for worker in workers:
        worker.stop()
    until(lambda: _status(stack) == 503, timeout_s=60, what="503 without a worker")
    assert requests.get(f"{stack.url}/health/live", timeout=10).status_code == 200
    stack.start()
    assert _status(stack) == 200
    (ann,) = cast("ann")
    assert ann.wait(ann.submit([probe("noop", "x")])["id"])["state"] == "SUCCEEDED"


def test_20_health_is_503_without_a_scheduler(stack: Stack) -> None:
    stack.processes["scheduler"].kill()
    until(lambda: _status(stack) == 503, timeout_s=60, what="503 without a scheduler")
    stack.start()
    assert _status(stack) == 200


def test_20_health_names_each_part(stack: Stack) -> None:
    health = stack.health()
    assert health is not None
    text = health.text.lower()
    for part in ("database", "redis", "scheduler", "workers", "disk", "gpu"):
        assert part in text
    assert "ok" in text


def _status(stack: Stack) -> int:
    answer = stack.health()
    return 0 if answer is None else answer.status_code


def test_20_a_taken_port_is_told_in_a_sentence(tmp_path: Path, stack: Stack) -> None:
    env = plain_environment()
    env["LABSCHED_DATA"] = str(tmp_path)
    command = [str(REPOSITORY / "bin" / "serve"), "--port", str(stack.port)]
    began = time.monotonic()
    done = subprocess.run(
        command, env=env, capture_output=True, text=True, timeout=120, check=False
    )
    said = done.stdout + done.stderr
    assert done.returncode not in (0, None), said
    assert str(stack.port) in said
    assert "Traceback" not in said
    assert time.monotonic() - began < 60


@pytest.mark.parametrize(
    ("name", "value"),
    [("MAX_WORKERS", "0"), ("MAX_WORKERS", "many"), ("LEASE_S", "-1"), ("SWEEP_S", "soon")],
)
def test_20_a_wrong_setting_stops_the_process_with_a_sentence(
    stack: Stack, name: str, value: str
) -> None:
    env = {**stack.env, name: value}
    command = [sys.executable, "manage.py", "check"]
    done = subprocess.run(
        command, cwd=REPOSITORY, env=env, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode != 0
    last = (done.stderr + done.stdout).strip().splitlines()[-1]
    assert name in last
    assert value in last


def test_20_the_compose_file_is_valid_and_has_the_services(tmp_path: Path) -> None:
    compose = Path(sys.executable).parent / "docker-compose"
    env = {**os.environ, "HOME": str(tmp_path)}
    base = [str(compose), "-f", str(REPOSITORY / "docker-compose.yml"), "--profile", "*"]
    services = set(run([*base, "config", "--services"], env=env, timeout_s=60).split())
    wanted = [
        "api",
        "worker",
        "scheduler",
        "gpu-worker",
        "redis",
        "postgres",
        "prometheus",
        "grafana",
        "nginx",
    ]
    assert services >= set(wanted)
