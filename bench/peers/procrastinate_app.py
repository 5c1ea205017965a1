"""The application that Procrastinate's own worker command loads."""

from __future__ import annotations

import os

import procrastinate

app = procrastinate.App(
    connector=procrastinate.PsycopgConnector(conninfo=os.environ["BENCH_POSTGRES"])
)


@app.task(name="noop")
async def noop() -> None:
    """The empty body; a coroutine, which Procrastinate runs without a thread."""
