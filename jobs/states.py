"""The states of a job, the moves between them, and the closed list of reasons. Pure."""

from __future__ import annotations

from enum import IntEnum, StrEnum


class JobState(IntEnum):
    """Stored codes, ordered so that every set below is one range.

    Ranges matter: SQLite uses a partial index for `state < 10`, not for `state IN (?, ?)`.
    """

    PENDING = 0  # waits for its branch or its upstream jobs
    READY = 1  # head of its branch, upstream done
    RETRY_WAIT = 2  # head of its branch, waits for its back-off
    QUEUED = 3
    RUNNING = 4
    SUCCEEDED = 10
    FAILED = 11
    CANCELLED = 12

    @property
    def public(self) -> str:
        """The name that the outside sees: the finer ones are PENDING with a reason."""
        return "PENDING" if self < JobState.QUEUED else self.name

    @property
    def terminal(self) -> bool:
        return self >= JobState.SUCCEEDED

    @property
    def active(self) -> bool:
        return JobState.QUEUED <= self <= JobState.RUNNING


FIRST_HEAD = JobState.READY  # READY..RUNNING: at most one a branch
FIRST_ACTIVE = JobState.QUEUED  # QUEUED..RUNNING hold a user slot and leases
LAST_HEAD = LAST_ACTIVE = JobState.RUNNING
FIRST_TERMINAL = JobState.SUCCEEDED
PUBLIC_STATES = ("PENDING", "QUEUED", "RUNNING", "SUCCEEDED", "FAILED", "CANCELLED")

_S = JobState
TRANSITIONS: dict[JobState, frozenset[JobState]] = {
    _S.PENDING: frozenset({_S.READY, _S.CANCELLED}),
    _S.READY: frozenset({_S.QUEUED, _S.PENDING, _S.CANCELLED}),
    _S.RETRY_WAIT: frozenset({_S.PENDING, _S.CANCELLED}),
    # back to PENDING, where the lane makes it ready again unless it is paused
    _S.QUEUED: frozenset({_S.RUNNING, _S.PENDING, _S.RETRY_WAIT, _S.FAILED, _S.CANCELLED}),
    _S.RUNNING: frozenset({_S.SUCCEEDED, _S.PENDING, _S.RETRY_WAIT, _S.FAILED, _S.CANCELLED}),
    # a retry by hand; of a success, where its result has gaps
    _S.SUCCEEDED: frozenset({_S.PENDING}),
    _S.FAILED: frozenset({_S.PENDING}),
    _S.CANCELLED: frozenset({_S.PENDING}),
}


def states_of(public: str) -> range:
    """The stored codes behind a public state name, as one range. Raises ValueError."""
    if public not in PUBLIC_STATES:
        raise ValueError(f"{public!r} is not one of {', '.join(PUBLIC_STATES)}.")
    if public == "PENDING":
        return range(JobState.PENDING, JobState.QUEUED)
    return range(JobState[public], JobState[public] + 1)


class Reason(StrEnum):
    """Why a job stands where it stands (DESIGN §4): a closed list."""

    NONE = ""
    BRANCH = "branch"
    DEPENDENCY = "dependency"
    USER_LIMIT = "user_limit"
    WORKER_LIMIT = "worker_limit"
    NO_WORKER = "no_worker"
    RETRY_WAIT = "retry_wait"
    PAUSED = "paused"
    MAINTENANCE = "maintenance"
    WITHDRAWN = "withdrawn"
    REUSED = "reused"
    GAPS = "gaps"
    CANCELLING = "cancelling"
    CANCELLED_BY_USER = "cancelled_by_user"
    UPSTREAM_FAILED = "upstream_failed"
    BRANCH_HALTED = "branch_halted"
    ERROR = "error"
    STALLED = "stalled"
    TIMEOUT = "timeout"
    OUT_OF_MEMORY = "out_of_memory"
    LOST = "lost"
    BAD_INPUT = "bad_input"


def may_be_retried(state: JobState, reason: str) -> bool:
    """Whether a person may have the job run again."""
    if state is JobState.SUCCEEDED:
        return reason == Reason.GAPS
    return state.terminal
