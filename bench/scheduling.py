"""How fast labsched schedules, beside plain RQ and Procrastinate on the same PostgreSQL and Redis.

Peers run unmodified, with as many workers, in the same run and in turn; a figure is the median of
its rounds. The PostgreSQL is private and as durable as PostgreSQL is by default.

    python bench/scheduling.py --json                   every part, within 15 minutes on 2 cores
    python bench/scheduling.py --json --only pass wide  some parts
    python bench/scheduling.py --json --full            more rounds and longer measures, RQ's forking worker,
                                                        recovery on SQLite too

Parts: latency, wide, chain, pass, decision, recovery. The last line says which bounds hold; the
exit code is 1 when one does not. Needs requirements-bench.txt and PostgreSQL's programs.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench import (
    scheduling_bounds,
    scheduling_latency,
    scheduling_passes,
    scheduling_recovery,
    scheduling_servers,
    scheduling_throughput,
)
from bench.peers.base import CHAIN, WIDE, Place
from bench.peers.ours import ENGINES
from bench.scheduling_figures import Report

PARTS = ("latency", WIDE, CHAIN, "pass", "decision", "recovery")
Say = scheduling_throughput.Say


def main() -> int:
    """Run the parts, print a line a result and the summary."""
    options = _options()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that servers and folders go
    report, began = Report(as_json=options.json), time.monotonic()
    with _progress() as say, _place(options.workers) as place:
        facts = scheduling_servers.postgres_facts(place.postgres)
        cores = len(os.sched_getaffinity(0))
        report.add("machine", "", cores=cores, workers=options.workers, postgresql=facts)
        _run(place, report, options, say)
    told = scheduling_bounds.summary(report)
    report.say(told | {"minutes": round((time.monotonic() - began) / 60, 1)})
    return 1 if told["holds"] is False else 0


def _run(place: Place, report: Report, options: argparse.Namespace, say: Say) -> None:
    """The chosen parts. One that breaks is a row of its own, and fails the run; the rest goes on."""
    shapes = [shape for shape in (WIDE, CHAIN) if shape in options.only]
    sizes = [(pending, max(1, pending // 100)) for pending in options.pass_pending]
    rounds, engines = options.rounds, ENGINES if options.full else ENGINES[:1]
    parts: dict[str, Callable[[], None]] = {
        "latency": lambda: scheduling_latency.run(place, report, options.samples, say),
        "throughput": lambda: scheduling_throughput.run(
            place, report, _throughput_sizes(options), shapes, say
        ),
        "pass": lambda: scheduling_passes.run(place, report, sizes, rounds, say),
        "decision": lambda: scheduling_passes.decide(
            place, report, max(options.pending), rounds, say
        ),
        "recovery": lambda: scheduling_recovery.run(place, report, engines, options.lease, say),
    }
    for name, part in parts.items():
        if name in options.only or (name == "throughput" and shapes):
            try:
                part()
            except (AssertionError, RuntimeError) as error:
                report.add("broken", "labsched", part=name, error=str(error))


def _throughput_sizes(options: argparse.Namespace) -> scheduling_throughput.Sizes:
    peers = ("rq-simple", "rq-warm", "rq-fork") if options.full else ("rq-simple", "rq-warm")
    return scheduling_throughput.Sizes(
        pending=tuple(options.pending),
        jobs=2_000 if options.full else 1_000,
        seconds=20.0 if options.full else 4.0,
        rounds=options.rounds,
        peers=peers,
    )


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--json", action="store_true", help="JSON lines instead of sentences")
    parser.add_argument("--full", action="store_true", help="longer, and all peers and engines")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, metavar="PART")
    parser.add_argument("--workers", type=int, default=4, help="of every peer")
    parser.add_argument("--rounds", type=int, help="of everything; 3, with --full 5")
    parser.add_argument("--samples", type=int, help="of each latency; 60, with --full 300")
    parser.add_argument(
        "--pending", type=int, nargs="+", default=[1_000, 100_000], help="wide, chain, decision"
    )
    parser.add_argument("--pass-pending", type=int, nargs="+", default=[1_000, 100_000, 1_000_000])
    parser.add_argument("--lease", type=int, default=30, help="seconds, when a host is lost")
    options = parser.parse_args()
    options.rounds = options.rounds or (5 if options.full else 3)
    options.samples = options.samples or (300 if options.full else 60)
    if options.workers < 2:
        parser.error("--workers: give at least 2, a lost host needs another to take over.")
    return options


@contextmanager
def _progress() -> Iterator[Say]:
    """What goes on now, on stderr: one moving line for a person, lines for a log."""
    console = Console(stderr=True)
    if console.is_terminal:
        columns = SpinnerColumn(), TimeElapsedColumn(), TextColumn("{task.description}")
        with Progress(*columns, console=console, transient=True) as bar:
            task = bar.add_task("starting PostgreSQL and Redis")
            yield lambda sentence: bar.update(task, description=sentence)
    else:
        began = time.monotonic()
        yield lambda sentence: console.print(f"{time.monotonic() - began:5.0f} s  {sentence}")


@contextmanager
def _place(workers: int) -> Iterator[Place]:
    """Both servers and a folder, gone afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="labsched-bench-"))
    try:
        with (
            scheduling_servers.durable_postgres() as postgres,
            scheduling_servers.embedded_redis(folder / "redis") as redis,
        ):
            yield Place(postgres, redis, folder, workers)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
