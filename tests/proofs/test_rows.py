"""The state machine over the real database: on SQLite, and on PostgreSQL with schedulers that truly race."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.proofs.machine import Rows

# the same histories in every run, so that a failure of CI is a failure here
HISTORY = settings(
    derandomize=True,
    print_blob=True,
    database=None,
    deadline=None,
    report_multiple_bugs=False,
    suppress_health_check=list(HealthCheck),
)

pytestmark = [
    pytest.mark.proof,
    pytest.mark.django_db(transaction=True),
    pytest.mark.usefixtures("small_house"),
]


@pytest.mark.timeout(600)
def test_no_history_breaks_a_rule() -> None:
    run_state_machine_as_test(
        Rows, settings=settings(HISTORY, max_examples=40, stateful_step_count=30)
    )


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_no_history_of_many_breaks_a_rule() -> None:
    many = settings(
        HISTORY, derandomize=False, max_examples=300, stateful_step_count=50, phases=list(Phase)
    )
    run_state_machine_as_test(Rows, settings=many)
