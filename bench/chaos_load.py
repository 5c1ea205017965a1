"""The people of a chaos run: each tenant submits workflows of probes over HTTP and cancels a few.

What was answered 201, how often each job was ordered to fail and whether its cancel was answered is
kept: the verdict compares the rows with it.
"""

from __future__ import annotations

import random
import threading
import time
import uuid
from collections.abc import Iterable, Sequence
from typing import Any

import requests

from tests.client import Client, probe

Row = dict[str, Any]
BRANCHES = ("tumour", "stroma", "control")
ALWAYS = 1_000_000  # more attempts than any job has
AGAIN_S = 1.0  # after a submission that was not answered
REQUEST_TIMEOUT_S = 30.0
# how one of a hundred jobs fails: the way, and in how many attempts
FAILURES = (
    *[("error", 1)] * 5,
    *[("error", 2)] * 2,
    *[("error", ALWAYS)] * 2,
    *[("exit", 1)] * 2,
    ("oom", 1),
    ("hang", 1),
)


class Person(threading.Thread):
    """One tenant that keeps a few jobs waiting until told to stop.

    `backlog` is set by the run: how many of the tenant's jobs are not over. A tenant rests now and
    then until it has none, so that its user slot passes on.
    """

    def __init__(self, client: Client, rng: random.Random, *, enough: int) -> None:
        super().__init__(name=client.user, daemon=True)
        self.client = client
        self.rng = rng
        self.enough = enough
        self.backlog = 0
        self.submitted: list[Row] = []
        self.refusals: list[str] = []
        self._over = threading.Event()

    def stop(self) -> None:
        """Submit nothing more; join() returns soon."""
        self._over.set()

    def run(self) -> None:
        while not self._over.is_set():
            if self.backlog >= self.enough:
                self._over.wait(0.5)
                continue
            made = self._submit(workflow(self.rng))
            self._cancel_some(made)
            self._over.wait(1.5)  # until `backlog` knows of it
            if self.rng.random() < 0.25:
                self._rest()

    def _rest(self) -> None:
        while self.backlog and not self._over.wait(0.5):
            continue
        self._over.wait(self.rng.uniform(0, 5))

    def _submit(self, body: Row) -> list[Row]:
        """Submit until it is answered, by one key, so that it is accepted once."""
        headers = {"Idempotency-Key": uuid.UUID(int=self.rng.getrandbits(128)).hex}
        while not self._over.is_set():
            try:
                answer = self.client.post(
                    "/api/workflows", body, headers=headers, timeout=REQUEST_TIMEOUT_S
                )
            except requests.RequestException as error:
                self.refusals.append(type(error).__name__)
            else:
                if answer.status_code == 201:
                    return self._note(body["jobs"], answer.json()["jobs"])
                self.refusals.append(f"{answer.status_code} {answer.text[:200]}")
            self._over.wait(AGAIN_S)
        return []

    def _note(self, specs: Sequence[Row], made: Iterable[Row]) -> list[Row]:
        fails = {spec["job_id"]: _ordered_failures(spec["params"]) for spec in specs}
        new = [{"id": job["id"], "fails": fails[job["job_id"]], "cancel": ""} for job in made]
        self.submitted += new
        return new

    def _cancel_some(self, made: Sequence[Row]) -> None:
        if not made or self.rng.random() > 0.3:
            return
        chosen = self.rng.choice(made)
        time.sleep(self.rng.uniform(0, 2))
        before, chosen["cancel"] = chosen["cancel"], "asked"
        try:
            answer = self.client.post(f"/api/jobs/{chosen['id']}/cancel", timeout=REQUEST_TIMEOUT_S)
        except requests.RequestException as error:
            self.refusals.append(type(error).__name__)
            return
        if answer.status_code == 200:
            chosen["cancel"] = "answered"
        elif answer.status_code == 409:  # it was over
            chosen["cancel"] = before
        else:
            self.refusals.append(f"{answer.status_code} {answer.text[:200]}")


def workflow(rng: random.Random) -> Row:
    """A workflow of 4-10 probes over the tenant's branches, some of which wait for others."""
    specs: list[Row] = []
    for number in range(rng.randint(4, 10)):
        branch = rng.choice(BRANCHES) if rng.random() < 0.85 else None
        earlier = [spec["job_id"] for spec in specs]
        after = rng.sample(earlier, min(len(earlier), rng.choice((0, 0, 0, 1, 2))))
        spec = probe(f"j{number}", branch, after=after, seconds=_seconds(rng), **_failure(rng))
        specs.append({**spec, "priority": rng.choice((0, 0, 0, 5))})
    return {
        "name": f"chaos {rng.getrandbits(24):06x}",
        "on_failure": "halt" if rng.random() < 0.2 else "continue",
        "jobs": specs,
    }


def _seconds(rng: random.Random) -> float:
    low, high = rng.choices(((0.05, 0.3), (0.3, 1.2), (1.2, 3.0)), weights=(4, 4, 2))[0]
    return round(rng.uniform(low, high), 3)


def _failure(rng: random.Random) -> Row:
    number = rng.randrange(100)
    if number >= len(FAILURES):
        return {}
    how, attempts = FAILURES[number]
    return {"fail": how, "fail_attempts": attempts}


def _ordered_failures(params: Row) -> int:
    return int(params.get("fail_attempts", 0)) if params.get("fail") else 0
