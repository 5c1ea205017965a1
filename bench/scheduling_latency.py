"""On an idle system: from a submission's commit to its body, and from one job's end to the next start."""

from __future__ import annotations

import time
from contextlib import ExitStack
from pathlib import Path

from bench.peers.base import Peer, Place
from bench.peers.ours import ENGINES, Labsched
from bench.peers.plain_rq import PlainRq
from bench.scheduling_figures import Report, spread
from bench.scheduling_throughput import Say
from tests import probelog
from tests.client import until

CHAIN = 4  # jobs of one submission: one start, three hand-overs
PAUSE_S = 0.05  # after each, so that the next finds everybody asleep
RQ_KINDS = ("rq-simple", "rq-warm")


class Feed:
    """The probe log, read from where the last look ended."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._spans: dict[str, probelog.Span] = {}

    def ended(self, jobs: list[str]) -> list[probelog.Span] | None:
        """The executions of these jobs once all have ended."""
        found = {span.job: span for span in probelog.read(self.path) if span.end is not None}
        return [found[job] for job in jobs] if all(job in found for job in jobs) else None

    def forget(self) -> None:
        """Empty the log, so that reading it stays cheap."""
        self.path.write_text("")


def run(place: Place, report: Report, rounds: int, say: Say) -> None:
    """Every peer gets one job at a time, in turn."""
    with ExitStack() as stack:
        rq = [PlainRq(kind, place) for kind in RQ_KINDS]
        ours = [Labsched(place, engine, "latency", probed=True) for engine in ENGINES]
        everybody: list[Peer] = [*rq, *ours]
        for peer in everybody:
            say(f"starting {peer.name} ({peer.engine}) for latency")
            stack.callback(peer.close)
            peer.open()
            stack.enter_context(peer.running())
        started: dict[str, list[float]] = {}
        handed: dict[str, list[float]] = {}
        for number in range(-2, rounds):  # two rounds to warm up
            if number % 20 == 0:
                say(f"latency, {number} of {rounds}")
            for plain in rq:
                _note(started, plain.name, [plain.mark()], number)
                time.sleep(PAUSE_S)
            for lab in ours:
                start_s, hand_over_s = _submit(lab, number)
                _note(started, lab.engine, [start_s], number)
                _note(handed, lab.engine, hand_over_s, number)
                time.sleep(PAUSE_S)
    _report(report, rq, ours, started, handed)


def _note(into: dict[str, list[float]], name: str, seconds: list[float], number: int) -> None:
    if number >= 0:
        into.setdefault(name, []).extend(seconds)


def _submit(peer: Labsched, number: int) -> tuple[float, list[float]]:
    """One short chain: (commit to first start, each end to the next start)."""
    told = peer.agent.ask("submit", user="idle", branch=f"lane-{number}", jobs=CHAIN)
    feed = Feed(peer.probe_log)
    spans = until(
        lambda: feed.ended(told["jobs"]),
        timeout_s=60,
        what=f"labsched on {peer.engine} ran a chain of {CHAIN}",
        every_s=0.02,
    )
    assert spans is not None
    until(lambda: peer.agent.ask("active") == 0, timeout_s=10, what="idle again", every_s=0.02)
    feed.forget()
    ends = [span.end or 0.0 for span in spans]
    return spans[0].start - told["t"], [b.start - a for a, b in zip(ends, spans[1:], strict=False)]


def _report(
    report: Report,
    rq: list[PlainRq],
    ours: list[Labsched],
    started: dict[str, list[float]],
    handed: dict[str, list[float]],
) -> None:
    for plain in rq:
        figures = spread("start", started[plain.name])
        report.add("latency", plain.name, engine="redis", measure="enqueue to start", **figures)
    for peer in ours:
        figures = spread("start", started[peer.engine])
        report.add("latency", "labsched", engine=peer.engine, measure="submit to start", **figures)
        figures = spread("start", handed[peer.engine])
        report.add("latency", "labsched", engine=peer.engine, measure="end to start", **figures)
