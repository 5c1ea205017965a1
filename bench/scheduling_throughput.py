"""End to end: no-op jobs a second and CPU a job, everybody in turn, while much or little waits."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from bench.peers.base import CHAIN, LANES, TENANTS, WIDE, Peer, Place
from bench.peers.ours import ENGINES, Labsched
from bench.peers.plain_rq import PlainRq
from bench.peers.procrastinate_locks import ProcrastinateLocks
from bench.scheduling_figures import Report, Row, middle, rounded
from tests.client import until

WARM_UP = 60  # jobs before the watch starts
LOOK_S = 0.05
STUCK_S = 120.0


@dataclass(frozen=True)
class Sizes:
    """How much is measured."""

    pending: tuple[int, ...] = (1_000, 100_000)
    jobs: int = 1_000  # at most, in one measure
    seconds: float = 8.0  # at most
    rounds: int = 3
    peers: tuple[str, ...] = ("rq-simple", "rq-warm")


Say = Callable[[str], None]


def run(place: Place, report: Report, sizes: Sizes, shapes: Sequence[str], say: Say) -> None:
    """Measure every peer in every shape at every size; a row is the median of its rounds."""
    with ExitStack() as stack:
        peers: list[Peer] = [PlainRq(kind, place) for kind in sizes.peers]
        peers += [Labsched(place, engine, "throughput") for engine in ENGINES]
        peers += [ProcrastinateLocks(place, processes=n) for n in sorted({1, place.workers})]
        for peer in peers:
            say(f"starting {peer.name} ({peer.engine}, {peer.layout})")
            stack.callback(peer.close)
            peer.open()
        for pending in sizes.pending:
            for shape in shapes:
                _measure_all(peers, shape, pending, report, sizes, say)
        _report_submissions(peers, report)


def _measure_all(
    peers: Sequence[Peer], shape: str, pending: int, report: Report, sizes: Sizes, say: Say
) -> None:
    rounds: dict[Peer, list[Row]] = {}
    taking_part = [peer for peer in peers if shape == WIDE or peer.name != "procrastinate"]
    for number in range(sizes.rounds):
        for peer in taking_part:
            say(f"{shape}, {pending} pending, round {number + 1}: {peer.name} {peer.engine}")
            peer.fill(shape, pending + WARM_UP)
            rounds.setdefault(peer, []).append(_measure(peer, sizes, pending))
        taking_part = _without_the_slower_layout(taking_part, rounds)
    for peer in peers:
        peer.clear()
    for peer in taking_part:
        report.add(shape, peer.name, **_row(peer, shape, pending, rounds[peer]))


def _without_the_slower_layout(peers: list[Peer], rounds: dict[Peer, list[Row]]) -> list[Peer]:
    """Procrastinate is the peer in whichever layout did better in the first round."""
    layouts = [peer for peer in peers if peer.name == "procrastinate"]
    best = max(layouts, key=lambda peer: rounds[peer][0]["jobs_per_s"], default=None)
    return [peer for peer in peers if peer not in layouts or peer is best]


def _measure(peer: Peer, sizes: Sizes, pending: int) -> Row:
    """One measure: from when `WARM_UP` jobs have ended, over so many jobs or seconds."""
    wanted = min(sizes.jobs, pending * 3 // 4)  # the last lanes run dry unevenly
    before = peer.done()
    with peer.running():
        until(
            lambda: peer.done() >= before + WARM_UP,
            timeout_s=STUCK_S,
            what=f"{peer.name} {peer.engine} ended {WARM_UP} jobs",
            every_s=LOOK_S,
        )
        meter = peer.meter()
        first, before_cpu, began = peer.done(), meter.seconds(), time.perf_counter()
        while (jobs := peer.done() - first) < wanted:
            if time.perf_counter() - began > sizes.seconds and jobs > 0:
                break
            time.sleep(LOOK_S)
        jobs, took = peer.done() - first, time.perf_counter() - began
        spent = {part: used / jobs * 1e3 for part, used in meter.since(before_cpu).items()}
    total = sum(spent.values())
    return {"jobs_per_s": jobs / took, "cpu_ms_per_job": total, "cpu_ms": spent, "jobs": jobs}


def _row(peer: Peer, shape: str, pending: int, rounds: list[Row]) -> Row:
    return {
        "engine": peer.engine,
        "layout": peer.layout,
        # a chain of RQ holds one job: nothing else waits
        "pending": 0 if shape == CHAIN and peer.engine == "redis" else pending,
        "beside": pending,
        "tenants": 1 if shape == CHAIN else TENANTS,
        "lanes": 1 if shape == CHAIN else TENANTS * LANES,
        "jobs_per_s": rounded(middle(row["jobs_per_s"] for row in rounds), 1),
        "cpu_ms_per_job": rounded(middle(row["cpu_ms_per_job"] for row in rounds), 2),
        "cpu_ms": {
            part: rounded(middle(row["cpu_ms"][part] for row in rounds), 2)
            for part in rounds[0]["cpu_ms"]
        },
        "jobs": sum(row["jobs"] for row in rounds),
        "rounds": [rounded(row["jobs_per_s"], 1) for row in rounds],
    }


def _report_submissions(peers: Sequence[Peer], report: Report) -> None:
    """What the filling told by the way: jobs a second through the one way in."""
    for peer in peers:
        if not isinstance(peer, Labsched) or not peer.submit_s:
            continue
        jobs, took = max(peer.submit_s)
        rate = rounded(jobs / took, 0)
        report.add("submit", peer.name, engine=peer.engine, jobs=jobs, submitted_per_s=rate)
