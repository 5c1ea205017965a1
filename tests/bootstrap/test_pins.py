"""What set-up downloads is pinned, hashed and named without an address."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from django.conf import settings

from labsched.bootstrap import assets, frontend
from labsched.bootstrap.places import sha256
from tests.bootstrap.conftest import REPOSITORY

REQUIREMENTS = sorted(REPOSITORY.glob("requirements*.txt"))
PIN = re.compile(r"^([A-Za-z0-9._-]+)(\[[a-z,]+\])?==([0-9][A-Za-z0-9.]*)$")


def pins(file: Path) -> dict[str, str]:
    """Name to version of a requirements file; every line must be an exact pin."""
    found = {}
    text = file.read_text().replace("\\\n", "")
    for raw in text.splitlines():
        line = raw.split("#")[0].split(" --hash")[0].strip()
        if not line or line.startswith(("-c ", "-r ")):
            continue
        match = PIN.match(line)
        assert match, f"{file.name}: {raw!r} is not an exact pin"
        found[re.sub(r"[-_.]+", "-", match[1]).lower()] = match[3]
    return found


@pytest.mark.parametrize("file", REQUIREMENTS, ids=lambda file: file.name)
def test_every_requirement_is_an_exact_public_version(file: Path) -> None:
    assert pins(file)


@pytest.mark.parametrize("name", ["requirements.txt", "requirements-dev.txt"])
def test_the_constraints_hold_the_same_versions(name: str) -> None:
    held = pins(REPOSITORY / "constraints.txt")
    wanted = pins(REPOSITORY / name)
    assert {package: held.get(package) for package in wanted} == wanted


def test_torch_and_instanseg_are_installed_by_one_command() -> None:
    assert {"torch", "instanseg-torch"} <= set(pins(REPOSITORY / "requirements.txt"))


def test_redis_py_stays_below_8_while_channels_redis_is_4_3() -> None:
    wanted = pins(REPOSITORY / "requirements.txt")
    assert wanted["channels-redis"].startswith("4.3.")
    assert int(wanted["redis"].split(".")[0]) < 8


@pytest.mark.parametrize("name", ["requirements-assets.txt", "requirements-node.txt"])
def test_what_is_unpacked_is_downloaded_by_hash(name: str) -> None:
    text = (REPOSITORY / name).read_text()
    assert len(re.findall(r"--hash=sha256:[0-9a-f]{64}\b", text)) >= len(pins(REPOSITORY / name))


def test_the_npm_lock_has_hashes_and_no_addresses() -> None:
    wanted = json.loads((REPOSITORY / "package.json").read_text())["dependencies"]
    lock = json.loads((REPOSITORY / "package-lock.json").read_text())["packages"]
    packages = {path: package for path, package in lock.items() if path}
    assert all(re.fullmatch(r"\d+\.\d+\.\d+", version) for version in wanted.values())
    assert {
        path.removeprefix("node_modules/"): p["version"] for path, p in packages.items()
    } == wanted
    for package in packages.values():
        assert package["integrity"].startswith("sha512-")
        assert "resolved" not in package


def test_no_set_up_file_names_a_registry() -> None:
    names = [*REQUIREMENTS, REPOSITORY / "constraints.txt", *(REPOSITORY / "bin").iterdir()]
    names += [REPOSITORY / "Dockerfile", REPOSITORY / ".ci" / "run"]
    for file in names:
        text = file.read_text()
        assert not re.search(r"index-url|find-links|--registry|trusted-host", text), file.name
        assert not re.search(r"https?://(?!127\.0\.0\.1|localhost)", text), file.name


@pytest.mark.parametrize("member", assets.MEMBERS, ids=lambda member: member.target)
def test_the_cache_holds_the_pinned_bytes(member: assets.Member) -> None:
    assert sha256(settings.LABSCHED_CACHE / member.target) == member.sha256


@pytest.mark.parametrize("file", frontend.FILES, ids=lambda file: file.target)
def test_the_browser_libraries_are_the_pinned_ones_with_their_licences(
    file: frontend.VendorFile,
) -> None:
    vendor = REPOSITORY / "static" / "vendor"
    assert frontend.digest(vendor / file.target) == file.sha256
    assert list((vendor / file.package).glob("LICENSE*"))


def test_no_third_party_file_is_committed() -> None:
    ignored = (REPOSITORY / ".gitignore").read_text().splitlines()
    assert {"/static/vendor/", "/node_modules/", "/var/", "/.venv/"} <= set(ignored)
