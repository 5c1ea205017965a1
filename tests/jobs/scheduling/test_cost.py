"""Every move is told once, and a pass costs what it promotes."""

from __future__ import annotations

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from jobs.models import Event
from jobs.scheduling import promotion
from jobs.states import JobState
from tests import factories
from tests.factories import workflow
from tests.jobs.scheduling.steps import finish, start_all
from workflows.models import Workflow

pytestmark = pytest.mark.django_db


def test_events_number_every_move_without_gaps() -> None:
    user = factories.tenant()
    workflow(user, [factories.job("a", "main"), factories.job("b", "main")])
    for _ in range(2):
        finish(*start_all()[0])
    rows = list(Event.objects.for_tenant(user).order_by("seq"))
    assert [row.seq for row in rows] == list(range(1, len(rows) + 1))
    told = [(row.job.key, JobState(row.state).public) for row in rows if row.job and row.state]
    assert told == [(key, state) for key in "ab" for state in ("QUEUED", "RUNNING", "SUCCEEDED")]


def queries_of_a_pass(waiting: int) -> int:
    flow = workflow(
        factories.tenant(), [factories.job(f"j{n}", f"b{n % 10}") for n in range(waiting)]
    )
    with CaptureQueriesContext(
        connection,
    ) as seen:
        promotion.promote()
    Workflow.objects.across_tenants("test").filter(pk=flow.pk).delete()
    promotion.promote()  # takes the slot back
    return len(seen)


def test_a_pass_costs_what_it_promotes_and_not_what_waits() -> None:
    assert queries_of_a_pass(20) == queries_of_a_pass(400)
