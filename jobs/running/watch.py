"""When a running job must be stopped from outside. Pure: moments in, a verdict out.

Every moment is on one machine's monotonic clock, so a wrong wall clock changes nothing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum

FENCE_GRACE_S = 2.0  # a child that lost its job stops by itself within this


class Verdict(StrEnum):
    """Why the child is killed; a closed list."""

    STALLED = "stalled"
    TIMEOUT = "timeout"
    CANCELLED = "cancelled"
    LEASE_LOST = "lease_lost"
    FENCED = "fenced"
    HANDED_BACK = "handed_back"


@dataclass(frozen=True)
class Limits:
    """The bounds of one job, in seconds. timeout_s: infinite when the job names none."""

    lease_s: float
    stall_s: float
    cancel_grace_s: float
    stop_grace_s: float
    timeout_s: float = math.inf
    fence_grace_s: float = FENCE_GRACE_S


@dataclass
class Watch:
    """One attempt under way: what its worker knows of it.

    renewed_at      when the last renewal that succeeded was begun
    cancel_asked_at  when a person asked to cancel
    fenced_at       when a renewal said that the job is no longer ours
    stop_seen_at    when the worker itself was asked to end
    """

    limits: Limits
    began_at: float
    renewed_at: float
    cancel_asked_at: float = math.inf
    fenced_at: float = math.inf
    stop_seen_at: float = math.inf

    def deadlines(self, beat_at: float) -> dict[Verdict, float]:
        """When each verdict falls, the weightier first where two fall together."""
        bounds = self.limits
        return {
            Verdict.LEASE_LOST: self.renewed_at + bounds.lease_s * 2 / 3,
            Verdict.FENCED: self.fenced_at + bounds.fence_grace_s,
            Verdict.CANCELLED: self.cancel_asked_at + bounds.cancel_grace_s,
            Verdict.TIMEOUT: self.began_at + bounds.timeout_s,
            Verdict.STALLED: max(self.began_at, beat_at) + bounds.stall_s,
            Verdict.HANDED_BACK: self.stop_seen_at + bounds.stop_grace_s,
        }

    def verdict(self, now: float, beat_at: float) -> Verdict | None:
        """The verdict that has fallen, or None while the job may go on."""
        fallen = (why for why, at in self.deadlines(beat_at).items() if at <= now)
        return next(fallen, None)

    def pause_s(self, now: float, beat_at: float) -> float:
        """How long nothing can fall: the wait until somebody has to look again."""
        return max(0.0, min(self.deadlines(beat_at).values()) - now)
