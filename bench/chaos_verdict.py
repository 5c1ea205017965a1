"""What a chaos run proved: a pure function of the probe log, the rows and the history of faults.

bench/chaos_bodies.py says which executions in the log count, and why. These are counted; all must be 0:

lost                     a job answered 201 without a row, or one that SUCCEEDED without, or before, an ok
                         end of that attempt: another's word was taken for it
completed_twice          jobs with two ok ends that are not excused. One is excused if a later attempt
                         exists and, while its worker held this attempt, a kill or a stop it never
                         woke from came after that end, or a stop outlasted the lease: its word was
                         never written, or came too late
branch_overlaps          pairs of current bodies of one (tenant, branch), of one job too; and each second
                         start of one attempt
user_limit_violations    starts that bring the tenants with current bodies above MAX_ACTIVE_USERS
worker_limit_violations  starts that bring the current bodies above MAX_WORKERS
fifo_inversions          jobs whose first start comes after that of a later job of their lane
stuck                    rows that are not terminal after the drain
early_starts             jobs that began before each upstream job had an ok end (R2)
wrong_ends               rows that ended as nobody ordered: SUCCEEDED after an answered cancel, FAILED more
                         often than was ordered or done to it, CANCELLED without a cause

recovery_s is the time from a kill of a lease's holder to the next start, or the end, of that job.
"""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from bench.chaos_bodies import Attempt, Body, Entry, Evidence, Facts, read_bodies

TERMINAL = frozenset({"SUCCEEDED", "FAILED", "CANCELLED"})
SAME_MOMENT_S = 0.05  # rows tell wall time
VIOLATIONS = (
    "lost",
    "completed_twice",
    "branch_overlaps",
    "user_limit_violations",
    "worker_limit_violations",
    "fifo_inversions",
    "stuck",
    "early_starts",
    "wrong_ends",
)


@dataclass
class Verdict:
    """The counts, and a sentence for each violation."""

    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(VIOLATIONS, 0))
    figures: dict[str, Any] = field(default_factory=dict)
    findings: list[str] = field(default_factory=list)

    def find(self, violation: str, sentence: str) -> None:
        self.counts[violation] += 1
        self.findings.append(f"{violation}: {sentence}")

    @property
    def clean(self) -> bool:
        return not any(self.counts.values())


def judge(evidence: Evidence) -> Verdict:
    """The verdict on a run that drained or was given up."""
    facts = Facts(evidence)
    every = read_bodies(evidence.log)
    for body in every:
        facts.settle(body)
    bodies = sorted((body for body in every if body.counts), key=lambda body: body.start)
    verdict = Verdict()
    _judge_rows(evidence, facts, every, verdict)
    _judge_completions(facts, every, verdict)
    _judge_lanes(facts, bodies, verdict)
    _judge_limits(evidence, bodies, verdict)
    _judge_dependencies(facts, bodies, every, verdict)
    verdict.figures = _figures(evidence, facts, every)
    return verdict


# --- the rows ----------------------------------------------------------------------------


def _judge_rows(evidence: Evidence, facts: Facts, every: Sequence[Body], verdict: Verdict) -> None:
    done = {body.this: body.end for body in every if body.ok and body.end is not None}
    for row in evidence.rows:
        if row["state"] not in TERMINAL:
            verdict.find("stuck", f"{row['id']} is {row['state']} ({row['reason']})")
    for ordered in evidence.submitted:
        ended = facts.rows.get(str(ordered["id"]))
        if ended is None:
            verdict.find("lost", f"{ordered['id']} was accepted and has no row")
        elif ended["state"] == "SUCCEEDED" and not _earned(ended, done):
            verdict.find("lost", f"{ended['id']} succeeded, its body had not by then")
        elif wrong := _wrong_end(ended, ordered, facts):
            verdict.find("wrong_ends", f"{ended['id']} {wrong}")


def _earned(row: Entry, done: Mapping[Attempt, float]) -> bool:
    """Whether the body of the row's own attempt had ended ok when the row did."""
    end = done.get((str(row["id"]), int(row["attempt"])), math.inf)
    return end <= float(row["finished_at"]) + SAME_MOMENT_S


def _wrong_end(row: Entry, ordered: Entry, facts: Facts) -> str:
    """What is wrong with the end of a job, or nothing."""
    if row["state"] == "SUCCEEDED" and ordered["cancel"] == "answered":
        return "succeeded after its cancel was answered"
    if row["state"] == "FAILED":
        explained = int(ordered["fails"]) + facts.hits[str(row["id"])]
        if int(row["failures"]) > explained:
            return f"failed {row['failures']} times ({row['reason']}), {explained} are explained"
    if row["state"] == "CANCELLED" and not ordered["cancel"] and not _ended_by_others(row, facts):
        return f"was cancelled ({row['reason']}) by nobody"
    return ""


def _ended_by_others(row: Entry, facts: Facts) -> bool:
    upstream = [facts.rows.get(str(each)) for each in row["upstream"]]
    if any(above and above["state"] in ("FAILED", "CANCELLED") for above in upstream):
        return True
    same = ("workflow", "tenant", "branch")
    return row["on_failure"] == "halt" and any(
        other["state"] == "FAILED" and other["sequence"] < row["sequence"]
        for other in facts.rows.values()
        if all(other[name] == row[name] for name in same)
    )


