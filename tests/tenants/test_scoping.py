"""The two doors: no evaluating method of a queryset runs without one."""

from __future__ import annotations

import pathlib
import re

import pytest
from django.db.models import Count, Q, QuerySet

from jobs.models import Branch, Event, Job
from tenants.models import Tenant
from tenants.scoping import TenantNotNamed, TenantQuerySet
from tests import factories
from workflows.models import Workflow

pytestmark = pytest.mark.django_db

# how to call every method that reaches the database; the rest only builds a query
EVALUATING = {
    "aggregate": lambda rows: rows.aggregate(n=Count("pk")),
    "count": lambda rows: rows.count(),
    "contains": lambda rows: rows.contains(Branch(pk=1)),
    "dates": lambda rows: list(rows.dates("tenant__created_at", "year")),
    "datetimes": lambda rows: list(rows.datetimes("tenant__created_at", "year")),
    "delete": lambda rows: rows.delete(),
    "earliest": lambda rows: rows.earliest("pk"),
    "exists": lambda rows: rows.exists(),
    "explain": lambda rows: rows.explain(),
    "first": lambda rows: rows.first(),
    "get": lambda rows: rows.get(pk=1),
    "get_or_create": lambda rows: rows.get_or_create(name="x"),
    "in_bulk": lambda rows: rows.in_bulk([1]),
    "iterator": lambda rows: list(rows.iterator()),
    "last": lambda rows: rows.last(),
    "latest": lambda rows: rows.latest("pk"),
    "update": lambda rows: rows.update(paused=True),
    "update_or_create": lambda rows: rows.update_or_create(name="x"),
    "bulk_update": lambda rows: rows.bulk_update([Branch(pk=1, name="x")], ["name"]),
    "raw": lambda rows: list(rows.raw("SELECT * FROM jobs_branch")),
    "values": lambda rows: list(rows.values()),
    "values_list": lambda rows: list(rows.values_list("pk")),
    "union": lambda rows: list(rows.union(rows)),
    "intersection": lambda rows: list(rows.intersection(rows)),
    "difference": lambda rows: list(rows.difference(rows)),
    "_raw_delete": lambda rows: rows._raw_delete("default"),
    "_update": lambda rows: rows.update(paused=False),
    "__len__": len,
    "__iter__": list,
    "__bool__": bool,
    "__getitem__": lambda rows: rows[0],
    "__repr__": repr,
    "__or__": lambda rows: rows | rows,
    "__and__": lambda rows: rows & rows,
    "__xor__": lambda rows: rows ^ rows,
}
BUILDING = {
    "across_tenants", "alias", "all", "annotate", "as_manager", "bulk_create", "complex_filter", "create", "db",
    "defer", "distinct", "exclude", "extra", "filter", "for_tenant", "none", "only", "order_by",
    "ordered", "prefetch_related", "query", "resolve_expression", "reverse", "select_for_update",
    "select_related", "using", "totally_ordered",
}  # fmt: skip


@pytest.mark.parametrize("method", sorted(EVALUATING))
def test_no_method_reaches_the_database_without_a_door(method: str) -> None:
    with pytest.raises(TenantNotNamed):
        EVALUATING[method](Branch.objects.all())


def test_every_public_queryset_method_is_known_to_this_test() -> None:
    twins = {name[1:] for name in dir(QuerySet) if name.startswith("a")}  # aget calls get
    public = {name for name in dir(TenantQuerySet) if not name.startswith("_")}
    public = {name for name in public if not (name.startswith("a") and name[1:] in public | twins)}
    known = set(EVALUATING) | BUILDING | {"model"}
    assert public - known == set()


def test_a_subquery_without_a_door_is_refused() -> None:
    with pytest.raises(TenantNotNamed):
        list(Tenant.objects.filter(pk__in=Job.objects.values("tenant")))


def test_for_tenant_shows_only_the_rows_of_that_tenant() -> None:
    ann, bob = factories.tenant(), factories.tenant()
    mine = Branch.objects.create(tenant=ann, name="main")
    Branch.objects.create(tenant=bob, name="main")
    assert list(Branch.objects.for_tenant(ann)) == [mine]
    assert Branch.objects.across_tenants("test").count() == 2


@pytest.mark.parametrize("nobody", [None, Tenant(key="unsaved")])
def test_nobody_is_an_error_and_never_everybody(nobody: Tenant | None) -> None:
    with pytest.raises(TenantNotNamed):
        Branch.objects.for_tenant(nobody)


def test_two_tenants_rows_can_not_be_combined() -> None:
    ann, bob = factories.tenant(), factories.tenant()
    with pytest.raises(TenantNotNamed):
        Branch.objects.for_tenant(ann) | Branch.objects.for_tenant(bob)


def test_a_filter_after_the_door_keeps_it() -> None:
    ann, bob = factories.tenant(), factories.tenant()
    Branch.objects.create(tenant=bob, name="main")
    rows = Branch.objects.for_tenant(ann).filter(Q(name="main") | Q(paused=False))
    assert not rows.exists()


def test_related_rows_pass_because_their_parent_came_through_a_door() -> None:
    ann = factories.tenant()
    flow = factories.workflow(ann, [])
    assert list(flow.jobs.all()) == []
    assert list(Workflow.objects.for_tenant(ann).prefetch_related("jobs")) == [flow]


def test_an_empty_reason_opens_no_door() -> None:
    with pytest.raises(TenantNotNamed):
        Event.objects.across_tenants(" ")


# each names its reason beside the call: the rules rank all tenants together, services name one
# locked job, the sweep serves all, operators see all, totals are of all, and the rows of an
# unsaved tenant are none
ALLOWED = {
    "jobs/blobs.py", "jobs/blocks.py", "jobs/details.py", "jobs/events.py",
    "jobs/publishing.py", "jobs/retrying.py", "jobs/services.py",
    "jobs/running/artifacts.py", "jobs/running/progress.py",
    "jobs/scheduling/estimate.py", "jobs/scheduling/lanes.py",
    "jobs/scheduling/leases.py", "jobs/scheduling/line.py",
    "jobs/scheduling/slots.py", "jobs/scheduling/sweep.py", "jobs/scheduling/tally.py",
    "labsched/metrics.py", "tenants/api.py", "tenants/pages.py", "tenants/readonly.py",
    "tenants/scoping.py", "workflows/dashboard.py", "workflows/idempotency.py", "workflows/progress.py",
}  # fmt: skip


def test_only_these_files_may_look_across_tenants() -> None:
    root = pathlib.Path(__file__).resolve().parents[2]
    said = {
        path.relative_to(root).as_posix()
        for app in ("labsched", "realtime", "workflows", "jobs", "tenants")
        for path in (root / app).rglob("*.py")
        if re.search(r"\bacross_tenants\(", path.read_text())
    }
    assert said == ALLOWED
