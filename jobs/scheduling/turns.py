"""Whose turn it is: user slots go from tenants with nothing to run to those waiting longest (R4)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from django.conf import settings

from jobs import sql
from jobs.scheduling import lanes
from jobs.scheduling.slots import UserSlot
from jobs.states import JobState

RETRY_HOLDS_SLOT_S = 30.0
NEVER_SERVED = 1e12  # seconds ago

TENANTS = """
    SELECT t.id, t.weight, {age}, t.paused FROM tenants_tenant t WHERE t.id IN ({ids})
    ORDER BY t.id {lock}
"""
# could start a job now, or within 30 s; nothing paused counts (a paused lane has no ready job)
CAN_RUN = f"""
    (NOT t.paused AND (
        EXISTS (SELECT 1 FROM jobs_job r WHERE r.tenant_id = t.id
            AND r.queue IN ({{queues}}) AND r.state = {JobState.READY:d})
        OR EXISTS (SELECT 1 FROM jobs_job w JOIN jobs_branch b ON b.id = w.branch_id
            WHERE w.tenant_id = t.id AND w.queue IN ({{queues}})
            AND w.state = {JobState.RETRY_WAIT:d} AND w.retry_at <= {{later}} AND NOT b.paused)))
"""
RUNNABLE = f"SELECT t.id FROM tenants_tenant t WHERE t.id IN ({{ids}}) AND {CAN_RUN}"
LINE = f"""
    SELECT t.id FROM tenants_tenant t WHERE t.waiting_since IS NOT NULL AND {CAN_RUN}
    ORDER BY t.waiting_since, t.id LIMIT %s
"""
GIVE = "UPDATE jobs_userslot SET holder_id = %s, acquired_at = {now} WHERE number = %s"
TAKE = "UPDATE jobs_userslot SET holder_id = NULL, acquired_at = NULL WHERE number = %s"
OUT_OF_LINE = "UPDATE tenants_tenant SET waiting_since = NULL WHERE id = %s"


class Tenant(NamedTuple):
    """What the pass needs to know of a slot holder; its row is held."""

    pk: int
    weight: int
    served_ago_s: float
    paused: bool


@dataclass
class Turns:
    """The slot holders after this settlement. `draining`: turn over, and others wait."""

    tenants: list[Tenant]
    draining: set[int]


def settle(slots: list[UserSlot], active: set[int], queues: list[str]) -> Turns:
    """Take slots from tenants with nothing to run, and give them to those in line.

    slots   every user slot; changed with the rows
    active  tenants that hold leases; they keep their slot
    queues  the names of the queues that are not paused
    """
    # the tenants first: a submission of theirs is either seen here or lines up after us
    tenants = _locked([slot.holder for slot in slots if slot.holder is not None])
    _release(slots, active, queues)
    admitted = _admit(slots, queues)
    tenants |= _locked(admitted)
    over = {slot.holder for slot in slots if slot.turn_is_over and slot.holder is not None}
    draining = over if over and _line(1, queues) else set()
    return Turns([tenants[slot.holder] for slot in slots if slot.holder in tenants], draining)


def _locked(ids: list[int]) -> dict[int, Tenant]:
    if not ids:
        return {}
    statement = TENANTS.replace("{ids}", sql.marks(ids)).replace("{age}", sql.age("t.served_at"))
    return {
        pk: Tenant(pk, weight, NEVER_SERVED if ago is None else ago, bool(paused))
        for pk, weight, ago, paused in sql.rows(sql.text(statement), ids)
    }


def _release(slots: list[UserSlot], active: set[int], queues: list[str]) -> None:
    idle = [slot for slot in slots if slot.holder is not None and slot.holder not in active]
    if not idle:
        return
    keeping = _runnable([slot.holder for slot in idle if slot.holder is not None], queues)
    for slot in idle:
        if slot.holder is None or (slot.holder in keeping and not _must_go(slot, queues)):
            continue
        sql.run(TAKE, [slot.number])
        lanes.line_up(slot.holder)  # it drained, or what is left is paused: to the line's end
        slot.holder = None


def _must_go(slot: UserSlot, queues: list[str]) -> bool:
    return slot.turn_is_over and bool(_line(1, queues))


def _admit(slots: list[UserSlot], queues: list[str]) -> list[int]:
    """Give the free slots to the tenants waiting longest that can run something.

    The others keep their place in the line. Returns who was admitted.
    """
    free = [
        slot for slot in slots if slot.holder is None and slot.number <= settings.MAX_ACTIVE_USERS
    ]
    line = _line(len(free), queues)
    # one may have been paused, or emptied, since the line was read and before its row was held
    able = _runnable(line, queues) if _locked(line) else set()
    for slot, tenant in zip(free, [each for each in line if each in able], strict=False):
        sql.run(OUT_OF_LINE, [tenant])
        sql.run(sql.text(GIVE), [tenant, slot.number])
        slot.holder, slot.held_s = tenant, 0.0
    return [tenant for tenant in line if tenant in able]


def _line(places: int, queues: list[str]) -> list[int]:
    if not places or not queues:
        return []
    return [pk for (pk,) in _ask(LINE, queues, last=[places])]


def _runnable(ids: list[int], queues: list[str]) -> set[int]:
    if not ids or not queues:
        return set()
    statement = RUNNABLE.replace("{ids}", sql.marks(ids))
    return {pk for (pk,) in _ask(statement, queues, first=ids)}


def _ask(
    statement: str,
    queues: list[str],
    *,
    first: list[int] | None = None,
    last: list[int] | None = None,
) -> list[sql.Row]:
    """Run a statement that holds CAN_RUN once."""
    prepared = sql.text(statement.replace("{queues}", sql.marks(queues)))
    values = [*(first or []), *queues, *queues, RETRY_HOLDS_SLOT_S, *(last or [])]
    return sql.rows(prepared, values)
