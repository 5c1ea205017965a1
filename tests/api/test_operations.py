"""What operators and their tools ask: health, metrics, the schema, the content policy."""

from __future__ import annotations

import re
from typing import Any

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from drf_spectacular.drainage import GENERATOR_STATS
from drf_spectacular.generators import SchemaGenerator
from drf_spectacular.validation import validate_schema
from prometheus_client.parser import text_string_to_metric_families
from rest_framework.test import APIClient

from jobs import services
from jobs.scheduling import promotion
from labsched import health, metrics
from tests import factories
from tests.api.conftest import People

pytestmark = pytest.mark.django_db
PROMISED = {
    "scheduler_jobs_enqueued_total",
    "scheduler_jobs_completed_total",
    "scheduler_pending_jobs",
    "scheduler_active_users",
    "workflow_jobs_total",
    "workflow_jobs_active",
    "workflow_queue_depth",
    "job_latency_seconds_count",
    "active_users",
    "worker_active_jobs",
    "queue_depth",
}


@pytest.fixture
def plain() -> APIClient:
    return APIClient()


# --- health --------------------------------------------------------------------------------


def test_live_says_that_the_process_answers(plain: APIClient) -> None:
    for path in ("/health/live", "/health/live/"):
        assert plain.get(path).json() == {"status": "ok"}


def test_health_names_every_part_and_fails_without_redis(plain: APIClient, settings: Any) -> None:
    settings.REDIS_URL = "redis://127.0.0.1:1/0"
    health._redis_client.cache_clear()
    answer = plain.get("/health")
    health._redis_client.cache_clear()
    found = answer.json()
    assert answer.status_code == 503
    assert set(found["checks"]) == {"database", "redis", "scheduler", "workers", "disk", "gpu"}
    assert found["checks"]["database"]["status"] == "ok"
    assert found["checks"]["redis"]["status"] == "failed"
    assert found["checks"]["scheduler"]["status"] == "failed"
    assert all(check["detail"] for check in found["checks"].values())


@pytest.mark.parametrize(
    ("cpu", "gpu", "wanted", "status"),
    [(1, 1, None, "ok"), (1, 0, None, "failed"), (0, 1, None, "failed"), (1, 0, 0, "degraded")],
)
def test_every_queue_needs_a_warm_worker(
    settings: Any, cpu: int, gpu: int, wanted: int | None, status: str
) -> None:
    settings.GPU_WORKERS = wanted
    factories.capacity(cpu, gpu)
    assert health._workers().status == status


# --- metrics -------------------------------------------------------------------------------


def samples(plain: APIClient) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    text = plain.get("/metrics").content.decode()
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def total(found: dict[Any, float], name: str) -> float:
    return sum(value for (sample, _), value in found.items() if sample == name)


def test_metrics_agree_with_the_dashboard(plain: APIClient, people: People, capacity: None) -> None:
    jobs = [factories.job("a", "x"), factories.job("b", "x"), factories.job("c", "y")]
    flow = factories.workflow(people.lab, jobs)
    promoted = promotion.promote()
    for pk, attempt in promoted[:1]:
        services.start(pk, attempt, "cpu-0")
        services.succeed(pk, attempt, artifacts=[], summary={})
    found = samples(plain)
    dashboard = people.client("token").get("/api/metrics/dashboard").json()
    assert {name for name, _ in found} >= PROMISED
    assert total(found, "scheduler_active_users") == dashboard["active_users"] == 1
    assert total(found, "queue_depth") == dashboard["jobs"]["PENDING"] == 1
    assert total(found, "workflow_queue_depth") == total(found, "scheduler_pending_jobs") == 1
    assert total(found, "workflow_jobs_active") == 1
    assert total(found, "workflow_jobs_total") == 3
    assert total(found, "scheduler_jobs_enqueued_total") == len(promoted) == 2
    ended = (("job_type", "probe"), ("state", "SUCCEEDED"), ("user_id", "lab"))
    assert found["scheduler_jobs_completed_total", ended] == 1
    assert total(found, "job_latency_seconds_count") == 1
    assert found["workflow_queue_depth", (("branch", "x"), ("tenant_id", "lab"))] == 1
    assert flow.pk


