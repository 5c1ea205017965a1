"""What tests of the rules do step by step: promote, start, finish; the house they run in."""

from __future__ import annotations

from typing import Any

from jobs import services
from jobs.models import Job
from jobs.scheduling import promotion
from jobs.states import JobState
from tests import factories


def small_house(settings: Any) -> None:
    """The defaults of the acceptance scenarios, whatever this machine's environment says."""
    settings.LABSCHED_ENABLE_PROBE_JOBS = True
    settings.MAX_WORKERS = 4
    settings.MAX_ACTIVE_USERS = 3
    settings.ACTIVE_USER_QUANTUM_S = 0
    settings.RETRY_BACKOFF_S = 2
    factories.capacity()


def start_all() -> list[tuple[int, int]]:
    """Promote and start what the rules allow. Returns (job, attempt) of each."""
    promoted = promotion.promote()
    for pk, attempt in promoted:
        assert services.start(pk, attempt, "cpu-0") is not None
    return promoted


def finish(pk: int, attempt: int) -> bool:
    return services.succeed(pk, attempt, artifacts=[], summary={})


def running() -> list[str]:
    rows = Job.objects.across_tenants("test").filter(state=JobState.RUNNING.value)
    return sorted(rows.values_list("key", flat=True))


def promoted_keys() -> list[str]:
    ids = [pk for pk, _ in promotion.promote()]
    found = Job.objects.across_tenants("test").in_bulk(ids)
    return [found[pk].key for pk in ids]
