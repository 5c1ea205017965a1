"""How a chaos run tells people how far it is and what came of it."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Iterator
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from bench.chaos_verdict import VIOLATIONS, Verdict

SAY_EVERY_S = 15.0  # where no terminal shows a bar


class Bar:
    """How far the run is: a bar on a terminal, a line now and then elsewhere."""

    def __init__(self, told: Console, bar: Progress, total_s: float) -> None:
        self.told = told
        self.bar = bar
        self.total_s = total_s
        self.task = bar.add_task("", total=total_s)
        self._say_due = 0.0

    def __call__(self, gone_s: float, words: str) -> None:
        self.bar.update(self.task, completed=gone_s, description=words)
        if not self.told.is_terminal and time.monotonic() >= self._say_due:
            self._say_due = time.monotonic() + SAY_EVERY_S
            self.told.print(
                f"{gone_s:5.0f} of {self.total_s:.0f} s: {words}", highlight=False, soft_wrap=True
            )


@contextlib.contextmanager
def bar_of(told: Console, total_s: float) -> Iterator[Bar]:
    columns = (BarColumn(20), TimeRemainingColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=told, disable=not told.is_terminal) as bar:
        yield Bar(told, bar, total_s)


def tell(verdict: Verdict, about: dict[str, Any], *, as_json: bool) -> None:
    """One JSON line, or a table, on stdout."""
    row = {"bench": "chaos", **about, **verdict.figures, **verdict.counts}
    if as_json:
        sys.stdout.write(json.dumps(row) + "\n")
        return
    table = Table("figure", "value", title="chaos")
    for name, value in row.items():
        bad = name in VIOLATIONS and value
        table.add_row(name, str(value), style="red" if bad else None)
    Console().print(table)
