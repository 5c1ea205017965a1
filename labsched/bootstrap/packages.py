"""The virtual environment and the pip commands that fill it; skipped while the pins are unchanged."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import platform
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

from labsched.bootstrap.console import Progress, Trouble, say
from labsched.bootstrap.places import Places, make_folder, require_space

RUN = ("constraints.txt", "requirements.txt")
DEV = (*RUN, "requirements-dev.txt")
INSTALL_GB = 4  # CPU builds: 1.8 GB installed and 0.7 GB downloaded

NO_NETWORK = re.compile(
    r"Failed to establish a new connection|Temporary failure in name resolution|Name or service not"
    r"|Network is unreachable|Connection refused|NewConnectionError|ConnectTimeout|ReadTimeout"
    r"|ProxyError|SSLError|Max retries exceeded"
)


def install(places: Places, *, dev: bool) -> bool:
    """Make `.venv` hold the pinned packages. Returns whether anything had to be done."""
    ready = _runs(places.python)
    if ready and _stamp(places).is_file() and _is_current(places, dev=dev):
        return False
    require_space(places.repo, gigabytes=INSTALL_GB, purpose="installing the Python packages")
    if not ready:
        _make_venv(places)
    wanted = DEV if dev else RUN
    pip(places, ["install", "-r", wanted[-1]], title="Python packages (torch is the large one)")
    _stamp(places).write_text("\n".join(_digests(places, dev=dev)) + "\n")
    return True


def pip(places: Places, arguments: Sequence[str], *, title: str) -> None:
    """Run pip in `.venv` with progress; its whole output is kept in the set-up log."""
    command = [str(places.python), "-m", "pip", *arguments, "--no-input"]
    make_folder(places.log.parent)
    with places.scratch() as scratch, Progress(title) as progress, places.log.open("a") as log:
        log.write(f"$ pip {' '.join(arguments)}\n")
        environment = os.environ | {"TMPDIR": str(scratch), "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
        with subprocess.Popen(
            command,
            cwd=places.repo,
            env=environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        ) as process:
            lines = [_follow(line, log=log, progress=progress) for line in process.stdout or ()]
    if process.returncode:
        raise explain("".join(lines), log=places.log)


def explain(output: str, *, log: Path) -> Trouble:
    """The sentence for a pip that failed, from what it printed."""
    again = "then run the same command again: what was downloaded is kept."
    if "No space left on device" in output:
        return Trouble(
            "The disk is full.",
            f"Free about {INSTALL_GB} GB, 10 GB where pip takes torch for CUDA, {again}",
        )
    if "DO NOT MATCH THE HASHES" in output:
        return Trouble(
            "A downloaded package is not the one this project pins, so it was not used.",
            "Run the same command again; if it happens twice, ask who runs your package index.",
        )
    if NO_NETWORK.search(output):
        return Trouble(
            "The Python package index could not be reached.",
            f"Check the network (or HTTPS_PROXY, or pip's own settings), {again}",
        )
    if missing := re.search(r"No matching distribution found for (\S+)", output):
        return Trouble(
            f"No build of {missing[1]} was found for Python {platform.python_version()} on "
            f"{platform.system()} {platform.machine()}.",
            "Check the network and pip's own settings; if they are well, delete .venv and set PYTHON "
            "to a Python 3.11, 3.12 or 3.13.",
        )
    errors = [line for line in output.splitlines() if line.startswith("ERROR:")]
    last = (errors or output.splitlines() or ["it said nothing"])[-1]
    return Trouble(f"pip stopped: {last}", f"Its whole output is in {log}; solve that, {again}")


def _follow(line: str, *, log: TextIO, progress: Progress) -> str:
    log.write(line)
    progress.note = _in_short(line.split()) or progress.note
    return line


def _in_short(words: Sequence[str]) -> str:
    """What pip does now, from one line of its output; empty where it says nothing new."""
    match words:
        case ["Collecting", name, *_]:
            return f"collecting {name}"
        case ["Downloading", file, size, unit] if not file.endswith(".metadata"):
            return f"downloading {'-'.join(file.split('-')[:2])} {size} {unit}"
        case ["Installing", "collected", "packages:", *names]:
            return f"installing {len(names)} packages"
    return ""


def _make_venv(places: Places) -> None:
    if importlib.util.find_spec("ensurepip") is None:
        raise Trouble(
            "This Python cannot make virtual environments (its ensurepip is missing).",
            "On Debian and Ubuntu: sudo apt install python3-venv, then run the same command again.",
        )
    say(f"Making .venv with Python {platform.python_version()}")
    command = [sys.executable, "-m", "venv", "--clear", str(places.venv)]
    made = subprocess.run(command, capture_output=True, text=True, check=False)
    if made.returncode:
        output = made.stdout + made.stderr
        raise Trouble(
            f"The virtual environment could not be made: {(output.splitlines() or ['?'])[-1]}",
            "On Debian and Ubuntu: sudo apt install python3-venv; elsewhere check this folder's disk.",
        )


def _runs(python: Path) -> bool:
    """Whether the venv's interpreter and its pip still work (an upgraded Python breaks both)."""
    if Path(sys.prefix) == python.parent.parent:  # already running inside it
        return importlib.util.find_spec("pip") is not None
    if not python.exists():
        return False
    command = [str(python), "-c", "import pip, sys; sys.exit(sys.version_info < (3, 11))"]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def _stamp(places: Places) -> Path:
    return places.venv / "labsched-stamp"


def _digests(places: Places, *, dev: bool) -> list[str]:
    """One line a set; the set for tests contains the run set, so it stands for both."""
    return [_digest(places, files) for files in ((RUN, DEV) if dev else (RUN,))]


def _is_current(places: Places, *, dev: bool) -> bool:
    return _digests(places, dev=dev)[-1] in _stamp(places).read_text().split("\n")


def _digest(places: Places, files: Sequence[str]) -> str:
    texts = [(places.repo / name).read_bytes() for name in files]
    return f"{files[-1]} {hashlib.sha256(b''.join(texts)).hexdigest()}"
