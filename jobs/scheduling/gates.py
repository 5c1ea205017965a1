"""The gates that a waiting job has to pass, each with its present value, in the order of the rules.

Pure: what the house and the job look like goes in, sentences for people come out. Other tenants
are counted and never named.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from jobs.states import FIRST_HEAD, JobState, Reason

NAMED = 5  # jobs that a sentence names
EXACT_TO = 1000  # places are counted this far; one more means "further behind"


@dataclass(frozen=True)
class Brief:
    """A job that others wait for."""

    id: str
    job_id: str
    state: str

    def shape(self) -> dict[str, str]:
        return {"id": self.id, "job_id": self.job_id, "state": self.state}


@dataclass(frozen=True)
class QueueFacts:
    """A queue now. room: how many leases it may have at once; helping: those of `busy` that help
    with a job of another worker, and give way to any that waits."""

    name: str
    room: int
    busy: int
    workers: int
    paused: bool = False
    helping: int = 0


@dataclass(frozen=True)
class House:
    """What is the same for every waiting job of one tenant.

    maintenance  its note; None while there is none
    ahead        tenants in line for a user slot before this one
    turn_is_over it holds a slot, its quantum has passed, and others wait
    """

    queues: Mapping[str, QueueFacts]
    run_slots: int
    run_slots_busy: int
    user_slots: int
    user_slots_taken: int
    holds_slot: bool
    maintenance: str | None = None
    tenant_paused: bool = False
    turn_is_over: bool = False
    ahead: int = 0
    quantum_s: float = 0.0

    def queue(self, name: str) -> QueueFacts:
        return self.queues.get(name, QueueFacts(name, 0, 0, 0))


@dataclass(frozen=True)
class Waiting:
    """One waiting job, and what stands before it.

    upstream       unfinished upstream jobs, the first few
    upstream_left  how many there are; upstream_total counts the finished ones too
    upstream_all   unfinished jobs above it, over all steps
    lane_first     the job of its lane that goes first, with how many are `lane_ahead`
    line_ahead     jobs of its tenant and queue that take a worker before it
    """

    state: JobState
    queue: str
    branch: str
    branch_paused: bool = False
    reason: str = ""
    error: str = ""
    failures: int = 0
    max_attempts: int = 0
    retry_at: str | None = None
    upstream: Sequence[Brief] = ()
    upstream_left: int = 0
    upstream_total: int = 0
    upstream_all: int = 0
    lane_first: Brief | None = None
    lane_ahead: int = 0
    line_ahead: int = 0
    mine_running: Sequence[Brief] = field(default_factory=tuple)


@dataclass(frozen=True)
class Gate:
    """One gate: whether it holds the job now, its present value, and what that means."""

    reason: Reason
    holds: bool
    value: str
    detail: str
    blocking: Sequence[Brief] = ()
    position: int | None = None

    def shape(self) -> dict[str, Any]:
        return {
            "gate": self.reason.value,
            "holds": self.holds,
            "value": self.value,
            "detail": self.detail,
        }


def gates(job: Waiting, house: House) -> list[Gate]:
    """Every gate; the first that holds is why the job waits."""
    return [
        _maintenance(house),
        _paused(job, house),
        _dependency(job),
        _branch(job),
        _retry(job),
        _no_worker(job, house),
        _user_limit(house),
        _worker_limit(job, house),
    ]


def holding(found: Sequence[Gate]) -> Gate | None:
    """The first gate that holds."""
    return next((gate for gate in found if gate.holds), None)


def place(job: Waiting, house: House) -> int:
    """Place in the line that the job stands in: of what it depends on, its lane, the tenants that
    wait for a user slot, or its tenant's jobs of the same queue. EXACT_TO + 1 means further behind."""
    if job.upstream_left:
        ahead = max(job.upstream_all, job.upstream_left)
    elif job.state < FIRST_HEAD and job.lane_ahead:
        ahead = job.lane_ahead
    elif not house.holds_slot:
        ahead = house.ahead
    else:
        ahead = job.line_ahead
    return min(ahead, EXACT_TO) + 1


def _maintenance(house: House) -> Gate:
    on = house.maintenance is not None
    note = f" {_sentence(house.maintenance)}" if house.maintenance else ""
    text = f"Maintenance is on: nothing new starts.{note}" if on else "There is no maintenance."
    return Gate(Reason.MAINTENANCE, on, "on" if on else "off", text)


def _paused(job: Waiting, house: House) -> Gate:
    held = [
        ("you", house.tenant_paused, "An operator paused you."),
        ("branch", job.branch_paused, f"Branch {job.branch} is paused."),
        ("queue", house.queue(job.queue).paused, f"Queue {job.queue} is paused by an operator."),
    ]
    found = [(what, text) for what, applies, text in held if applies]
    value = ", ".join(what for what, _ in found)
    text = " ".join(text for _, text in found) or (
        f"Neither you nor branch {job.branch} nor queue {job.queue} is paused."
    )
    return Gate(Reason.PAUSED, bool(found), value or "nothing", text)


