"""The deployment files parse, agree with each other, and use metrics that exist."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from django.test import Client

from tests.bootstrap.conftest import REPOSITORY

DEPLOY = REPOSITORY / "deploy"
COMPOSE = Path(sys.executable).parent / "docker-compose"
SERVICES = {
    "api",
    "worker",
    "scheduler",
    "gpu-worker",
    "redis",
    "postgres",
    "prometheus",
    "grafana",
}
PORTS = {"8000", "6379", "9090", "3000"}
FUNCTIONS = {
    *("max", "sum", "avg", "by", "on", "and", "rate", "increase", "topk", "histogram_quantile"),
    *("queue", "user_id", "job_type", "state", "instance", "le", "worker", "device"),
}


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    """docker-compose.yml as Compose itself understands it, with every profile."""
    command = [str(COMPOSE), "--profile", "gpu", "--profile", "nginx", "config", "--format", "json"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_compose_has_every_service_and_port(compose: dict[str, Any]) -> None:
    services = compose["services"]
    assert {*SERVICES, "nginx"} <= set(services)
    published = {p["published"] for s in services.values() for p in s.get("ports", [])}
    assert published >= PORTS
    assert services["gpu-worker"]["profiles"] == ["gpu"]
    assert services["nginx"]["profiles"] == ["nginx"]


def test_compose_opens_nothing_but_nginx_to_the_network(compose: dict[str, Any]) -> None:
    for name, service in compose["services"].items():
        for port in service.get("ports", []):
            assert name == "nginx" or port["host_ip"] == "127.0.0.1", name


def test_workers_can_be_scaled(compose: dict[str, Any]) -> None:
    for name in ("worker", "cell-worker", "gpu-worker"):
        assert "container_name" not in compose["services"][name]
        assert "ports" not in compose["services"][name]


def test_what_compose_mounts_from_here_is_there(compose: dict[str, Any]) -> None:
    binds = [v for s in compose["services"].values() for v in s.get("volumes", [])]
    sources = [Path(bind["source"]) for bind in binds if bind["type"] == "bind"]
    assert sources
    assert all(source.exists() for source in sources)


def test_the_verify_script_says_that_all_is_well() -> None:
    script = REPOSITORY / "verify-docker-setup.sh"
    done = subprocess.run([str(script)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "docker-compose.yml is valid" in done.stdout


@pytest.mark.parametrize("file", sorted(DEPLOY.rglob("*.yml")), ids=lambda file: file.name)
def test_yaml_files_parse(file: Path) -> None:
    assert yaml.safe_load(file.read_text())


@pytest.mark.django_db
def test_alerts_and_panels_ask_for_metrics_that_are_exported() -> None:
    exported = set(re.findall(r"^# TYPE (\S+)", Client().get("/metrics").content.decode(), re.M))
    known = exported | {f"{name}_{end}" for name in exported for end in ("bucket", "sum", "count")}
    known |= {"up"}
    asked = {name for text in _expressions() for name in _metrics(text)}
    assert {name for name in asked if not name.startswith("node_")} <= known


def _expressions() -> list[str]:
    groups = yaml.safe_load((DEPLOY / "prometheus" / "rules.yml").read_text())["groups"]
    board = json.loads((DEPLOY / "grafana" / "dashboards" / "labsched.json").read_text())
    return [rule["expr"] for group in groups for rule in group["rules"]] + [
        target["expr"] for panel in board["panels"] for target in panel["targets"]
    ]


def _metrics(expression: str) -> set[str]:
    bare = re.sub(r"\{[^}]*\}|\[[^\]]*\]", "", expression)
    return set(re.findall(r"[A-Za-z_][A-Za-z0-9_]*", bare)) - FUNCTIONS


@pytest.mark.parametrize(
    "unit", sorted((DEPLOY / "systemd").glob("*.service")), ids=lambda u: u.name
)
def test_units_run_commands_that_exist(unit: Path) -> None:
    text = unit.read_text()
    commands = set(re.findall(r"manage\.py (\w+)", text)) | set(re.findall(r"-m (\w+)", text))
    assert commands <= {"run_scheduler", "run_worker", "migrate", "collectstatic", "uvicorn"}
    assert commands
    assert "EnvironmentFile=/etc/labsched/labsched.env" in text


def test_nginx_hides_the_trusted_header_and_the_metrics() -> None:
    text = (DEPLOY / "nginx" / "labsched.conf").read_text()
    assert 'proxy_set_header X-User-ID "";' in text
    assert "location = /metrics" in text
    assert "proxy_set_header Upgrade $http_upgrade;" in text


def test_shell_scripts_parse() -> None:
    bash = shutil.which("bash")
    assert bash
    scripts = [*(REPOSITORY / "bin").iterdir(), REPOSITORY / ".ci" / "run"]
    for script in [*scripts, REPOSITORY / "verify-docker-setup.sh"]:
        done = subprocess.run([bash, "-n", str(script)], capture_output=True, check=False)
        assert done.returncode == 0, script