def _judge_completions(facts: Facts, every: Sequence[Body], verdict: Verdict) -> None:
    for job, bodies in _by(every, lambda body: body.job).items():
        heard = [body for body in bodies if body.ok and not facts.unheard(body)]
        if len(heard) > 1:
            verdict.find("completed_twice", f"{job}: {'; '.join(map(str, heard))}")


# --- the bodies --------------------------------------------------------------------------


def _judge_lanes(facts: Facts, bodies: Sequence[Body], verdict: Verdict) -> None:
    for lane in _by(bodies, lambda body: body.lane).values():
        _judge_overlaps(lane, verdict)
        _judge_order(facts, lane, verdict)


def _judge_overlaps(lane: Sequence[Body], verdict: Verdict) -> None:
    begun: set[Attempt] = set()
    for number, body in enumerate(lane):
        if body.this in begun:
            verdict.find("branch_overlaps", f"{body} began a second time")
        begun.add(body.this)
        for later in lane[number + 1 :]:
            if later.start >= body.current_until:
                break
            if later.this != body.this:
                verdict.find("branch_overlaps", f"{later} began while {body} was current")


def _judge_order(facts: Facts, lane: Sequence[Body], verdict: Verdict) -> None:
    latest = -math.inf
    begun: set[str] = set()
    for body in lane:
        row = facts.rows.get(body.job)
        if row is None or body.job in begun:
            continue
        begun.add(body.job)
        if row["sequence"] < latest:
            verdict.find("fifo_inversions", f"{body} began after a later job of its lane")
        latest = max(latest, row["sequence"])


def _judge_limits(evidence: Evidence, bodies: Sequence[Body], verdict: Verdict) -> None:
    running: list[Body] = []
    for body in bodies:
        running = [each for each in running if each.current_until > body.start]
        tenants = {each.tenant for each in running}
        running.append(body)
        if len(running) > evidence.max_workers:
            verdict.find("worker_limit_violations", f"{body} is number {len(running)}")
        if body.tenant not in tenants and len(tenants) >= evidence.max_active_users:
            verdict.find("user_limit_violations", f"{body} beside {', '.join(sorted(tenants))}")


def _judge_dependencies(
    facts: Facts, bodies: Sequence[Body], every: Sequence[Body], verdict: Verdict
) -> None:
    done: dict[str, float] = {}
    for body in every:
        if body.ok and body.end is not None:
            done[body.job] = min(done.get(body.job, math.inf), body.end)
    for job, mine in _by(bodies, lambda body: body.job).items():
        row = facts.rows.get(job)
        upstream = [str(each) for each in row["upstream"]] if row else []
        if any(done.get(each, math.inf) > mine[0].start for each in upstream):
            verdict.find("early_starts", f"{mine[0]} began before its upstream was done")


# --- figures -----------------------------------------------------------------------------


def _figures(evidence: Evidence, facts: Facts, every: Sequence[Body]) -> dict[str, Any]:
    holding = [kill for kill in facts.kills if kill["held"]]
    waits = sorted(_recoveries(facts, holding, every))
    losses = [
        entry
        for entry in evidence.history
        if entry["what"] == "redis" and entry["how"] in ("emptied", "killed")
    ]
    return {
        "jobs": len(evidence.submitted),
        "attempts": len(every),
        "kills": len(facts.kills),
        "kills_holding_lease": len(holding),
        "stops": sum(entry["what"] == "stop" for entry in evidence.history),
        "leases_lapsed_in_stops": len(facts.lapsed),
        "zombies": sum(body.zombie for body in every),
        "redis_losses": len(losses),
        "redis_gap_s_max": _rounded(max(_gaps(losses, every), default=None)),
        "recovery_s_p50": _rounded(statistics.median(waits) if waits else None),
        "recovery_s_max": _rounded(waits[-1] if waits else None),
    }


def _recoveries(facts: Facts, kills: Iterable[Entry], every: Sequence[Body]) -> Iterable[float]:
    starts = _by(every, lambda body: body.job)
    for kill in kills:
        for held in kill["held"]:
            row = facts.rows.get(str(held["job"]))
            moments = [body.start for body in starts.get(str(held["job"]), ())]
            moments += [row["finished_at"]] if row and row["finished_at"] is not None else []
            after = [moment - kill["at"] for moment in moments if moment > kill["at"]]
            if after:
                yield min(after)


def _gaps(losses: Iterable[Entry], every: Sequence[Body]) -> Iterable[float]:
    """How long after Redis was there again nothing began."""
    for loss in losses:
        back = float(loss["until"])
        later = [body.start for body in every if body.start >= back]
        if later:
            yield min(later) - back


def _by(bodies: Iterable[Body], key: Callable[[Body], Any]) -> dict[Any, list[Body]]:
    groups: dict[Any, list[Body]] = defaultdict(list)
    for body in bodies:
        groups[key(body)].append(body)
    return groups


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 3)
