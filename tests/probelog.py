"""What really ran, as the probe jobs wrote it down themselves: the truth that checks compare with."""

from __future__ import annotations

import itertools
import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

Key = TypeVar("Key")


@dataclass(frozen=True)
class Span:
    """One execution of a probe; `end` is None while it runs or when it was killed."""

    job: str
    key: str
    tenant: str
    branch: str
    attempt: int
    start: float
    end: float | None
    ok: bool | None

    @property
    def lane(self) -> tuple[str, str]:
        return (self.tenant, self.branch)


def read(path: Path) -> list[Span]:
    """Every execution in the log, by time of start."""
    if not path.exists():
        return []
    lines = [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")]
    ends = {(x["job"], x["attempt"]): x for x in lines if x["event"] == "end"}
    spans = [_span(x, ends.get((x["job"], x["attempt"]))) for x in lines if x["event"] == "start"]
    return sorted(spans, key=lambda span: span.start)


def _span(start: dict[str, object], end: dict[str, object] | None) -> Span:
    return Span(
        job=str(start["job"]),
        key=str(start["job_id"]),
        tenant=str(start["tenant"]),
        branch=str(start["branch"]),
        attempt=int(str(start["attempt"])),
        start=float(str(start["t"])),
        end=float(str(end["t"])) if end else None,
        ok=bool(end["ok"]) if end else None,
    )


def of_users(spans: Iterable[Span], users: Sequence[str]) -> list[Span]:
    return [span for span in spans if span.tenant in users]


def most_at_once(spans: Sequence[Span], by: Callable[[Span], object]) -> int:
    """The largest number of different `by(span)` that ran at any one moment."""
    most = 0
    for moment in spans:
        running = {by(s) for s in spans if s.start <= moment.start and _open_at(s, moment.start)}
        most = max(most, len(running))
    return most


def _open_at(span: Span, at: float) -> bool:
    return span.end is None or span.end > at


def group(spans: Iterable[Span], by: Callable[[Span], Key]) -> dict[Key, list[Span]]:
    grouped: dict[Key, list[Span]] = defaultdict(list)
    for span in spans:
        grouped[by(span)].append(span)
    return dict(grouped)


def check_lanes(spans: Iterable[Span]) -> None:
    """No two executions of one (user, branch) overlap, and each finished one has an end."""
    for lane, mine in group(spans, lambda span: span.lane).items():
        for before, after in itertools.pairwise(mine):
            assert before.end is not None, f"{before.key} of {lane} never ended, {after.key} began"
            assert before.end <= after.start, f"{before.key} and {after.key} of {lane} ran at once"
