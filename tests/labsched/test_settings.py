"""Settings: wrong ones stop with a sentence, unsafe ones are told, all of them are documented."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import environ
import pytest

from labsched import checks, environment

ROOT = Path(__file__).resolve().parents[2]


def check(tmp_path: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """`manage.py check` with these variables and none of this machine's."""
    env = {"PATH": os.environ["PATH"], "LABSCHED_DATA": str(tmp_path), "DJANGO_SECRET_KEY": "x"}
    return subprocess.run(
        [sys.executable, "manage.py", "check"],
        cwd=ROOT,
        env={**env, **variables},
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("MAX_WORKERS", "many", "MAX_WORKERS is 'many': give a number"),
        ("MAX_WORKERS", "0", "MAX_WORKERS is 0: it must be at least 1"),
        ("MAX_WORKERS", "2.5", "MAX_WORKERS is 2.5: give a whole number"),
        ("LEASE_S", "nan", "LEASE_S is nan: it must be at least 1"),
        ("STORAGE_URL", "ftp://x", "STORAGE_URL is 'ftp://x': give s3://bucket"),
        ("SLIDES_URL", "s3://", "SLIDES_URL is 's3://': give s3://bucket"),
        ("INSTANSEG_MODEL", "/nowhere.pt", "INSTANSEG_MODEL names /nowhere.pt, which is no file"),
    ],
)
def test_a_wrong_value_stops_with_a_sentence(
    tmp_path: Path, name: str, value: str, sentence: str
) -> None:
    result = check(tmp_path, **{name: value})
    assert result.returncode != 0
    assert sentence in result.stderr


def test_a_missing_secret_says_how_to_get_one(tmp_path: Path) -> None:
    result = check(tmp_path, DJANGO_SECRET_KEY="")
    assert result.returncode != 0
    assert "Start with bin/serve or bin/demo" in result.stderr


def test_the_defaults_have_no_fault(tmp_path: Path) -> None:
    result = check(tmp_path)
    assert (result.returncode, "no issues" in result.stdout) == (0, True), result.stderr


@pytest.mark.parametrize("pooled", [False, True])
def test_behind_a_pooler_nothing_outlives_its_transaction(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pooled: bool
) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgres://lab@127.0.0.1:1/lab")
    monkeypatch.setenv("DATABASE_POOLED", "1" if pooled else "0")
    config = environment.database(environ.Env(), tmp_path)
    assert config["DISABLE_SERVER_SIDE_CURSORS"] is pooled
    assert ("prepare_threshold" in config["OPTIONS"]) is not pooled


PUBLIC = ["labsched.example.org"]


@pytest.mark.parametrize(
    ("found_by", "values", "identifier"),
    [
        (checks.header_trust, {"TRUST_USER_HEADER": True, "ALLOWED_HOSTS": PUBLIC}, "W001"),
        (checks.debug_in_public, {"DEBUG": True, "ALLOWED_HOSTS": PUBLIC}, "E001"),
        (checks.limits, {"CPU_WORKERS": 9, "MAX_WORKERS": 4}, "W002"),
        (checks.limits, {"WITHDRAW_S": 1.0, "SWEEP_S": 1.0}, "E002"),
        (
            checks.sqlite_on_many_hosts,
            {"REDIS_URL": "redis://:pw@queue.example.org:6379/0"},
            "W003",
        ),
        (
            checks.probe_jobs,
            {"LABSCHED_ENABLE_PROBE_JOBS": True, "ALLOWED_HOSTS": PUBLIC, "DEBUG": False},
            "W004",
        ),
        (checks.model, {"INSTANSEG_MODEL": "/nowhere.pt"}, "E003"),
    ],
)
def test_an_unsafe_or_contradictory_setting_is_told(
    settings: Any,
    monkeypatch: pytest.MonkeyPatch,
    found_by: Any,
    values: dict[str, Any],
    identifier: str,
) -> None:
    monkeypatch.setitem(settings.DATABASES["default"], "ENGINE", "django.db.backends.sqlite3")
    for name, value in values.items():
        setattr(settings, name, value)
    found = found_by()
    assert f"labsched.{identifier}" in [message.id for message in found]
    assert all(message.hint for message in found)


def test_every_variable_is_documented_and_no_other() -> None:
    source = (ROOT / "labsched/settings.py").read_text() + (
        ROOT / "labsched/environment.py"
    ).read_text()
    read = set(re.findall(r'env(?:\.\w+)?\(\s*(?:env, )?"([A-Z][A-Z0-9_]+)"', source))
    read |= set(re.findall(r'(?:bounded_|optional_)\w+\(env, "([A-Z0-9_]+)"', source))
    told = set(re.findall(r"^\| `([A-Z0-9_]+)`", (ROOT / "docs/settings.md").read_text(), re.M))
    assert read == told
