"""Which processes make one stack on this machine, from settings: exactly those of production."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from labsched.supervisor import Service

HOST = "127.0.0.1"
WEB_GRACE_S = 5  # open sockets and downloads, when the stack stops


def services(
    *, port: int, cpu_workers: int, gpu_workers: int | None, extra: Mapping[str, str]
) -> list[Service]:
    """Web, scheduler and workers; `extra` goes into the environment of each."""
    env = {**os.environ, "DJANGO_SETTINGS_MODULE": "labsched.settings", "PYTHONUNBUFFERED": "1"}
    env.update(extra)
    devices = visible_gpus()
    wanted = (len(devices) or 1) if gpu_workers is None else gpu_workers
    return [
        Service("web", web_command(port), env),
        Service("scheduler", manage("run_scheduler"), env),
        *(
            Service(f"cpu-{n}", manage("run_worker", "--queue", "cpu"), env)
            for n in range(cpu_workers)
        ),
        *(
            Service(f"gpu-{n}", manage("run_worker", "--queue", "gpu"), _on_device(env, devices, n))
            for n in range(wanted)
        ),
    ]


def manage(*arguments: str) -> list[str]:
    """The command line of one management command."""
    root = Path(__file__).resolve().parent.parent
    return [sys.executable, str(root / "manage.py"), *arguments]


def web_command(port: int) -> list[str]:
    """The web process: pages, API and websockets."""
    return [
        *(sys.executable, "-m", "uvicorn", "labsched.asgi:application"),
        *("--host", HOST, "--port", str(port), "--no-access-log", "--log-level", "warning"),
        *("--lifespan", "off", "--timeout-graceful-shutdown", str(WEB_GRACE_S)),
        "--no-proxy-headers",  # X-Forwarded-For is believed by TRUSTED_PROXIES alone
    ]


def visible_gpus() -> list[str]:
    """The GPUs that a process started here may use, asked without loading torch."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [name for name in named.split(",") if name.strip() and name.strip() != "-1"]
    smi = shutil.which("nvidia-smi")
    if smi is None:
        return []
    try:
        listed = subprocess.run(
            [smi, "-L"], capture_output=True, text=True, timeout=20, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return []
    count = sum(line.startswith("GPU ") for line in listed.stdout.splitlines())
    return [str(number) for number in range(count)]


def _on_device(env: Mapping[str, str], devices: list[str], number: int) -> Mapping[str, str]:
    """One worker sees one device; with more workers than devices they share."""
    if not devices:
        return env
    return {**env, "CUDA_VISIBLE_DEVICES": devices[number % len(devices)]}
