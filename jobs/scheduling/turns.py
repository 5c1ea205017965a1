"""Whose turn it is: user slots go from tenants with nothing to run to those waiting longest (R4)."""

from __future__ import annotations

from collections.abc import Iterable

from django.conf import settings

from jobs import sql
from jobs.scheduling import lanes
from jobs.scheduling.slots import CAN_RUN, NEVER_SERVED, RETRY_HOLDS_SLOT_S, UserSlot

MORE_IN_LINE = 10
RUNNABLE = f"SELECT t.id FROM tenants_tenant t WHERE t.id IN ({{ids}}) AND {CAN_RUN}"
LINE = f"""
    SELECT t.id FROM tenants_tenant t WHERE t.waiting_since IS NOT NULL AND {CAN_RUN}
    ORDER BY t.waiting_since, t.id LIMIT {{places}}
"""
LOCK = "SELECT t.id FROM tenants_tenant t WHERE t.id IN ({ids}) ORDER BY t.id {held}"
ADMITTED = "SELECT t.weight, {age} FROM tenants_tenant t WHERE t.id = %s"
GIVE = "UPDATE jobs_userslot SET holder_id = %s, acquired_at = {now} WHERE number = %s"
TAKE = "UPDATE jobs_userslot SET holder_id = NULL, acquired_at = NULL WHERE number = %s"
OUT_OF_LINE = "UPDATE tenants_tenant SET waiting_since = NULL WHERE id = %s"


def settle(
    slots: list[UserSlot], active: set[int], *, somebody_waits: bool, skip_held: bool = False
) -> set[int]:
    """Take slots from tenants with nothing to run, and give them to those in line.

    slots   every user slot; changed with the rows
    active  tenants that hold leases; they keep their slot
    somebody_waits  whether some tenant is in line; if not, nobody is looked for to take a free slot
    skip_held  decide nothing about tenants whose row somebody else holds: they have their turn later

    The tenants whose turn is over while others wait: they start nothing new.
    """
    if _release(slots, active, skip_held) or somebody_waits:
        _admit(slots, skip_held)
    return draining(slots)


def draining(slots: list[UserSlot]) -> set[int]:
    """The tenants whose turn is over while others wait: they start nothing new."""
    over = {slot.holder for slot in slots if slot.turn_is_over and slot.holder is not None}
    return over if over and _line(1) else set()


def held_elsewhere(slots: list[UserSlot]) -> set[int]:
    """The slot holders whose row somebody else holds; those of the others are held from now on."""
    holders = {slot.holder for slot in slots if slot.holder is not None}
    return holders - _locked(holders, skip_held=True)


def _release(slots: list[UserSlot], active: set[int], skip_held: bool) -> set[int]:
    """Take the slots of those that have nothing to run, or whose turn is over while others wait.
    Those tenants."""
    idle = {slot.holder for slot in slots if slot.holder is not None} - active
    able = {slot.holder for slot in slots if slot.holder in idle and slot.can_run}
    # looked at again once their rows are held: a submission of theirs is either seen now, or
    # lines up after us
    going = _locked(_to_go(slots, idle, able), skip_held)
    going = _to_go(slots, going, _runnable(going))
    for slot in slots:
        if slot.holder in going:
            sql.run(TAKE, [slot.number])
            lanes.line_up(slot.holder)  # it drained, or what is left is paused: to the line's end
            slot.holder = None
    return going


def _to_go(slots: list[UserSlot], idle: set[int], able: set[int]) -> set[int]:
    over = {slot.holder for slot in slots if slot.turn_is_over and slot.holder in able}
    return idle - (able - over if over and _line(1) else able)


def _admit(slots: list[UserSlot], skip_held: bool) -> None:
    """Give the free slots to the tenants waiting longest that can run something.

    The others keep their place in the line.
    """
    free = [
        slot for slot in slots if slot.holder is None and slot.number <= settings.MAX_ACTIVE_USERS
    ]
    # those whose row is held keep their place, and the next in line takes the slot
    line = _line(len(free) + (MORE_IN_LINE if skip_held and free else 0))
    # one may have been paused, or emptied, since the line was read and before its row was held
    able = _runnable(_locked(line, skip_held))
    for slot, tenant in zip(free, [each for each in line if each in able], strict=False):
        sql.run(OUT_OF_LINE, [tenant])
        sql.run(sql.text(GIVE), [tenant, slot.number])
        _seat(slot, tenant)


def _seat(slot: UserSlot, tenant: int) -> None:
    ((weight, ago),) = sql.rows(ADMITTED.replace("{age}", sql.age("t.served_at")), [tenant])
    slot.holder, slot.held_s, slot.can_run = tenant, 0.0, True
    slot.weight, slot.served_ago_s = weight, NEVER_SERVED if ago is None else ago


def _locked(ids: Iterable[int], skip_held: bool) -> set[int]:
    """Hold the rows of these tenants. Those that are held now."""
    asked = sorted(ids)
    if not asked:
        return set()
    statement = LOCK.replace("{ids}", sql.marks(asked))
    statement = statement.replace("{held}", "{lock_free}" if skip_held else "{lock}")
    return {pk for (pk,) in sql.rows(sql.text(statement), asked)}


def _line(places: int) -> list[int]:
    if not places:
        return []
    statement = LINE.replace("{places}", str(int(places)))
    return [pk for (pk,) in sql.rows(sql.text(statement), [RETRY_HOLDS_SLOT_S])]


def _runnable(tenants: Iterable[int]) -> set[int]:
    asked = sorted(tenants)
    if not asked:
        return set()
    statement = sql.text(RUNNABLE.replace("{ids}", sql.marks(asked)))
    return {pk for (pk,) in sql.rows(statement, [*asked, RETRY_HOLDS_SLOT_S])}
