"""Which executions in the probe log were their row's own, and until when. Pure.

R1, R3 and R4 speak of rows: of jobs QUEUED or RUNNING. The probe log has a line for each start and
end of a *body*, on one monotonic clock. A body that was killed has no end line, and one that stood
still past its lease wakes as a zombie: its row is another attempt's by then, it may run on until it
looks (about a second), and its word must change nothing. So bodies may overlap where rows do not;
the history of faults says where:

    kill   {"what", "target", "at", "held"}
    stop   {"what", "target", "at", "until", "held", "died"}
    lease  {"what", "job", "attempt", "from", "until"}   when a worker's lease was first and last seen
    redis  {"what", "how", "at", "until"}                how: emptied, killed, stopped; until: it is back

`held` is what the victim held, read while it was frozen: {"job", "attempt", "expires"} each. A stop
in which somebody `died` ended in a kill (as stalled): the frozen one never woke.

A body is **current** from its start line to

- its end line; without one, the kill that names its attempt; without that, the last moment at which
  its lease was seen (its own worker killed it, or it was ordered to exit), else its start;
- or earlier, if a stop *explains* it: one that took the worker's parent, named this attempt and
  lasted until its lease was over (less LATE_S: a parent that wakes just before may renew too late).
  Then it is current until its lease was over and gone, if a later attempt exists, else until its
  row ended. A zombie that goes on for longer than ZOMBIE_S after that and its waking is not excused.

Nothing else shortens a body: a stop of a child alone, of a scheduler, or one shorter than the lease
explains nothing. A body that began when it was not current any more (it stood still between the
commit of its start and its log line) says nothing about rows and is left out.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Entry = Mapping[str, Any]
Attempt = tuple[str, int]

LATE_S = 1.0
ZOMBIE_S = 5.0  # a woken body looks once a second, and its parent kills it 2 s later
WITH_PARENT = frozenset({"worker", "parent"})  # while these stand still no lease is renewed


@dataclass(frozen=True)
class Evidence:
    """Everything that a verdict rests on; plain values, so that it can be kept and judged again.

    log        lines of the probe log
    rows       {id, tenant, branch, workflow, sequence, state, reason, on_failure, attempt, failures,
               finished_at (monotonic), upstream} of each job
    submitted  {id, fails: how many attempts were ordered to fail, cancel: "" | asked | answered}
    """

    log: Sequence[Entry]
    rows: Sequence[Entry]
    submitted: Sequence[Entry]
    history: Sequence[Entry]
    max_workers: int
    max_active_users: int


@dataclass
class Body:
    """One execution in the log. `current_until` is when its row stopped being its own."""

    job: str
    key: str
    tenant: str
    branch: str
    attempt: int
    start: float
    end: float | None = None
    ok: bool = False
    current_until: float = math.inf
    zombie: bool = False

    @property
    def this(self) -> Attempt:
        return (self.job, self.attempt)

    @property
    def lane(self) -> tuple[str, str]:
        return (self.tenant, self.branch)

    @property
    def counts(self) -> bool:
        """Whether its row was its own when it began."""
        return not self.zombie or self.current_until > self.start

    def __str__(self) -> str:
        return f"{self.key} of {self.tenant}/{self.branch}, attempt {self.attempt}, at {self.start:.3f}"


def read_bodies(log: Iterable[Entry]) -> list[Body]:
    """Starts with their ends. A second start of an attempt is a body of its own."""
    found: list[Body] = []
    unfinished: dict[Attempt, list[Body]] = defaultdict(list)
    for line in sorted(log, key=lambda line: float(line["t"])):
        attempt = (str(line["job"]), int(line["attempt"]))
        if line["event"] == "start":
            found.append(_begun(line))
            unfinished[attempt].append(found[-1])
        elif unfinished[attempt]:
            body = unfinished[attempt].pop(0)
            body.end, body.ok = float(line["t"]), bool(line["ok"])
        else:
            raise ValueError(f"the log has an end without a start: {dict(line)}")
    return found


def _begun(line: Entry) -> Body:
    return Body(
        job=str(line["job"]),
        key=str(line["job_id"]),
        tenant=str(line["tenant"]),
        branch=str(line["branch"]),
        attempt=int(line["attempt"]),
        start=float(line["t"]),
    )


class Facts:
    """The rows and the history, by job and by attempt."""

    def __init__(self, evidence: Evidence) -> None:
        self.rows = {str(row["id"]): row for row in evidence.rows}
        self.kills = [entry for entry in evidence.history if entry["what"] == "kill"]
        self.killed: dict[Attempt, list[float]] = defaultdict(list)
        self.silenced: dict[Attempt, list[float]] = defaultdict(list)  # frozen, and never woke
        self.hits: dict[str, int] = defaultdict(int)
        self.seen: dict[Attempt, float] = {}
        self.lapsed: dict[Attempt, tuple[float, float]] = {}  # its lease was over, its worker woke
        self.last_attempt: dict[str, int] = defaultdict(int)
        for entry in evidence.history:
            self._take(entry)
        for line in (*evidence.log, *({**row, "job": row["id"]} for row in evidence.rows)):
            job = str(line["job"])
            self.last_attempt[job] = max(self.last_attempt[job], int(line["attempt"]))

    def _take(self, entry: Entry) -> None:
        if entry["what"] == "lease":
            self.seen[(str(entry["job"]), int(entry["attempt"]))] = float(entry["until"])
        for held in entry.get("held", ()):
            attempt = (str(held["job"]), int(held["attempt"]))
            self.hits[attempt[0]] += 1
            if entry["what"] == "kill":
                self.killed[attempt].append(float(entry["at"]))
            elif entry["what"] == "stop" and entry["died"]:
                self.silenced[attempt].append(float(entry["at"]))
            elif _took_the_lease(entry, held):
                self.lapsed.setdefault(attempt, (float(held["expires"]), float(entry["until"])))

    def settle(self, body: Body) -> None:
        """Find until when the body was its row's own."""
        body.current_until = natural = self._natural_end(body)
        if body.this not in self.lapsed:
            return
        left, woken = self._left(body), self.lapsed[body.this][1]
        if left < natural <= max(left, woken) + ZOMBIE_S:
            body.zombie, body.current_until = True, left

    def _natural_end(self, body: Body) -> float:
        if body.end is not None:
            return body.end
        kills = [at for at in self.killed[body.this] if at >= body.start]
        return min(kills, default=max(body.start, self.seen.get(body.this, body.start)))

    def _left(self, body: Body) -> float:
        """When the row of an attempt whose lease was over became another's, or ended."""
        if self.superseded(body):
            return max(self.lapsed[body.this][0], self.seen.get(body.this, 0.0))
        row = self.rows.get(body.job)
        finished_at = row["finished_at"] if row else None
        return math.inf if finished_at is None else float(finished_at)

    def superseded(self, body: Body) -> bool:
        """Whether a later attempt of its job exists."""
        return self.last_attempt[body.job] > body.attempt

    def unheard(self, body: Body) -> bool:
        """Whether the ok end of this body may rightly have changed nothing."""
        silences = (*self.killed[body.this], *self.silenced[body.this])
        died = any(at >= (body.end or body.start) for at in silences)
        return self.superseded(body) and (died or body.this in self.lapsed)


def _took_the_lease(stop: Entry, held: Entry) -> bool:
    whole = stop["what"] == "stop" and stop["target"] in WITH_PARENT
    return whole and float(stop["until"]) >= float(held["expires"]) - LATE_S
