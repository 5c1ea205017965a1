"""What the parent writes about an attempt whose child it killed, or found dead."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from functools import partial

from django.db import DatabaseError, InterfaceError

from jobs import services
from jobs.running import artifacts
from jobs.running.persist import persist
from jobs.running.watch import Limits, Verdict
from jobs.states import Reason

log = logging.getLogger(__name__)


def settle(job_pk: int, attempt: int, verdict: Verdict, limits: Limits, *, for_s: float) -> None:
    """Write what became of an attempt that was stopped from outside.

    An attempt that is not ours any more is left alone: its lease runs out, or another has it.
    """
    write: Callable[[], bool]
    if verdict is Verdict.CANCELLED:
        write = partial(services.finish_cancel, job_pk, attempt)
    elif verdict is Verdict.HANDED_BACK:
        write = partial(services.hand_back, job_pk, attempt)
    elif verdict in (Verdict.STALLED, Verdict.TIMEOUT):
        reason, sentence = _failure(verdict, limits)
        write = partial(services.fail, job_pk, attempt, reason, sentence)
    else:
        write = bool
    _write(job_pk, attempt, write, for_s=for_s)


def bury(job_pk: int, attempt: int, reason: Reason, sentence: str, *, for_s: float) -> None:
    """Write that the child died in the middle of an attempt."""
    write = partial(services.fail, job_pk, attempt, reason, sentence)
    _write(job_pk, attempt, write, for_s=for_s)


def _failure(verdict: Verdict, limits: Limits) -> tuple[Reason, str]:
    if verdict is Verdict.TIMEOUT and math.isfinite(limits.timeout_s):
        return Reason.TIMEOUT, (
            f"The job ran longer than its limit of {limits.timeout_s:g} s and was stopped. Raise "
            "timeout_s, then retry it."
        )
    return Reason.STALLED, (
        f"The job showed no sign of work for {limits.stall_s:g} s and was stopped. Retry it; raise "
        "stall_s if its steps really take that long."
    )


def _write(job_pk: int, attempt: int, write: Callable[[], bool], *, for_s: float) -> None:
    try:
        written = persist(write, for_s=for_s)
        persist(partial(artifacts.discard_attempt, job_pk, attempt), for_s=for_s)
    except (DatabaseError, InterfaceError) as error:
        log.error("job %d attempt %d: left to the sweep, %s", job_pk, attempt, error)
        return
    if not written:
        log.info("job %d attempt %d was not ours to end any more", job_pk, attempt)
