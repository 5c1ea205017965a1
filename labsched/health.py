"""Whether this installation can do its work: each part ok, degraded or failed, within two seconds."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import redis
from django.conf import settings
from django.db import DatabaseError, connection
from django.http import HttpRequest, JsonResponse
from django.utils import timezone
from django.views.decorators.cache import never_cache
from redis.backoff import NoBackoff
from redis.retry import Retry

from jobs.models import Queue, Worker
from jobs.scheduling import heartbeat

OK, DEGRADED, FAILED = "ok", "degraded", "failed"
COLD = "cold: "  # how a worker's row begins to say why it takes no job
TIMEOUT_S = 1.0
SILENT_S = 15.0
"""A scheduler that finished no pass for this long is missing."""
LOW_DISK, FULL_DISK = 2 << 30, 200 << 20
VITAL = ("database", "redis", "scheduler", "workers")
"""What nothing works without: /health is 503 when one of these failed."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Finding:
    """How one part stands, and a sentence about it."""

    status: str
    detail: str


@never_cache
def live(request: HttpRequest) -> JsonResponse:
    """200: the process answers."""
    return JsonResponse({"status": OK})


@never_cache
def health(request: HttpRequest) -> JsonResponse:
    """Every part's status; 503 when something vital failed."""
    found = findings()
    statuses = [finding.status for name, finding in found.items() if name != "gpu"]
    worst = FAILED if FAILED in statuses else DEGRADED if DEGRADED in statuses else OK
    failed = any(found[name].status == FAILED for name in VITAL)
    body = {"status": worst, "checks": {name: vars(each) for name, each in found.items()}}
    response = JsonResponse(body, status=503 if failed else 200)
    # whoever asks while the stack starts asks twice a second: no log line each
    response._has_been_logged = True  # type: ignore[attr-defined]
    return response


def findings() -> dict[str, Finding]:
    """How each part stands now."""
    return {name: _guarded(name, check) for name, check in CHECKS.items()}


def _guarded(name: str, check: Callable[[], Finding]) -> Finding:
    """What `check` finds; when it can not even look, that is the finding."""
    try:
        return check()
    except (DatabaseError, redis.RedisError, OSError) as error:
        log.warning("health of %s: %s", name, error)
        return Finding(FAILED, f"It does not answer: {type(error).__name__}.")


def _database() -> Finding:
    with connection.cursor() as cursor:
        cursor.execute("SELECT 1")
    return Finding(OK, f"{connection.vendor} answers.")


@cache
def _redis_client() -> redis.Redis:
    return redis.Redis.from_url(
        settings.REDIS_URL,
        socket_connect_timeout=TIMEOUT_S,
        socket_timeout=TIMEOUT_S,
        retry=Retry(NoBackoff(), 0),  # the default tries for eight seconds
    )


def _redis() -> Finding:
    _redis_client().ping()
    return Finding(OK, "Redis answers.")


def _scheduler() -> Finding:
    _redis_client().ping()  # first, with our short timeout
    last = heartbeat.last_pass()
    if last is None:
        return Finding(FAILED, "No scheduler has finished a pass: start `manage.py run_scheduler`.")
    silent_s = (timezone.now() - last).total_seconds()
    if silent_s > max(SILENT_S, 10 * settings.SWEEP_S):
        return Finding(
            FAILED, f"No scheduler finished a pass for {silent_s:.0f} s: look at its log."
        )
    return Finding(OK, f"Last pass {max(0.0, silent_s):.1f} s ago.")


def _workers() -> Finding:
    """Every queue needs a warm worker; one that this installation does not serve only degrades."""
    warm = dict.fromkeys(settings.QUEUES, 0)
    cold = dict(warm)
    for queue, is_warm in Worker.objects.live().values_list("queue", "warm"):
        counts = warm if is_warm else cold
        counts[queue] = counts.get(queue, 0) + 1
    counts_said = ", ".join(f"{name}: {count}" for name, count in warm.items())
    missing = [name for name in settings.QUEUES if not warm[name]]
    if not missing:
        return Finding(OK, f"Warm workers of each queue: {counts_said}.")
    status = FAILED if any(_served(name) for name in missing) else DEGRADED
    warming = [name for name in missing if cold[name]]
    if cold_ones := _cold_because(warming):
        return Finding(status, f"{cold_ones} ({counts_said}).")
    if warming:
        return Finding(status, f"Workers of {', '.join(warming)} are warming up ({counts_said}).")
    return Finding(
        status,
        f"No worker of {', '.join(missing)} ({counts_said}): start `manage.py run_worker --queue "
        f"{missing[0]}`.",
    )


def _cold_because(queues: list[str]) -> str:
    """What keeps workers of these queues from getting warm, in their own words; else nothing."""
    rows = Worker.objects.live().filter(queue__in=queues, device__startswith=COLD)
    said = rows.values_list("device", flat=True).first()
    return f"A worker takes no job: {said.removeprefix(COLD)}" if said else ""


def _served(queue: str) -> bool:
    """Whether somebody expects workers of this queue here."""
    if queue == "gpu" and settings.GPU_WORKERS == 0:
        return False
    return not Queue.objects.filter(name=queue, capacity=0).exists()


def _disk() -> Finding:
    free = shutil.disk_usage(settings.LABSCHED_DATA).free
    said = f"{free / (1 << 30):.1f} GiB free for results."
    if free < FULL_DISK:
        return Finding(FAILED, f"{said} Delete old workflows or enlarge the disk.")
    return Finding(DEGRADED if free < LOW_DISK else OK, said)


def _gpu() -> Finding:
    devices = set(
        Worker.objects.live().filter(queue="gpu", warm=True).values_list("device", flat=True)
    )
    cards = sorted(device for device in devices if device and not device.lower().startswith("cpu"))
    if cards:
        return Finding(OK, f"Cells are segmented on {', '.join(cards)}.")
    return Finding(DEGRADED, "No GPU is in use: cells are segmented on the CPU, which is slower.")


CHECKS: dict[str, Callable[[], Finding]] = {
    "database": _database,
    "redis": _redis,
    "scheduler": _scheduler,
    "workers": _workers,
    "disk": _disk,
    "gpu": _gpu,
}
