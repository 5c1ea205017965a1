"""Prometheus numbers counted from rows at each scrape: right with any number of processes."""

from __future__ import annotations

import datetime as dt
import logging
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

from django.conf import settings
from django.db import DatabaseError
from django.db.models import Case, Count, DurationField, ExpressionWrapper, F, Sum, Value, When
from django.db.models.functions import Now
from prometheus_client import REGISTRY
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from jobs.models import Job, JobProgress, Lease, UserSlot, Worker
from jobs.models.jobs import JobQuerySet
from jobs.states import FIRST_TERMINAL, JobState
from tenants.limiter import OTHER, limiter
from tenants.models import Tenant
from workflows import dashboard

BUCKETS_S = (0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800, 3600, 7200, 21600)
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
            found = [*_counters(), *_gauges(), *_durations()]
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


# --- counters ----------------------------------------------------------------------------


def _counters() -> Iterator[Metric]:
    names = _TenantNames()
    enqueued = CounterMetricFamily(
        "scheduler_jobs_enqueued", "Promotions to a worker queue.", labels=["user_id", "job_type"]
    )
    rows = _jobs().values_list("tenant", "job_type").annotate(Sum("attempt"))
    for labels, value in names.summed(rows):
        enqueued.add_metric(labels, value)
    yield enqueued
    completed = CounterMetricFamily(
        "scheduler_jobs_completed", "Jobs over.", labels=["user_id", "job_type", "state"]
    )
    ended = _jobs().ended().values_list("tenant", "job_type", "state").annotate(Count("pk"))
    named = ((tenant, kind, JobState(code).public, count) for tenant, kind, code, count in ended)
    for labels, value in names.summed(named):
        completed.add_metric(labels, value)
    yield completed
    total = CounterMetricFamily("workflow_jobs", "Jobs submitted.")
    total.add_metric([], _jobs().count())
    yield total
    yield _rate_limited()


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

    def __init__(self) -> None:
        most = settings.METRICS_TENANT_LABELS
        rows = (
            _jobs().values_list("tenant").annotate(count=Count("pk")).order_by("-count", "tenant")
        )
        top = [tenant for tenant, _ in rows[:most]] if most else []
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


def _gauges() -> Iterator[Metric]:
    active = _jobs().active()
    users = active.values("tenant").distinct().count()
    yield _gauge("scheduler_pending_jobs", "Jobs that wait.", _jobs().waiting().count())
    yield _gauge("scheduler_active_users", "Tenants with queued or running jobs.", users)
    yield _gauge("active_users", "Tenants with queued or running jobs.", users)
    yield _gauge("workflow_jobs_active", "Jobs queued or running.", active.count())
    yield _gauge(
        "scheduler_user_slots_held",
        "User slots that a tenant holds.",
        UserSlot.objects.filter(holder__isnull=False).count(),
    )
    yield _gauge("worker_active_jobs", "Jobs that a worker holds.", dashboard.workers()["busy"])
    yield from _by_queue()
    yield _depth_by_branch()


def _gauge(name: str, text: str, value: float) -> Metric:
    family = GaugeMetricFamily(name, text)
    family.add_metric([], value)
    return family


def _by_queue() -> Iterator[Metric]:
    waiting = _jobs().waiting().values_list("queue").annotate(Count("pk"))
    yield _queue_gauge("queue_depth", "Jobs that wait, by worker queue.", dict(waiting))
    leases = Lease.objects.across_tenants("metrics count all tenants").order_by()
    held = leases.values_list("queue").annotate(Count("pk"))
    yield _queue_gauge("scheduler_leases", "Leases held, by worker queue.", dict(held))
    live = Worker.objects.live().filter(warm=True).order_by()
    warm = live.values_list("queue").annotate(Count("pk"))
    yield _queue_gauge("workers_warm", "Workers that can take a job.", dict(warm))
    oldest = (
        _jobs()
        .waiting()
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


def _depth_by_branch() -> Metric:
    family = GaugeMetricFamily(
        "workflow_queue_depth", "Jobs that wait, by branch.", labels=["tenant_id", "branch"]
    )
    names = _TenantNames()
    rows = _jobs().waiting().values_list("tenant", "branch__name", "own_branch")
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


# --- durations ---------------------------------------------------------------------------


def _durations() -> Iterator[Metric]:
    ended = _jobs().filter(state__gte=int(FIRST_TERMINAL), queued_at__isnull=False)
    yield _histogram(
        "job_latency_seconds",
        "From a job's last promotion to its end.",
        ended,
        F("finished_at") - F("queued_at"),
    )
    yield _histogram(
        "job_wait_seconds",
        "From submission to the last promotion.",
        _jobs().filter(queued_at__isnull=False),
        F("queued_at") - F("created_at"),
    )
    tiles = JobProgress.objects.across_tenants("metrics count all tenants")
    done = CounterMetricFamily("imaging_tiles", "Tiles done.")
    done.add_metric([], tiles.aggregate(done=Sum("tiles_done"))["done"] or 0)
    yield done


def _histogram(name: str, text: str, jobs: JobQuerySet, span: Any) -> Metric:
    """Durations counted by the database into buckets."""
    took = ExpressionWrapper(span, output_field=DurationField())
    edges = [dt.timedelta(seconds=edge) for edge in BUCKETS_S]
    bucket = Case(
        *(When(took__lte=edge, then=Value(place)) for place, edge in enumerate(edges)),
        default=Value(len(edges)),
    )
    counts = [0] * (len(edges) + 1)
    total = 0.0
    rows = jobs.annotate(took=took).annotate(bucket=bucket).values_list("bucket")
    for place, count, spent in rows.annotate(Count("pk"), Sum("took")):
        counts[place] = count
        total += spent.total_seconds()
    family = HistogramMetricFamily(name, text)
    labels = [*(str(float(edge)) for edge in BUCKETS_S), "+Inf"]
    running = 0
    buckets = []
    for label, count in zip(labels, counts, strict=True):
        running += count
        buckets.append((label, float(running)))
    family.add_metric([], buckets, sum_value=total)
    return family
