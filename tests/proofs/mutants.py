"""One broken rule each: how a scheduler could be wrong. The proofs must notice every one of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from jobs import events, moves, services
from jobs.scheduling import dispatch, lanes, promotion, turns

Patch = pytest.MonkeyPatch
Mutant = Callable[[Patch], None]


def _swap(module: Any, name: str, old: str, new: str) -> Mutant:
    """Replace a part of a statement. Raises when the statement has no such part any more."""

    def apply(patch: Patch) -> None:
        statement = getattr(module, name)
        assert old in statement, f"{name} reads otherwise now: mend this mutant"
        patch.setattr(module, name, statement.replace(old, new))

    return apply


def _put(owner: Any, name: str, value: Any) -> Mutant:
    return lambda patch: patch.setattr(owner, name, value)


def _both(first: Mutant, second: Mutant) -> Mutant:
    def apply(patch: Patch) -> None:
        first(patch)
        second(patch)

    return apply


def _no_wake_after_a_failure(patch: Patch) -> None:
    original = services._end_failed

    def end(*args: Any, **options: Any) -> None:
        with pytest.MonkeyPatch.context() as inner:
            inner.setattr(lanes, "raise_heads", lambda *_, **__: None)
            original(*args, **options)

    patch.setattr(services, "_end_failed", end)


def _priority_ignored(patch: Patch) -> None:
    original = promotion.plan

    def blind(holders: Any, candidates: Any, room: Any) -> Any:
        candidates = list(candidates)
        by_job = {each.job: each for each in candidates}
        flat = [replace(each, priority=0) for each in candidates]
        return [by_job[each.job] for each in original(holders, flat, room)]

    patch.setattr(promotion, "plan", blind)


def _numbers_skipped(patch: Patch) -> None:
    original = events._take_numbers

    def take(tenant: int, count: int, **options: Any) -> int:
        return original(tenant, count + 1, **options)

    patch.setattr(events, "_take_numbers", take)


MUTANTS: dict[str, Mutant] = {
    "a late success is believed": _swap(moves, "SUCCEED", "attempt = %s", "attempt >= %s"),
    "a late failure is believed": _put(
        moves.Standing, "is_attempt", lambda self, attempt: self.state.active
    ),
    "a start is accepted twice": _swap(moves, "START", "state = 3", "state IN (3, 4)"),
    # two statements name the attempt: one of them alone is still enough
    "a late start is accepted": _both(
        _swap(moves, "START", "attempt = %s", "attempt >= %s"),
        _swap(moves, "TAKE_LEASE", "attempt = %s", "attempt >= %s"),
    ),
    "a cancelled job succeeds": _swap(moves, "SUCCEED", "AND cancel_requested_at IS NULL", ""),
    "helpers outlive their job": _swap(
        moves, "DROP_LEASES", "job_id = %s", "job_id = %s AND shard = 0"
    ),
    "leases are kept": _swap(moves, "DROP_LEASES", "job_id = %s", "job_id = -%s"),
    "a lost job goes to its lane's end": _swap(
        moves, "PUT_BACK", "SET state", "SET sequence = sequence + 1000000, state"
    ),
    "a user slot is released early": _put(turns, "_to_go", lambda slots, idle, able: idle),
    "a turn never ends": _put(turns.UserSlot, "turn_is_over", False),
    "admission by id": _swap(turns, "LINE", "ORDER BY t.waiting_since, t.id", "ORDER BY t.id"),
    "dependencies are ignored": _swap(lanes, "RAISE", "AND upstream_left = 0", ""),
    "the last of a lane first": _swap(
        lanes, "RAISE", "ORDER BY f.sequence LIMIT", "ORDER BY f.sequence DESC LIMIT"
    ),
    "one head a lane is ignored": _swap(
        lanes, "RAISE", "AND h.state >=", "AND h.state < 0 AND h.state >="
    ),
    "upstream jobs are not counted down": _swap(
        lanes, "RELEASE", "upstream_left - 1", "upstream_left - 0"
    ),
    "dependents of a failed job wait on": _put(lanes, "end_dependents", lambda job: ([], set())),
    "no wake after a failure": _no_wake_after_a_failure,
    "nobody lines up": _put(lanes, "line_up", lambda tenant: None),
    "priority is ignored": _priority_ignored,
    "a lost message stays lost": _swap(dispatch, "OVERDUE", "worker = ''", "worker = '-'"),
    "event numbers have holes": _numbers_skipped,
}
