"""Rows, percentiles and the lines that the benchmark prints."""

from __future__ import annotations

import json
import os
import statistics
import sys
from collections.abc import Iterable, Sequence
from typing import Any

Row = dict[str, Any]


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that `share` of all do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, max(0, round(share * len(ordered) + 0.5) - 1))]


def spread(prefix: str, seconds: Sequence[float]) -> Row:
    """p50 and p99 in milliseconds, under names that begin with `prefix`."""
    return {
        f"{prefix}_ms_p50": round(statistics.median(seconds) * 1e3, 3),
        f"{prefix}_ms_p99": round(percentile(seconds, 0.99) * 1e3, 3),
    }


def middle(values: Iterable[float | None]) -> float | None:
    """The median of what was measured; None when nothing was."""
    found = [value for value in values if value is not None]
    return statistics.median(found) if found else None


def ratio(above: float | None, below: float | None) -> float | None:
    return None if above is None or not below else above / below


def rounded(value: float | None, digits: int = 3) -> float | None:
    return None if value is None else round(value, digits)


class Report:
    """Prints rows as they come and keeps them for the summary."""

    def __init__(self, *, as_json: bool) -> None:
        self.rows: list[Row] = []
        self._as_json = as_json

    def add(self, bench: str, peer: str, **values: Any) -> Row:
        """One result: printed now, compared at the end."""
        row = {"bench": bench, "peer": peer, **values, "load1": round(os.getloadavg()[0], 2)}
        self.rows.append(row)
        self.say(row)
        return row

    def say(self, row: Row) -> None:
        text = json.dumps(row) if self._as_json else _sentence(row)
        sys.stdout.write(text + "\n")
        sys.stdout.flush()

    def find(self, bench: str, **wanted: Any) -> list[Row]:
        """The rows of one measure that hold all these values."""
        return [
            row
            for row in self.rows
            if row["bench"] == bench and all(row.get(key) == want for key, want in wanted.items())
        ]


def _sentence(row: Row) -> str:
    rest = ", ".join(f"{key} {value}" for key, value in row.items() if key not in ("bench", "peer"))
    return f"{row['bench']:>10} {row.get('peer', ''):>14}: {rest}"
