"""The bounds of the work on speed, each as one ratio or figure of this run, and whether it holds."""

from __future__ import annotations

from collections.abc import Iterator

from bench.peers.base import CHAIN, WIDE
from bench.scheduling_figures import Report, Row, middle, ratio, rounded

WIDE_TO_RQ, WIDE_TO_RQ_AIM, WIDE_TO_PROCRASTINATE, CHAIN_TO_RQ = 0.6, 0.8, 1.5, 0.25
DECISION, DECISION_PENDING, GROWTH = 100.0, 100_000, 1.3
START_P50_MS, START_P99_MS, START_TO_RQ = 15.0, 60.0, 4.0
CHILD_S, HOST_S, GAP_S = 1.0, 2.0, 3.0


def summary(report: Report) -> Row:
    """All bounds that this run measured. `holds` is None when nothing was."""
    bounds = [*_throughput(report), *_decision(report), *_growth(report)]
    bounds += [*_latency(report), *_recovery(report)]
    bounds += [_broken(row) for row in report.find("broken")]
    holds = all(bound["holds"] for bound in bounds) if bounds else None
    return {"bench": "summary", "peer": "labsched", "bounds": bounds, "holds": holds}


def _bound(name: str, value: float | None, *, least: float = 0.0, most: float = 0.0) -> Row:
    holds = value is not None and (value >= least if least else value <= most)
    limit = {"at_least": least} if least else {"at_most": most}
    return {"bound": name, "value": rounded(value), **limit, "holds": holds}


def _broken(row: Row) -> Row:
    return {"bound": f"{row['part']}: measured to its end", "value": None, "holds": False}


def _throughput(report: Report) -> Iterator[Row]:
    for row in report.find(WIDE, peer="labsched"):
        where = f"wide, {row['pending']} pending, {row['engine']}"
        warm = _to(report, row, "rq-warm")
        if warm is not None:
            aim = {"aim": WIDE_TO_RQ_AIM, "aim_met": warm >= WIDE_TO_RQ_AIM}
            yield _bound(f"{where}: to RQ, same worker kind", warm, least=WIDE_TO_RQ) | aim
        theirs = _to(report, row, "procrastinate")
        if theirs is not None:
            yield _bound(f"{where}: to Procrastinate", theirs, least=WIDE_TO_PROCRASTINATE)
    for row in report.find(CHAIN, peer="labsched"):
        warm = _to(report, row, "rq-warm")
        if warm is not None:
            name = f"chain, {row['pending']} pending, {row['engine']}: to RQ's chain"
            yield _bound(name, warm, least=CHAIN_TO_RQ)


def _to(report: Report, row: Row, peer: str) -> float | None:
    """Jobs a second to a peer's: the median of the rounds, each by itself, so that noise is shared."""
    found = report.find(row["bench"], peer=peer, beside=row["beside"])
    if not found:
        return None
    pairs = zip(row["rounds"], found[0]["rounds"], strict=True)
    return middle(ratio(mine, theirs) for mine, theirs in pairs)


def _decision(report: Report) -> Iterator[Row]:
    for theirs in report.find("decision", peer="procrastinate"):
        if theirs["pending"] < DECISION_PENDING:
            continue  # the bound speaks of much that waits
        for row in report.find("decision", peer="labsched", pending=theirs["pending"]):
            value = ratio(theirs["decision_cpu_ms"], row["decision_cpu_ms"])
            name = f"saturated decision, {row['pending']} pending, {row['engine']}: CPU cheaper"
            yield _bound(name, value, least=DECISION)


def _growth(report: Report) -> Iterator[Row]:
    for engine in ("postgresql", "sqlite"):
        for mode in ("saturated", "free"):
            rows = report.find("pass", engine=engine, mode=mode)
            by_size = {row["pending"]: row["to_smallest"] for row in rows}
            if len(by_size) < 2:
                continue
            small, large = min(by_size), max(by_size)
            name = f"pass, {mode}, {engine}: {large} to {small} pending"
            yield _bound(name, by_size[large], most=GROWTH)


def _latency(report: Report) -> Iterator[Row]:
    plain = report.find("latency", peer="rq-simple")
    for row in report.find("latency", peer="labsched"):
        for share, most_ms in (("p50", START_P50_MS), ("p99", START_P99_MS)):
            key = f"start_ms_{share}"
            most = max(most_ms, START_TO_RQ * plain[0][key]) if plain else most_ms
            name = f"latency, {row['measure']}, {row['engine']}: {share} ms"
            yield _bound(name, row[key], most=round(most, 1))


def _recovery(report: Report) -> Iterator[Row]:
    for row in report.find("recovery"):
        name = f"recovery, {row['measure']}, {row['engine']}: seconds"
        if row["measure"] == "child killed":
            yield _bound(name, row["noticed_s_max"], most=CHILD_S)
        elif row["measure"] == "host lost":
            yield _bound(name, row["started_again_s_max"], most=row["lease_s"] + HOST_S)
        else:
            yield _bound(name, row["gap_s_max"], most=GAP_S)
