"""What the jobs of a workflow add up to. Pure."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Counts:
    """The jobs of one workflow by where they stand; `moved` ones were promoted or ended before."""

    total: int = 0
    live: int = 0
    succeeded: int = 0
    failed: int = 0
    cancelled: int = 0
    moved: int = 0
    live_progress: float = 0.0  # the sum over the live jobs


def state_of(counts: Counts, before: str = "PENDING") -> str:
    """FAILED if any job failed, else CANCELLED if any was, else SUCCEEDED, once none is live.

    before  the stored state: what was once more than PENDING never is PENDING again
    """
    if counts.total == 0:
        return "PENDING"
    if counts.live:
        return "RUNNING" if counts.moved or before != "PENDING" else "PENDING"
    if counts.failed:
        return "FAILED"
    return "CANCELLED" if counts.cancelled else "SUCCEEDED"


def progress_of(counts: Counts) -> float:
    """0-1: the mean over all jobs, where an ended one counts whole whatever it ended as."""
    if counts.total == 0:
        return 0.0
    done = counts.total - counts.live + counts.live_progress
    return 1.0 if counts.live == 0 else round(min(done / counts.total, 0.9999), 4)