def test_tenants_beyond_the_bound_are_counted_together(plain: APIClient, settings: Any) -> None:
    settings.METRICS_TENANT_LABELS = 2
    for number in range(5):
        owner = factories.tenant(f"t{number}")
        jobs = [factories.job(f"j{n}", f"b{n}") for n in range(number + 1)]
        factories.workflow(owner, jobs)
    found = samples(plain)
    named = {
        dict(labels).get("tenant_id") for name, labels in found if name == "workflow_queue_depth"
    }
    assert named == {"t3", "t4", "other"}
    assert total(found, "workflow_queue_depth") == 15


def test_metrics_are_zero_when_nothing_was_done(plain: APIClient) -> None:
    found = samples(plain)
    for name in ("scheduler_pending_jobs", "active_users", "queue_depth", "worker_active_jobs"):
        assert total(found, name) == 0


def test_more_jobs_cost_a_scrape_no_more_queries(people: People) -> None:
    def cost(jobs: int) -> int:
        factories.workflow(people.lab, [factories.job(f"j{n}") for n in range(jobs)])
        with CaptureQueriesContext(connection) as queries:
            list(metrics.RowsCollector().collect())
        return len(queries)

    assert cost(1) == cost(20)


def test_registering_asks_no_database() -> None:
    assert list(metrics.RowsCollector().describe()) == []


def test_a_token_closes_the_metrics(plain: APIClient, settings: Any) -> None:
    settings.METRICS_TOKEN = "secret"
    assert plain.get("/metrics").status_code == 401
    for text in ("Bearer wrong", "Bearer é", "secret", "Bearer"):
        assert APIClient(HTTP_AUTHORIZATION=text).get("/metrics").status_code == 401
    assert APIClient(HTTP_AUTHORIZATION="Bearer secret").get("/metrics").status_code == 200


# --- schema and docs -----------------------------------------------------------------------


def test_the_schema_is_whole_and_made_without_a_warning() -> None:
    GENERATOR_STATS.reset()
    schema = SchemaGenerator().get_schema(request=None, public=True)
    validate_schema(schema)
    assert not GENERATOR_STATS, "drf-spectacular warned"
    assert all(path.startswith("/api/") and not path.endswith("/") for path in schema["paths"])
    assert {"get", "post"} <= set(schema["paths"]["/api/workflows"])


def test_answers_have_the_fields_that_the_schema_names(people: People, capacity: None) -> None:
    schema = SchemaGenerator().get_schema(request=None, public=True)["components"]["schemas"]
    client = people.client("token")
    body = {"name": "n", "jobs": [factories.job("a")]}
    made = client.post("/api/workflows", body).json()
    assert set(made) == set(schema["Workflow"]["properties"])
    assert set(made["jobs"][0]) == set(schema["Job"]["properties"])
    job = client.get(f"/api/jobs/{made['jobs'][0]['id']}").json()
    assert set(job) == set(schema["WholeJob"]["properties"])
    row = client.get("/api/workflows").json()["results"][0]
    assert set(row) == set(schema["WorkflowState"]["properties"])
    dashboard = client.get("/api/metrics/dashboard").json()
    assert set(dashboard) == set(schema["Dashboard"]["properties"])


@pytest.mark.parametrize("path", ["/docs", "/docs/", "/redoc", "/api/schema/", "/api/schema"])
def test_the_docs_load_nothing_from_another_host(plain: APIClient, path: str) -> None:
    answer = plain.get(path)
    assert answer.status_code == 200
    assert not re.findall(rb'(?:src|href)="(?:https?:)?//', answer.content)
    assert "default-src 'self'" in answer.headers["Content-Security-Policy"]


def test_only_django_rq_may_have_scripts_in_its_pages(plain: APIClient) -> None:
    for path in ("/api/workflows", "/docs", "/docs?script", "/redoc", "/admin/login/", "/sign-in/"):
        policy = plain.get(path).headers["Content-Security-Policy"]
        assert "default-src 'self'" in policy
        assert "http" not in policy
        assert "script-src" not in policy, "scripts fall under default-src"
    assert "script-src" in plain.get("/admin/django-rq/").headers["Content-Security-Policy"]
    assert "unsafe" not in plain.get("/sign-in/").headers["Content-Security-Policy"]
