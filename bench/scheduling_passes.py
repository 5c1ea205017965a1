"""One pass of the scheduler against the backlog, and a saturated decision against Procrastinate's."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from contextlib import ExitStack, closing

from bench.peers.base import Place
from bench.peers.ours import ENGINES, Database
from bench.peers.procrastinate_locks import ProcrastinateLocks
from bench.scheduling_cpu import backend_seconds
from bench.scheduling_figures import Report, Row, rounded, spread
from bench.scheduling_throughput import Say

SIZES = ((1_000, 10), (100_000, 1_000), (1_000_000, 10_000))
LANES = 10  # of each tenant
MODES = ("saturated", "free")
BLOCK = 20  # passes at a stretch; sizes and modes take turns
TURNS = 3  # in a round
ALIVE = {"WORKER_TTL_S": 86_400, "WITHDRAW_S": 86_400, "LEASE_S": 86_400}


def run(
    place: Place, report: Report, sizes: Sequence[tuple[int, int]], rounds: int, say: Say
) -> None:
    """Passes on both engines, the sizes of one engine in turn."""
    for engine in ENGINES:
        with ExitStack() as stack:
            loaded = {}
            for pending, tenants in sizes:
                say(f"loading {pending} jobs of {tenants} tenants on {engine}")
                database = stack.enter_context(closing(_database(place, engine, pending)))
                took = database.agent.ask("load", pending=pending, tenants=tenants, lanes=LANES)
                database.agent.ask("line_up_workers", count=place.workers)
                loaded[pending, tenants] = (database, took)
            _time(place, engine, loaded, report, rounds, say)


def _database(place: Place, engine: str, pending: int) -> Database:
    return Database(place, engine, f"pass-{engine}-{pending}", **ALIVE)


def _time(
    place: Place,
    engine: str,
    loaded: dict[tuple[int, int], tuple[Database, float]],
    report: Report,
    rounds: int,
    say: Say,
) -> None:
    told: dict[tuple[str, int], list[Row]] = {}
    turns = rounds * TURNS
    for turn in range(turns + 1):
        say(f"passes on {engine}: " + (f"turn {turn} of {turns}" if turn else "warming up"))
        for mode in MODES:
            for (pending, _), (database, _) in loaded.items():
                block = database.agent.ask("passes", mode=mode, count=BLOCK, promotes=place.workers)
                if turn:
                    told.setdefault((mode, pending), []).append(block)
    for mode in MODES:
        smallest = told[mode, min(pending for pending, _ in loaded)]
        for (pending, tenants), (_, load_s) in loaded.items():
            row = {"engine": engine, "mode": mode, "pending": pending, "tenants": tenants}
            row |= _row(told[mode, pending], smallest)
            row |= {"promoted": place.workers * (mode == "free"), "load_s": round(load_s, 1)}
            report.add("pass", "labsched", **row)


def _row(blocks: list[Row], smallest: list[Row]) -> Row:
    """`to_smallest`: the median over the turns of this size's median to the smallest size's."""
    seconds = [second for block in blocks for second in block["seconds"]]
    medians, beside = (
        [statistics.median(block["seconds"]) for block in each] for each in (blocks, smallest)
    )
    growth = [mine / theirs for mine, theirs in zip(medians, beside, strict=True)]
    return {
        **spread("pass", seconds),
        "to_smallest": rounded(statistics.median(growth)),
        "cpu_ms_per_pass": rounded(_cpu_s(blocks) * 1e3),
        "cpu_ms_backend": rounded(statistics.median(x["backend_s"] for x in blocks) * 1e3),
        "passes": len(seconds),
    }


def _cpu_s(blocks: list[Row]) -> float:
    return statistics.median(block["own_s"] + block["backend_s"] for block in blocks)


# --- a saturated decision ----------------------------------------------------------------

BUSY_LANES = 8
DECISION_TENANTS = 2
FETCHES = 3


def decide(place: Place, report: Report, pending: int, rounds: int, say: Say) -> None:
    """All lanes are busy, workers are free, much waits: what does it cost to find nothing?"""
    settings = {**ALIVE, "MAX_WORKERS": 2 * BUSY_LANES}
    with ExitStack() as stack:
        say(f"loading {pending} jobs of {BUSY_LANES} lanes, ours and Procrastinate's")
        ours = [(engine, _busy(stack, place, engine, pending, settings)) for engine in ENGINES]
        theirs = ProcrastinateLocks(place, processes=1, database=_fresh(place))
        stack.enter_context(closing(theirs))
        theirs.open()
        theirs.fill_lanes(BUSY_LANES, pending)
        for _ in range(BUSY_LANES):
            if not theirs.fetch():
                raise RuntimeError("Procrastinate found no job in an idle lane")
        _alternate(ours, theirs, report, pending, rounds, say)


def _fresh(place: Place) -> str:
    from bench.scheduling_servers import new_database

    return new_database(place.postgres, "procrastinate_busy")


def _busy(
    stack: ExitStack, place: Place, engine: str, pending: int, settings: dict[str, int]
) -> Database:
    database = Database(place, engine, f"decision-{engine}", **settings)
    stack.enter_context(closing(database))
    lanes = BUSY_LANES // DECISION_TENANTS
    database.agent.ask("load", pending=pending, tenants=DECISION_TENANTS, lanes=lanes)
    database.agent.ask("line_up_workers", count=2 * BUSY_LANES)
    return database


def _alternate(
    ours: list[tuple[str, Database]],
    theirs: ProcrastinateLocks,
    report: Report,
    pending: int,
    rounds: int,
    say: Say,
) -> None:
    fetched: list[tuple[float, float]] = []
    told: dict[str, list[Row]] = {engine: [] for engine, _ in ours}
    for number in range(rounds):
        say(f"saturated decisions, round {number + 1} of {rounds}")
        for engine, database in ours:
            told[engine].append(
                database.agent.ask("passes", mode="saturated", count=BLOCK, promotes=BUSY_LANES)
            )
        fetched += [_fetch(theirs) for _ in range(FETCHES)]
    common = {"pending": pending, "lanes": BUSY_LANES}
    for engine, blocks in told.items():
        seconds = [second for block in blocks for second in block["seconds"]]
        _report_decision(report, "labsched", engine, seconds, _cpu_s(blocks), common)
    walls, cpus = [wall for wall, _ in fetched], [cpu for _, cpu in fetched]
    cpu_s = statistics.median(cpus)
    _report_decision(report, "procrastinate", "postgresql", walls, cpu_s, common)


def _report_decision(
    report: Report, peer: str, engine: str, seconds: list[float], cpu_s: float, common: Row
) -> None:
    figures = {**spread("decision", seconds), "decision_cpu_ms": rounded(cpu_s * 1e3)}
    report.add("decision", peer, engine=engine, **common, **figures, decisions=len(seconds))


def _fetch(theirs: ProcrastinateLocks) -> tuple[float, float]:
    """One fetch that finds every lock taken: (seconds, CPU seconds with the backend's)."""
    backend = theirs.link.info.backend_pid
    began, used = time.perf_counter(), time.process_time() + backend_seconds(backend)
    if theirs.fetch():
        raise RuntimeError("Procrastinate found a job though every lane was busy")
    cpu = time.process_time() + backend_seconds(backend) - used
    return time.perf_counter() - began, cpu
