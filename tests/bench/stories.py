"""Small invented runs for the verdict to judge: what the log, the rows and the history would say."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bench.chaos_bodies import Evidence

Row = dict[str, Any]
LEASE_S = 6.0


class Story:
    """Written job by job; `evidence()` is what the verdict gets. A job's id is its key."""

    def __init__(self) -> None:
        self.log: list[Row] = []
        self.rows: dict[str, Row] = {}
        self.submitted: dict[str, Row] = {}
        self.history: list[Row] = []

    def job(
        self, key: str, lane: str, *, after: Sequence[str] = (), fails: int = 0, cancel: str = ""
    ) -> None:
        """Accept a job in the lane `tenant/branch`; it has not begun."""
        tenant, branch = lane.split("/")
        self.rows[key] = {
            "id": key,
            "key": key,
            "tenant": tenant,
            "branch": branch,
            "workflow": tenant,
            "sequence": len(self.rows),
            "state": "PENDING",
            "reason": "",
            "on_failure": "continue",
            "attempt": 0,
            "failures": 0,
            "finished_at": None,
            "upstream": list(after),
        }
        self.submitted[key] = {"id": key, "fails": fails, "cancel": cancel}

    def begins(self, key: str, at: float, *, attempt: int = 1) -> None:
        """A start line; the row is RUNNING unless a later attempt is known."""
        row = self.rows[key]
        self._line(row, "start", at, attempt)
        row.update(attempt=max(attempt, row["attempt"]), state="RUNNING")

    def ends(self, key: str, at: float, *, attempt: int = 1, ok: bool = True) -> None:
        """An end line alone: nothing is said of the row."""
        self._line(self.rows[key], "end", at, attempt, ok=ok)

    def runs(self, key: str, start: float, end: float, *, attempt: int = 1) -> None:
        """A body that succeeds, and its row with it."""
        self.begins(key, start, attempt=attempt)
        self.ends(key, end, attempt=attempt)
        self.finishes(key, end + 0.01)

    def finishes(self, key: str, at: float, state: str = "SUCCEEDED", **fields: object) -> None:
        self.rows[key].update(state=state, finished_at=at, **fields)

    def _line(self, row: Row, event: str, at: float, attempt: int, **more: object) -> None:
        line = {"event": event, "job": row["id"], "job_id": row["key"], "attempt": attempt, "t": at}
        self.log.append({**line, "tenant": row["tenant"], "branch": row["branch"], **more})

    def kill(self, at: float, *held: str, target: str = "worker", attempt: int = 1) -> None:
        self._fault({"what": "kill", "target": target, "at": at}, held, attempt)

    def stop(
        self, at: float, until: float, *held: str, target: str = "worker", attempt: int = 1
    ) -> None:
        """A stop; the lease of what it held is over LEASE_S after its begin."""
        entry = {"what": "stop", "target": target, "at": at, "until": until, "died": False}
        self._fault(entry, held, attempt)

    def _fault(self, entry: Row, held: Sequence[str], attempt: int) -> None:
        expires = entry["at"] + LEASE_S
        leases = [{"job": key, "attempt": attempt, "expires": expires} for key in held]
        self.history.append({**entry, "held": leases})

    def seen(self, key: str, since: float, until: float, *, attempt: int = 1) -> None:
        """The lease of an attempt was seen in the rows for so long."""
        entry = {"what": "lease", "job": key, "attempt": attempt, "from": since, "until": until}
        self.history.append(entry)

    def redis(self, how: str, at: float, until: float) -> None:
        self.history.append({"what": "redis", "how": how, "at": at, "until": until})

    def evidence(self) -> Evidence:
        return Evidence(
            log=self.log,
            rows=list(self.rows.values()),
            submitted=list(self.submitted.values()),
            history=self.history,
            max_workers=4,
            max_active_users=3,
        )


def clean() -> Story:
    """Everything that may rightly happen in a run with faults."""
    story = Story()
    _plain(story)
    _killed(story)
    _stood_still(story)
    _ended_otherwise(story)
    return story


def _plain(story: Story) -> None:
    """Two lanes of ann; the second waits for the first one's first."""
    story.job("a1", "ann/x")
    story.job("a2", "ann/x")
    story.job("a3", "ann/y", after=["a1"])
    story.runs("a1", 0.0, 1.0)
    story.runs("a2", 1.1, 2.0)
    story.runs("a3", 1.2, 2.5)


def _killed(story: Story) -> None:
    """b1 in its body, b2 between its ok end and the write of it, b3 by its own order to exit."""
    for key in ("b1", "b2", "b3"):
        story.job(key, "bob/x", fails=1 if key == "b3" else 0)
    story.begins("b1", 0.0)
    story.kill(0.5, "b1")
    story.runs("b1", 7.0, 7.5, attempt=2)
    story.begins("b2", 7.6)
    story.ends("b2", 7.9)
    story.kill(7.91, "b2", target="child")
    story.runs("b2", 8.2, 8.4, attempt=2)
    story.begins("b3", 8.5)
    story.seen("b3", 8.6, 8.8)
    story.runs("b3", 9.0, 9.2, attempt=2)


def _stood_still(story: Story) -> None:
    """c1 and c2 wake as zombies beside their successors: one is fenced, one ends ok unheard."""
    for key in ("c1", "c2", "c3"):
        story.job(key, "cid/x")
    story.begins("c1", 0.0)
    story.stop(0.5, 8.0, "c1")
    story.runs("c1", 6.6, 7.0, attempt=2)
    story.begins("c2", 7.1)
    story.stop(7.5, 14.5, "c2", target="parent")
    story.ends("c1", 8.6, ok=False)
    story.runs("c2", 13.6, 14.0, attempt=2)
    story.runs("c3", 14.1, 14.6)
    story.ends("c2", 14.4)
    story.redis("emptied", 9.0, 9.0)


def _ended_otherwise(story: Story) -> None:
    """dee starts when there is room, fails as ordered, cancels one; another falls with it."""
    story.job("d1", "dee/x", fails=6)
    story.job("d2", "dee/y", cancel="answered")
    story.job("d3", "dee/z", after=["d1"])
    story.begins("d1", 9.5)
    story.ends("d1", 9.6, ok=False)
    story.finishes("d1", 9.7, "FAILED", reason="error", failures=1)
    story.begins("d2", 9.8)
    story.ends("d2", 10.0, ok=False)
    story.finishes("d2", 10.1, "CANCELLED", reason="cancelled_by_user")
    story.finishes("d3", 9.7, "CANCELLED", reason="upstream_failed")
