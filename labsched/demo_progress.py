"""One bar a job in a terminal; elsewhere a line whenever a job's state or phase changes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Column


class Watcher:
    """Shows jobs as the API tells them."""

    def __init__(self, console: Console, jobs: Iterable[Mapping[str, Any]]) -> None:
        self.console = console
        self._progress = Progress(
            TextColumn("{task.fields[key]:<8}"),
            BarColumn(24),
            TextColumn("{task.percentage:>4.0f}%"),
            TextColumn("{task.fields[note]}", table_column=Column(no_wrap=True)),
            TimeElapsedColumn(),
            console=console,
        )
        self._bars: dict[str, TaskID] = {}
        self._said: dict[str, str] = {}
        if console.is_terminal:
            for job in jobs:
                key = job["job_id"]
                self._bars[key] = self._progress.add_task(
                    key, total=1.0, key=key, note="", start=False
                )

    def __enter__(self) -> Watcher:
        if self._bars:
            self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bars:
            self._progress.stop()

    def show(self, jobs: Iterable[Mapping[str, Any]]) -> None:
        """Bring every bar, or the printed lines, up to date."""
        for job in jobs:
            bar = self._bars.get(job["job_id"])
            if bar is None:
                self._say(job)
            else:
                self._move(bar, job)

    def _move(self, bar: TaskID, job: Mapping[str, Any]) -> None:
        if job["started_at"] and not self._progress.tasks[bar].started:
            self._progress.start_task(bar)
        self._progress.update(bar, completed=job["progress"], note=note(job))
        if job["finished_at"]:
            self._progress.stop_task(bar)

    def _say(self, job: Mapping[str, Any]) -> None:
        state = f"{job['state']} {job['phase'] or ''}".strip()
        if self._said.get(job["job_id"]) != state:
            self._said[job["job_id"]] = state
            self.console.print(f"  {job['job_id']:<8} {job['progress']:>4.0%}  {note(job)}")


def note(job: Mapping[str, Any]) -> str:
    """State, phase and tiles of a job in a few words."""
    words = [job["state"].lower()]
    if job["state"] == "RUNNING" and job["phase"]:
        words.append(job["phase"])
    elif job["state"] in ("PENDING", "QUEUED") and job["reason"]:
        words.append(job["reason"].replace("_", " "))
    if job["tiles_total"]:
        words.append(f"{job['tiles_done']}/{job['tiles_total']} tiles")
    return ", ".join(words)
