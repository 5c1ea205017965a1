"""A tenant whose row somebody holds for long keeps nobody else waiting (PostgreSQL).

Not on SQLite, which holds the whole database or nothing.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from django.db import connection, transaction

from jobs import events
from tenants.models import Tenant
from tests import factories
from tests.factories import workflow
from tests.jobs.scheduling.steps import promoted_keys

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
