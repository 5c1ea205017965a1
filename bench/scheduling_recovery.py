"""What is lost for how long: a killed child, a lost host, an emptied Redis."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from contextlib import ExitStack
from itertools import pairwise

import psutil
import redis

from bench.peers.base import WIDE, Place
from bench.peers.ours import Labsched
from bench.scheduling_figures import Report, rounded
from bench.scheduling_throughput import Say
from tests import probelog
from tests.client import until

LONG_S = 300.0  # longer than any of this takes
CHILDREN = 4
LOSSES = 3
LOSS_EVERY_S = 4.0
BACKLOG = 3_000


def run(place: Place, report: Report, engines: Sequence[str], lease_s: int, say: Say) -> None:
    """On each engine: some children killed, two hosts lost, Redis emptied."""
    for engine in engines:
        with ExitStack() as stack:
            peer = Labsched(place, engine, "recovery", probed=True, LEASE_S=lease_s)
            say(f"starting labsched on {engine} for recovery")
            stack.callback(peer.close)
            peer.open()
            stack.enter_context(peer.running())
            _kill_children(peer, report, CHILDREN, say)
            _lose_hosts(peer, report, lease_s, say)
            _empty_redis(peer, report, say)


# --- a killed child ----------------------------------------------------------------------


def _kill_children(peer: Labsched, report: Report, times: int, say: Say) -> None:
    seconds = []
    for number in range(times):
        say(f"{peer.engine}: killing child {number + 1} of {times}")
        job = _start_long(peer, f"child-{number}")
        held = peer.agent.ask("holder", job=job)
        child = _child_of(held["pid"])
        killed = time.clock_gettime(time.CLOCK_MONOTONIC)
        os.kill(child, signal.SIGKILL)
        left = peer.agent.ask("leaves", job=job, attempt=held["attempt"], timeout_s=60)
        seconds.append(LONG_S if left is None else left - killed)
        peer.agent.ask("cancel", job=job)
        until(lambda: peer.agent.ask("active") == 0, timeout_s=30, what="idle again")
    report.add(
        "recovery",
        "labsched",
        engine=peer.engine,
        measure="child killed",
        noticed_s_max=rounded(max(seconds)),
        noticed_s=[rounded(second) for second in seconds],
    )


def _start_long(peer: Labsched, branch: str) -> str:
    """Submit a long probe and wait until its body runs."""
    told = peer.agent.ask("submit", user="recovery", branch=branch, jobs=1, seconds=LONG_S)
    job = str(told["jobs"][0])
    until(lambda: _starts(peer, job), timeout_s=60, what="a long job begins", every_s=0.02)
    return job


def _starts(peer: Labsched, job: str) -> list[float]:
    return [span.start for span in probelog.read(peer.probe_log) if span.job == job]


def _child_of(worker: int) -> int:
    """The long-lived child of a worker, not multiprocessing's own helper."""
    children = psutil.Process(worker).children()
    return next(c.pid for c in children if "spawn_main" in " ".join(c.cmdline()))


# --- a lost host -------------------------------------------------------------------------


def _lose_hosts(peer: Labsched, report: Report, lease_s: int, say: Say) -> None:
    """Kill half of the workers with their children at once, each in the middle of a job."""
    lost = max(1, peer.place.workers // 2)
    say(f"{peer.engine}: {lost} workers and their children are killed; the lease is {lease_s} s")
    jobs = [_start_long(peer, f"host-{number}") for number in range(lost)]
    victims = [int(peer.agent.ask("holder", job=job)["pid"]) for job in jobs]
    doomed = [p for victim in victims for p in (victim, _child_of(victim))]
    killed = time.clock_gettime(time.CLOCK_MONOTONIC)
    for pid in doomed:
        os.kill(pid, signal.SIGKILL)
    until(
        lambda: all(len(_starts(peer, job)) > 1 for job in jobs),
        timeout_s=lease_s + 60,
        what="the lost jobs start again",
        every_s=0.05,
    )
    seconds = [_starts(peer, job)[1] - killed for job in jobs]
    for job in jobs:
        peer.agent.ask("cancel", job=job)
    _replace(peer, victims)
    report.add(
        "recovery",
        "labsched",
        engine=peer.engine,
        measure="host lost",
        lease_s=lease_s,
        started_again_s_max=rounded(max(seconds)),
        started_again_s=[rounded(second) for second in seconds],
    )


def _replace(peer: Labsched, victims: list[int]) -> None:
    """New workers for those that were killed."""
    peer.crew.members = [process for process in peer.crew.members if process.pid not in victims]
    for _ in victims:
        peer.hire()
    until(lambda: peer.agent.ask("active") == 0, timeout_s=30, what="idle again")


# --- Redis emptied -----------------------------------------------------------------------


def _empty_redis(peer: Labsched, report: Report, say: Say) -> None:
    say(f"{peer.engine}: Redis is emptied {LOSSES} times under load")
    peer.probe_log.write_text("")
    peer.fill(WIDE, BACKLOG)
    until(lambda: len(_ends(peer)) > 20, timeout_s=60, what="work goes on")
    emptied = []
    for _ in range(LOSSES):
        with redis.Redis.from_url(peer.redis) as client:
            emptied.append(time.clock_gettime(time.CLOCK_MONOTONIC))
            client.flushall()
        time.sleep(LOSS_EVERY_S)
    ends = _ends(peer)
    gaps = [_gap_after(ends, moment) for moment in emptied]
    report.add(
        "recovery",
        "labsched",
        engine=peer.engine,
        measure="Redis emptied",
        gap_s_max=rounded(max(gaps)),
        gap_s=[rounded(gap) for gap in gaps],
        jobs_after=sum(end > emptied[0] for end in ends),
    )


def _ends(peer: Labsched) -> list[float]:
    spans = probelog.read(peer.probe_log)
    return sorted(span.end for span in spans if span.end is not None)


def _gap_after(ends: list[float], moment: float) -> float:
    """The longest time without an end, from just before the loss to the next one."""
    upto = moment + LOSS_EVERY_S
    before = max((end for end in ends if end <= moment), default=moment)
    seen = [before, *(end for end in ends if moment < end < upto), upto]
    return max(after - earlier for earlier, after in pairwise(seen))