def _dependency(job: Waiting) -> Gate:
    if not job.upstream_total:
        return Gate(Reason.DEPENDENCY, False, "none", "It depends on no other job.")
    done = job.upstream_total - job.upstream_left
    value = f"{done:,} of {job.upstream_total:,} upstream {_jobs(job.upstream_total)} done"
    if not job.upstream_left:
        return Gate(Reason.DEPENDENCY, False, value, "Every job it depends on is done.")
    names = ", ".join(each.job_id for each in job.upstream[:NAMED])
    more = job.upstream_left - len(job.upstream[:NAMED])
    tail = f" and {more:,} more" if more > 0 else ""
    return Gate(Reason.DEPENDENCY, True, value, f"It waits for {names}{tail}.", job.upstream)


def _branch(job: Waiting) -> Gate:
    ahead = job.lane_ahead if job.state < FIRST_HEAD else 0
    if not ahead:
        text = f"It is first of branch {job.branch}."
        return Gate(Reason.BRANCH, False, "first of its branch", text)
    detail = (
        f"Jobs of branch {job.branch} run one at a time, and {_count(ahead)} "
        f"{'is' if ahead == 1 else 'are'} before it. Other workflows of yours that use the same "
        "branch name share this lane."
    )
    before = [job.lane_first] if job.lane_first else []
    return Gate(Reason.BRANCH, True, f"{_count(ahead)} before it", detail, before)


def _retry(job: Waiting) -> Gate:
    if job.state is not JobState.RETRY_WAIT:
        value = f"{job.failures} of {job.max_attempts} attempts failed"
        return Gate(Reason.RETRY_WAIT, False, value, "It waits for no retry.")
    text = (
        f"Attempt {job.failures} of {job.max_attempts} failed ({job.error.rstrip('.')}). "
        f"Next try at {job.retry_at}."
    )
    return Gate(Reason.RETRY_WAIT, True, f"next try at {job.retry_at}", text)


def _no_worker(job: Waiting, house: House) -> Gate:
    workers = house.queue(job.queue).workers
    value = f"{workers:,} live {'worker' if workers == 1 else 'workers'} of queue {job.queue}"
    if workers:
        return Gate(Reason.NO_WORKER, False, value, f"Queue {job.queue} is served.")
    text = f"No worker of queue {job.queue} is running. An operator must start one."
    return Gate(Reason.NO_WORKER, True, value, text)


def _user_limit(house: House) -> Gate:
    value = f"{house.user_slots_taken} of {house.user_slots} user slots taken"
    if house.holds_slot and not house.turn_is_over:
        text = "You hold a user slot: your jobs may start."
        return Gate(Reason.USER_LIMIT, False, f"{value}, one by you", text)
    if house.turn_is_over:
        text = (
            f"Your turn of {house.quantum_s:.0f} s is over while others wait: what runs goes on, "
            "and you line up again."
        )
        return Gate(Reason.USER_LIMIT, True, f"{value}, your turn is over", text)
    if house.ahead < house.user_slots - house.user_slots_taken:
        return Gate(Reason.USER_LIMIT, False, value, "A user slot is free for you.")
    detail = (
        f"{house.user_slots_taken} of {house.user_slots} user slots are taken, "
        f"{_count(house.ahead)} {'user waits' if house.ahead == 1 else 'users wait'} before you."
    )
    return Gate(Reason.USER_LIMIT, True, value, detail)


def _worker_limit(job: Waiting, house: House) -> Gate:
    queue = house.queue(job.queue)
    value = (
        f"{queue.busy:,} of {queue.room:,} busy in queue {job.queue}, "
        f"{house.run_slots_busy:,} of {house.run_slots:,} in all"
    )
    if queue.busy < queue.room and house.run_slots_busy < house.run_slots:
        return Gate(Reason.WORKER_LIMIT, False, value, f"Queue {job.queue} has a free worker.")
    all_busy = f"All workers of queue {job.queue} are busy."
    if not queue.workers:
        all_busy = f"Queue {job.queue} has no worker."
    if queue.busy < queue.room:
        all_busy = f"All {house.run_slots:,} places for running jobs are taken."
    if queue.helping:
        all_busy += " One that only helps with another job comes free within seconds."
    ahead = {0: "None of your own jobs is", 1: "1 of your own jobs is"}.get(
        job.line_ahead, f"{_count(job.line_ahead)} of your own jobs are"
    )
    detail = (
        f"{all_busy} {ahead} before it; the next free worker goes to the user with the fewest "
        "running jobs."
    )
    return Gate(Reason.WORKER_LIMIT, True, value, detail, job.mine_running)


def members_before(
    member: int,
    ahead: int,
    sequence: int,
    others: Mapping[int, Sequence[int]],
    leases: Mapping[int, int],
) -> int:
    """How many jobs of other members take a worker before this one (R5).

    The member with the fewest leases goes first, then the lowest sequence: while this member's
    `ahead` own jobs are taken, another one with fewer leases catches up.

    others  the sequences of their waiting jobs of the same priority, ascending
    leases  of each member now
    """
    before = 0
    for other, sequences in others.items():
        level = leases.get(member, 0) + ahead - leases.get(other, 0)
        if level < 0:
            continue
        before += min(level, len(sequences))
        if level < len(sequences) and sequences[level] < sequence:
            before += 1
    return before


def _count(number: int) -> str:
    return f"more than {EXACT_TO:,}" if number > EXACT_TO else f"{number:,}"


def _jobs(number: int) -> str:
    return "job" if number == 1 else "jobs"


def _sentence(text: str) -> str:
    return text if text.endswith((".", "!", "?")) else f"{text}."
