"""How labsched/settings.py turns environment variables into values; wrong ones stop the process."""

from __future__ import annotations

from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from typing import Any

import environ
from django.core.exceptions import ImproperlyConfigured

SQLITE_PRAGMAS = (
    "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL; PRAGMA busy_timeout=20000; "
    "PRAGMA mmap_size=134217728; PRAGMA journal_size_limit=27103364; PRAGMA cache_size=-20000;"
)


# a process that was stopped, or lost its network, in the middle of a transaction must not hold up
# the whole lab: the server ends it, and who waits for a lock gives up and tries again
SESSION = "-c idle_in_transaction_session_timeout=15s -c lock_timeout=10s"
PREPARED_AFTER = 3  # executions of the same statement on one connection


def bounded_float(
    env: environ.Env, name: str, default: float, *, low: float, high: float | None = None
) -> float:
    """The number in variable `name`, or a sentence that says what it may be."""
    text = env(name, default=str(default))
    try:
        value = float(text)
    except ValueError:
        raise ImproperlyConfigured(f"{name} is {text!r}: give a number.") from None
    if not value >= low or (high is not None and value > high):
        upper = "" if high is None else f" and at most {high:g}"
        raise ImproperlyConfigured(f"{name} is {text}: it must be at least {low:g}{upper}.")
    return value


def bounded_int(
    env: environ.Env, name: str, default: int, *, low: int, high: int | None = None
) -> int:
    """The whole number in variable `name`, or a sentence that says what it may be."""
    value = bounded_float(env, name, default, low=low, high=high)
    if value != int(value):
        raise ImproperlyConfigured(f"{name} is {value}: give a whole number.")
    return int(value)


def optional_int(env: environ.Env, name: str, *, low: int) -> int | None:
    """Like bounded_int, None where the variable is not set."""
    return bounded_int(env, name, low, low=low) if env(name, default="") else None


def optional_networks(env: environ.Env, name: str) -> tuple[IPv4Network | IPv6Network, ...]:
    """The comma-separated addresses and networks in variable `name`."""
    try:
        return tuple(ip_network(text.strip()) for text in env.list(name, default=[]))
    except ValueError as error:
        raise ImproperlyConfigured(
            f"{name}: {error}. Give addresses or networks, such as 10.0.0.7 or 172.16.0.0/12."
        ) from None


def secret_key(env: environ.Env, data: Path, *, debug: bool) -> str:
    """DJANGO_SECRET_KEY, else the one `bin/serve` keeps in the data folder."""
    kept = data / "secret"
    if value := env("DJANGO_SECRET_KEY", default=""):
        return str(value)
    if kept.is_file() and (value := kept.read_text().strip()):
        return value
    if debug:
        return "labsched-debug-only-not-a-secret"
    raise ImproperlyConfigured(
        "DJANGO_SECRET_KEY is not set. Start with bin/serve or bin/demo, which make one in "
        f"{kept}, or set DJANGO_SECRET_KEY to a long random text."
    )


def database(env: environ.Env, data: Path) -> dict[str, Any]:
    """DATABASE_URL, else SQLite in the data folder. SQLite runs in WAL with IMMEDIATE writes."""
    url = env("DATABASE_URL", default="")
    config: dict[str, Any] = (
        dict(env.db_url_config(url))
        if url
        else {"ENGINE": "sqlite3", "NAME": str(data / "db.sqlite3")}
    )
    if config["ENGINE"].endswith("sqlite3"):
        Path(config["NAME"]).parent.mkdir(parents=True, exist_ok=True)
        config["ENGINE"] = "labsched.sqlite3"
        # a deferred transaction that reads, then writes, fails at once with "database is locked"
        config["OPTIONS"] = {
            "transaction_mode": "IMMEDIATE",
            "timeout": 20,
            "init_command": SQLITE_PRAGMAS,
        }
        config["TEST"] = {"NAME": str(data / "test.sqlite3")}
    else:
        config["CONN_HEALTH_CHECKS"] = True
        # each transaction may get another connection, which knows no cursor of the one before
        config["DISABLE_SERVER_SIDE_CURSORS"] = env.bool("DATABASE_POOLED", default=False)
        config["OPTIONS"] = {**config.get("OPTIONS", {}), **_prepared(env)}
    config["CONN_MAX_AGE"] = 60
    config["ATOMIC_REQUESTS"] = False
    return config


def _prepared(env: environ.Env) -> dict[str, Any]:
    """Statements are planned once a connection, which halves what a pass costs PostgreSQL."""
    if env.bool("DATABASE_POOLED", default=False):
        return {}  # each transaction may get another connection
    return {
        "server_side_binding": True,
        "prepare_threshold": PREPARED_AFTER,
        "options": SESSION,
        "keepalives_idle": 10,
        "keepalives_interval": 5,
        "keepalives_count": 3,
        "tcp_user_timeout": 20_000,
    }


def redis_url(env: environ.Env, data: Path) -> str:
    """REDIS_URL, else the address of the embedded server of this data folder."""
    if url := env("REDIS_URL", default=""):
        return str(url)
    embedded = data / "redis" / "url"
    if embedded.is_file() and (kept := embedded.read_text().strip()):
        return kept
    return "redis://127.0.0.1:6379/0"


def storages(env: environ.Env, data: Path, *, debug: bool) -> dict[str, Any]:
    """Artifacts in the data folder, or in S3-compatible storage by STORAGE_URL=s3://bucket/prefix."""
    static = "django.contrib.staticfiles.storage.StaticFilesStorage"
    if not debug:
        static = "django.contrib.staticfiles.storage.ManifestStaticFilesStorage"
    artifacts: dict[str, Any] = {
        "BACKEND": "django.core.files.storage.FileSystemStorage",
        "OPTIONS": {"location": str(data)},
    }
    if url := env("STORAGE_URL", default=""):
        options = s3_options("STORAGE_URL", str(url))
        artifacts = {"BACKEND": "labsched.s3.RangedS3Storage", "OPTIONS": options}
    return {"default": artifacts, "staticfiles": {"BACKEND": static}}


def slides_bucket(env: environ.Env) -> dict[str, str] | None:
    """Where SLIDES_URL=s3://bucket/prefix has slides; None where it is not set."""
    url = env("SLIDES_URL", default="")
    return s3_options("SLIDES_URL", str(url)) if url else None


def s3_options(name: str, url: str) -> dict[str, str]:
    """Bucket and prefix of `s3://bucket/prefix`; keys and endpoint come from AWS's own variables."""
    scheme, _, rest = url.partition("://")
    bucket, _, prefix = rest.partition("/")
    if scheme != "s3" or not bucket:
        raise ImproperlyConfigured(f"{name} is {url!r}: give s3://bucket or s3://bucket/prefix.")
    return {"bucket_name": bucket, "location": prefix.strip("/")}
