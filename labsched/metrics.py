"""Prometheus numbers read from rows at each scrape: right with any number of processes.

What would take all rows ever written, or no row says, the schedulers count (jobs/scheduling/tally).
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

from django.conf import settings
from django.db import DatabaseError
from django.db.models import Count, DurationField, ExpressionWrapper, F, Sum
from django.db.models.functions import Now
from prometheus_client import REGISTRY
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from jobs.models import Job, Lease, UserSlot, Worker
from jobs.models.jobs import JobQuerySet
from jobs.scheduling import tally
from jobs.states import JobState
from tenants.limiter import OTHER, limiter
from tenants.models import Tenant
from workflows import dashboard

BRANCHES = 200
"""Branches that have a series of their own, the fullest first."""

log = logging.getLogger(__name__)
Row = tuple[Any, ...]


class RowsCollector(Collector):
    """Everything that rows can tell. `describe` is empty, so that registering asks no database."""

    def describe(self) -> Iterable[Metric]:
        return []

    def collect(self) -> Iterator[Metric]:
        up = GaugeMetricFamily("labsched_database_up", "1 while the database answers.")
        try:
            kinds = _by_kind()
            names = _TenantNames(kinds)
            found = [*_counters(kinds, names), *_gauges(names), *_tallied()]
        except DatabaseError as error:
            log.warning("metrics: the database does not answer: %s", error)
            up.add_metric([], 0)
            yield up
            return
        up.add_metric([], 1)
        yield from [up, *found]


def register_collector() -> None:
    """Add the collector to the registry that /metrics exports, once."""
    if not any(isinstance(each, RowsCollector) for each in list(REGISTRY._collector_to_names)):
        REGISTRY.register(RowsCollector())


def _jobs() -> JobQuerySet:
    found: JobQuerySet = Job.objects.across_tenants("metrics count all tenants").order_by()
    return found


def _waiting() -> JobQuerySet:
    return _jobs().live().waiting()  # the words of an index: ended jobs are not looked at


# --- counters ----------------------------------------------------------------------------


def _counters(kinds: list[Row], names: _TenantNames) -> Iterator[Metric]:
    enqueued = CounterMetricFamily(
        "scheduler_jobs_enqueued", "Promotions to a worker queue.", labels=["user_id", "job_type"]
    )
    promoted = ((tenant, kind, attempts) for tenant, kind, _, _, attempts in kinds)
    for labels, value in names.summed(promoted):
        enqueued.add_metric(labels, value)
    yield enqueued
    completed = CounterMetricFamily(
        "scheduler_jobs_completed", "Jobs over.", labels=["user_id", "job_type", "state"]
    )
    ended = (
        (tenant, kind, JobState(code).public, count)
        for tenant, kind, code, count, _ in kinds
        if JobState(code).terminal
    )
    for labels, value in names.summed(ended):
        completed.add_metric(labels, value)
    yield completed
    total = CounterMetricFamily("workflow_jobs", "Jobs submitted.")
    total.add_metric([], sum(count for _, _, _, count, _ in kinds))
    yield total
    yield _rate_limited()


def _by_kind() -> list[Row]:
    """(tenant, type, state, jobs, promotions): the one look of a scrape at all jobs."""
    rows = _jobs().values_list("tenant", "job_type", "state")
    return list(rows.annotate(Count("pk"), Sum("attempt")))


def _rate_limited() -> Metric:
    """Refusals by tenant, those refused most by name. All processes count them in Redis."""
    family = CounterMetricFamily(
        "scheduler_rate_limited", "Requests refused because they came too fast.", labels=["user_id"]
    )
    counts = Counter(limiter().refusals())
    rest = counts.pop(OTHER, 0)
    named = counts.most_common(settings.METRICS_TENANT_LABELS)
    for key, count in named:
        family.add_metric([key], count)
    family.add_metric([OTHER], rest + counts.total() - sum(count for _, count in named))
    return family


class _TenantNames:
    """Tenant ids as labels: the METRICS_TENANT_LABELS with most jobs by name, the rest `other`."""

    def __init__(self, kinds: list[Row]) -> None:
        jobs: Counter[int] = Counter()
        for tenant, _, _, count, _ in kinds:
            jobs[tenant] += count
        most = sorted(jobs, key=lambda tenant: (-jobs[tenant], tenant))
        top = most[: settings.METRICS_TENANT_LABELS]
        self.keys = dict(Tenant.objects.filter(pk__in=top).values_list("pk", "key"))

    def __getitem__(self, tenant_id: int) -> str:
        return self.keys.get(tenant_id, OTHER)

    def summed(self, rows: Iterable[Row]) -> list[tuple[list[str], float]]:
        """Rows of (tenant id, labels…, value) by label, those of unnamed tenants added up."""
        sums: dict[tuple[str, ...], float] = {}
        for tenant_id, *labels, value in rows:
            key = (self[tenant_id], *map(str, labels))
            sums[key] = sums.get(key, 0) + (value or 0)
        return [(list(key), value) for key, value in sorted(sums.items())]


# --- gauges ------------------------------------------------------------------------------


def _gauges(names: _TenantNames) -> Iterator[Metric]:
    active = _jobs().live().active()
    users = active.values("tenant").distinct().count()
    yield _gauge("scheduler_pending_jobs", "Jobs that wait.", _waiting().count())
    yield _gauge("scheduler_active_users", "Tenants with queued or running jobs.", users)
    yield _gauge("active_users", "Tenants with queued or running jobs.", users)
    yield _gauge("workflow_jobs_active", "Jobs queued or running.", active.count())
    yield _gauge(
        "scheduler_user_slots_held",
        "User slots that a tenant holds.",
        UserSlot.objects.filter(holder__isnull=False).count(),
    )
    yield _gauge(
        "worker_active_jobs",
        "Workers that run a job, or help with one.",
        dashboard.workers()["busy"],
    )
    yield from _by_queue()
    yield _depth_by_branch(names)
    yield _tiles_now()
    yield from _gpu_memory()


def _gauge(name: str, text: str, value: float) -> Metric:
    family = GaugeMetricFamily(name, text)
    family.add_metric([], value)
    return family


def _by_queue() -> Iterator[Metric]:
    waiting = _waiting().values_list("queue").annotate(Count("pk"))
    yield _queue_gauge("queue_depth", "Jobs that wait, by worker queue.", dict(waiting))
    leases = Lease.objects.across_tenants("metrics count all tenants").order_by()
    held = leases.values_list("queue").annotate(Count("pk"))
    yield _queue_gauge("scheduler_leases", "Leases held, by worker queue.", dict(held))
    live = Worker.objects.live().filter(warm=True).order_by()
    warm = live.values_list("queue").annotate(Count("pk"))
    yield _queue_gauge("workers_warm", "Workers that can take a job.", dict(warm))
    oldest = (
        _waiting()
        .values_list("queue")
        .annotate(age=ExpressionWrapper(Now() - F("created_at"), output_field=DurationField()))
    )
    ages: dict[str, float] = {}
    for queue in settings.QUEUES:
        first = oldest.filter(queue=queue).order_by("created_at").first()
        ages[queue] = first[1].total_seconds() if first else 0.0
    yield _queue_gauge("queue_oldest_wait_seconds", "Age of the oldest waiting job.", ages)


def _queue_gauge(name: str, text: str, values: dict[str, float]) -> Metric:
    family = GaugeMetricFamily(name, text, labels=["queue"])
    for queue in sorted({*settings.QUEUES, *values}):
        family.add_metric([queue], values.get(queue, 0))
    return family


def _depth_by_branch(names: _TenantNames) -> Metric:
    family = GaugeMetricFamily(
        "workflow_queue_depth", "Jobs that wait, by branch.", labels=["tenant_id", "branch"]
    )
    rows = _waiting().values_list("tenant", "branch__name", "own_branch")
    sums: dict[tuple[str, str], int] = {}
    for place, (tenant, branch, own, count) in enumerate(
        rows.annotate(count=Count("pk")).order_by("-count", "tenant", "branch__name")
    ):
        # a lane of one job's own is no name that anybody chose
        shown = branch if place < BRANCHES and not own and names[tenant] != OTHER else OTHER
        key = (names[tenant], shown)
        sums[key] = sums.get(key, 0) + count
    for labels, count in sorted(sums.items()):
        family.add_metric(list(labels), count)
    return family


def _tiles_now() -> Metric:
    """As many rows as workers hold. A counter of tiles would fall when a job begins again."""
    family = GaugeMetricFamily(
        "imaging_running_tiles_per_second",
        "Tiles a second since their start of the jobs that run now.",
        labels=["job_type"],
    )
    age = ExpressionWrapper(Now() - F("job__started_at"), output_field=DurationField())
    running = Lease.objects.across_tenants("metrics count all tenants").filter(
        job__state=JobState.RUNNING.value,
        job__slide__isnull=False,
        shard=0,  # what helpers do is in the progress of the job
        attempt=F("job__progress_row__attempt"),
    )
    speeds: dict[str, float] = {}
    for kind, tiles, took in running.values_list(
        "job__job_type", "job__progress_row__tiles_done", age
    ):
        speeds[kind] = speeds.get(kind, 0) + tiles / max(took.total_seconds(), 1.0)
    for kind, speed in sorted(speeds.items()):
        family.add_metric([kind], speed)
    return family


def _gpu_memory() -> Iterator[Metric]:
    labels = ["worker", "device"]
    used = GaugeMetricFamily(
        "gpu_memory_used_bytes", "Memory in use on a worker's GPU, by anybody.", labels=labels
    )
    total = GaugeMetricFamily("gpu_memory_total_bytes", "Memory of a worker's GPU.", labels=labels)
    rows = Worker.objects.live().filter(gpu_memory_total__isnull=False).order_by("name")
    for worker in rows:
        used.add_metric([worker.name, worker.device], worker.gpu_memory_used or 0)
        total.add_metric([worker.name, worker.device], worker.gpu_memory_total or 0)
    yield used
    yield total


# --- what schedulers counted -------------------------------------------------------------


HISTOGRAMS = {
    tally.LATENCY: "From a job's last promotion to its end.",
    tally.WAIT: "From submission to the last promotion, of jobs that ended.",
    tally.PROMOTION: "From ready to promoted: what a job waited for a place, or for the scheduler.",
    tally.SWEEP: "One sweep of a scheduler: repair, promotion, dispatch.",
}
COUNTERS = {
    tally.REFUSED: "Promotions of one job that the database refused.",
    tally.TILES: "Tiles of jobs that succeeded.",
    tally.CELLS: "Cells that they found.",
    tally.BUSY: "Seconds that they ran.",
}


def _tallied() -> Iterator[Metric]:
    counts = tally.read()
    for name, text in HISTOGRAMS.items():
        yield _histogram(name, text, counts)
    for name, text in COUNTERS.items():
        family = CounterMetricFamily(name, text)
        family.add_metric([], counts.get(tally.key(name), 0))
        yield family
    yield _lease_losses(counts)


def _histogram(name: str, text: str, counts: tally.Counts) -> Metric:
    buckets = []
    running = 0.0
    for edge in [*map(tally.edge, tally.BUCKETS_S[name]), tally.MORE]:
        running += counts.get(tally.key(name, edge), 0)
        buckets.append((edge, running))
    family = HistogramMetricFamily(name, text)
    family.add_metric([], buckets, sum_value=counts.get(tally.key(name, tally.SUM), 0.0))
    return family


def _lease_losses(counts: tally.Counts) -> Metric:
    family = CounterMetricFamily(
        tally.LOSSES,
        "Leases that ran out: of RUNNING jobs with their worker, of QUEUED ones before any took it.",
        labels=["queue", "state"],
    )
    for queue in settings.QUEUES:
        for state in (JobState.QUEUED.public, JobState.RUNNING.public):
            family.add_metric([queue, state], counts.get(tally.key(tally.LOSSES, queue, state), 0))
    return family
