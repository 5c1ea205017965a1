"""The test of the tests: each broken rule is noticed by the state machine over the rows."""

from __future__ import annotations

import pytest
from hypothesis import Phase, settings
from hypothesis.errors import HypothesisException
from hypothesis.stateful import run_state_machine_as_test

from tests.proofs.machine import Rows
from tests.proofs.mutants import MUTANTS
from tests.proofs.test_rows import HISTORY

HUNT = settings(HISTORY, max_examples=200, stateful_step_count=40, phases=[Phase.generate])

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.django_db(transaction=True),
    pytest.mark.usefixtures("small_house"),
]


@pytest.mark.parametrize("name", MUTANTS)
def test_a_broken_rule_is_noticed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    MUTANTS[name](monkeypatch)
    noticed = hunt()
    print(f"{name}: {noticed}")
    assert noticed


def hunt() -> str:
    """What the state machine says of the rules as they are now: empty when it finds nothing."""
    try:
        run_state_machine_as_test(Rows, settings=HUNT)
    except HypothesisException as error:
        # a history that races may fail once and pass when it is played again: it failed all the same
        inner: tuple[Exception, ...] = getattr(error, "exceptions", ())
        if not inner:
            raise
        return repr(inner[0])
    except Exception as error:
        return repr(error)
    return ""
