"""A tenant whose row somebody holds for long keeps nobody else waiting (PostgreSQL).

Not on SQLite, which holds the whole database or nothing.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from django.db import connection, transaction

from jobs import events, services
from jobs.models import Job
from jobs.scheduling import slots
from jobs.scheduling.sweep import sweep
from jobs.states import JobState, Reason
from tenants.models import Tenant
from tests import factories
from tests.factories import workflow
from tests.jobs.scheduling.steps import promoted_keys, start_all

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.postgres]


@contextmanager
def _held(tenant: Tenant) -> Iterator[None]:
    """The row of `tenant` is held by a transaction of another thread."""
    held, done = threading.Event(), threading.Event()

    def hold() -> None:
        try:
            with transaction.atomic():
                events.lock(tenant.pk)
                held.set()
                done.wait(20)
        finally:
            connection.close()

    thread = threading.Thread(target=hold)
    thread.start()
    try:
        assert held.wait(10)
        yield
    finally:
        done.set()
        thread.join(10)


def test_the_pass_goes_on_without_it_and_takes_it_up_afterwards() -> None:
    factories.capacity()
    busy, other = factories.tenant(), factories.tenant()
    workflow(busy, [factories.job("of-the-held")])
    workflow(other, [factories.job("of-another")])
    with _held(busy):
        assert promoted_keys() == ["of-another"]
    assert promoted_keys() == ["of-the-held"]


def test_a_slot_holder_whose_row_is_held_keeps_its_slot() -> None:
    factories.capacity()
    busy, other = factories.tenant(), factories.tenant()
    workflow(busy, [factories.job("first")])
    assert promoted_keys() == ["first"]
    workflow(busy, [factories.job("second")])
    workflow(other, [factories.job("of-another")])
    with _held(busy):
        assert promoted_keys() == ["of-another"]
    assert promoted_keys() == ["second"]


def test_a_free_slot_goes_to_the_next_in_line(settings: Any) -> None:
    settings.MAX_ACTIVE_USERS = 1
    slots.seed()
    busy, other = factories.tenant(), factories.tenant()
    workflow(busy, [factories.job("of-the-held")])
    workflow(other, [factories.job("of-another")])
    with _held(busy):
        assert promoted_keys() == ["of-another"]


def test_a_sweep_goes_on_to_the_others(settings: Any) -> None:
    settings.RETRY_BACKOFF_S = 0.05
    busy, other = factories.tenant(), factories.tenant()
    workflow(busy, [factories.job("fails-once"), factories.job("runs")])
    first, _ = start_all()
    assert services.fail(*first, Reason.ERROR, "on purpose")
    workflow(other, [factories.job("of-another")])
    time.sleep(0.2)
    with _held(busy):
        sweep()
    jobs = Job.objects.across_tenants("test")
    assert jobs.get(key="of-another").state == JobState.QUEUED
    sweep()
    assert jobs.get(key="fails-once").state == JobState.QUEUED
