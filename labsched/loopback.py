"""HTTP to our own web process on this machine: no proxy, every status is an answer."""

from __future__ import annotations

import json
import shutil
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


@dataclass(frozen=True)
class Answer:
    """Status and body of one response."""

    status: int
    body: bytes

    def json(self) -> Any:
        """The body as JSON; raises ValueError when it is something else."""
        return json.loads(self.body)


def request(
    method: str,
    url: str,
    *,
    body: object = None,
    headers: Mapping[str, str] | None = None,
    timeout_s: float = 30,
) -> Answer:
    """Ask and return the answer, also a 4xx or 5xx one. Raises OSError when nobody answers."""
    data = None if body is None else json.dumps(body).encode()
    asked = urllib.request.Request(url, data=data, method=method, headers=dict(headers or {}))  # noqa: S310
    if data is not None:
        asked.add_header("Content-Type", "application/json")
    try:
        with _OPENER.open(asked, timeout=timeout_s) as answer:
            return Answer(answer.status, answer.read())
    except urllib.error.HTTPError as error:
        with error:
            return Answer(error.code, error.read())


def download(url: str, target: Path, *, headers: Mapping[str, str]) -> None:
    """Write a body to `target` piece by piece. Raises OSError when it does not arrive whole."""
    asked = urllib.request.Request(url, headers=dict(headers))  # noqa: S310  our own http
    with _OPENER.open(asked, timeout=60) as answer, target.open("wb") as sink:
        shutil.copyfileobj(answer, sink)
