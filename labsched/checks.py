"""System checks for unsafe or contradictory settings (ids labsched.E001…, W001…)."""

from __future__ import annotations

import ipaddress
import zipfile
from pathlib import Path
from typing import Any

from django.conf import settings
from django.core import checks


def register_all() -> None:
    """Register every check of this module."""
    for check in (header_trust, debug_in_public, limits, sqlite_on_many_hosts, probe_jobs, model):
        checks.register(check)


def _loopback_only() -> bool:
    return all(_is_loopback(host.strip("[]")) for host in settings.ALLOWED_HOSTS)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def header_trust(**_: Any) -> list[checks.CheckMessage]:
    """X-User-ID may be believed on loopback, or behind a proxy that sets it."""
    if not settings.TRUST_USER_HEADER or settings.DEBUG or _loopback_only():
        return []
    return [
        checks.Warning(
            "TRUST_USER_HEADER is on and ALLOWED_HOSTS admits other machines: anyone who reaches "
            "this port can act for every tenant.",
            hint="Turn it off, or let a proxy that signs people in set X-User-ID and drop the "
            "client's own.",
            id="labsched.W001",
        )
    ]


def debug_in_public(**_: Any) -> list[checks.CheckMessage]:
    """DEBUG shows tracebacks and settings."""
    if not settings.DEBUG or _loopback_only():
        return []
    return [
        checks.Error(
            "DJANGO_DEBUG is on and ALLOWED_HOSTS admits other machines.",
            hint="Turn DJANGO_DEBUG off.",
            id="labsched.E001",
        )
    ]


def limits(**_: Any) -> list[checks.CheckMessage]:
    """Limits that contradict each other."""
    found: list[checks.CheckMessage] = []
    if settings.CPU_WORKERS > settings.MAX_WORKERS:
        found.append(
            checks.Warning(
                f"CPU_WORKERS ({settings.CPU_WORKERS}) is more than MAX_WORKERS "
                f"({settings.MAX_WORKERS}): the rest stays idle.",
                hint="Raise MAX_WORKERS or start fewer workers.",
                id="labsched.W002",
            )
        )
    if settings.WITHDRAW_S < 3 * settings.SWEEP_S:
        found.append(
            checks.Error(
                "WITHDRAW_S is under three sweeps: jobs would be taken back before a worker sees "
                "them.",
                hint="Raise WITHDRAW_S or lower SWEEP_S.",
                id="labsched.E002",
            )
        )
    return found


def sqlite_on_many_hosts(**_: Any) -> list[checks.CheckMessage]:
    """SQLite is for one machine."""
    sqlite = settings.DATABASES["default"]["ENGINE"].endswith("sqlite3")
    if not sqlite or _is_loopback(settings.REDIS_URL.split("//")[-1].split("@")[-1].split(":")[0]):
        return []
    return [
        checks.Warning(
            "The database is SQLite, but Redis is on another machine.",
            hint="Set DATABASE_URL to PostgreSQL where workers run on several machines.",
            id="labsched.W003",
        )
    ]


def probe_jobs(**_: Any) -> list[checks.CheckMessage]:
    """Probe jobs are for tests and benchmarks."""
    if not settings.LABSCHED_ENABLE_PROBE_JOBS or settings.DEBUG or _loopback_only():
        return []
    return [
        checks.Warning(
            "LABSCHED_ENABLE_PROBE_JOBS is on: anyone who may submit can occupy workers at will.",
            hint="Unset it in production.",
            id="labsched.W004",
        )
    ]


def model(**_: Any) -> list[checks.CheckMessage]:
    """A model that was asked for must be there. Whether it is InstanSeg, a worker finds out."""
    if not settings.INSTANSEG_MODEL:
        return []
    path = Path(settings.INSTANSEG_MODEL)
    if path.is_file() and zipfile.is_zipfile(path):  # as torch.jit.save writes it
        return []
    fault = "no TorchScript file" if path.is_file() else "no file"
    return [
        checks.Error(
            f"INSTANSEG_MODEL names {path}, which is {fault}.",
            hint="Give the path of an InstanSeg TorchScript file, or unset it to use the published "
            "weights.",
            id="labsched.E003",
        )
    ]
