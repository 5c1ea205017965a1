"""The real stack under load while its schedulers, workers, their children and Redis die and stand still.

Web, two schedulers, five workers for four run slots, six tenants for three user slots, on loopback
with a data folder of their own. When the time is over, faults and load end, what is left drains, and
the truth from the probe log is held against the rows: bench/chaos_verdict.py says what is counted,
bench/chaos_bodies.py what a log can show, bench/chaos_faults.py what is done to whom.

    python bench/chaos.py --minutes 30 --seed 1 --json            one line; exit 1 unless all counts are 0
    python bench/chaos.py --minutes 3 --postgres                  on a PostgreSQL of its own
    python bench/chaos.py --minutes 3 --evidence run.json         keeps what the verdict rests on
    python bench/chaos.py --judge run.json                        the verdict on kept evidence

The seed fixes the load and the order of faults; who is hit at what moment is the machine's doing.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from rich.console import Console  # noqa: E402

from bench.chaos_bodies import Evidence  # noqa: E402
from bench.chaos_telling import Bar, bar_of, tell  # noqa: E402
from bench.chaos_verdict import judge  # noqa: E402

if TYPE_CHECKING:
    from bench.chaos_faults import Faults
    from bench.chaos_load import Person
    from tests.stack import Stack

SCHEDULERS = ("scheduler", "scheduler-2")
WORKERS = 5
STALL_LEASES = 2  # STALL_S in leases: most that stood still wake before they count as stalled
TENANTS = 6
ENOUGH = 8  # jobs of a tenant under way
TICK_S = 0.2
BACKLOG_EVERY_S = 0.6
LATE_WORDS_S = 4.0  # a woken zombie's, after everything drained
LIMITS = {"MAX_WORKERS": 4, "MAX_ACTIVE_USERS": 3}
SETTINGS = {
    **LIMITS,
    "MAX_ATTEMPTS": 6,  # faults alone should end no job
    "RETRY_BACKOFF_S": 0.1,
    "RATE_LIMIT_PER_S": 0,
    "RATE_LIMIT_ADDRESS_PER_S": 0,
}


def main() -> int:
    """Print the verdict; 0 when nothing was violated."""
    options = _options()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # leaves no process behind
    told = Console(stderr=True)
    if options.judge:
        evidence, about = _kept(options.judge)
    else:
        evidence, about = _run(options, told)
    if options.evidence:
        options.evidence.write_text(json.dumps({"about": about, **asdict(evidence)}))
    verdict = judge(evidence)
    for finding in verdict.findings:
        told.print(finding, style="red", highlight=False, soft_wrap=True)
    tell(verdict, about, as_json=options.json)
    return 0 if verdict.clean else 1


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=_positive, default=3.0, help="of faults; 3 by default")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true", help="one line instead of a table")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--database-url", help="a PostgreSQL server to make a database on")
    where.add_argument("--postgres", action="store_true", help="a private PostgreSQL")
    parser.add_argument("--lease-s", type=_positive, default=6.0)
    parser.add_argument(
        "--quantum-s", type=float, default=0.0, help="turns of tenants; a job may wait for one"
    )
    parser.add_argument("--kill-every-s", type=_positive, default=7.5)
    parser.add_argument("--stop-every-s", type=_positive, default=15.0)
    parser.add_argument("--redis-every-s", type=_positive, help="100, or a third of a short run")
    parser.add_argument("--drain-s", type=_positive, default=180.0, help="bound on the drain")
    parser.add_argument(
        "--evidence", type=Path, help="write what the verdict rests on to this file"
    )
    parser.add_argument("--judge", type=Path, help="judge kept evidence, run nothing")
    options = parser.parse_args()
    if options.redis_every_s is None:
        options.redis_every_s = min(100.0, options.minutes * 20)
    return options


def _positive(text: str) -> float:
    number = float(text)
    if not 0 < number < 1e6:
        raise argparse.ArgumentTypeError(f"{text} is not a number above 0")
    return number


# --- a run -------------------------------------------------------------------------------


def _run(options: argparse.Namespace, told: Console) -> tuple[Evidence, dict[str, Any]]:
    with _database(options) as engine, _stack(options) as stack:
        run = Run(stack, options, told)
        evidence = run.evidence()
        about = {
            "engine": engine,
            "minutes": options.minutes,
            "seed": options.seed,
            "lease_s": options.lease_s,
            "own_deaths": run.faults.deaths,
            "refusals": sum(len(person.refusals) for person in run.people),
        }
    return evidence, about


@contextlib.contextmanager
def _database(options: argparse.Namespace) -> Iterator[str]:
    """Name the server that the stack makes its database on. Yields the engine."""
    from tests import private_postgres

    with contextlib.ExitStack() as stack:
        url = options.database_url
        if url and not url.startswith(("postgres", "pgsql")):
            raise SystemExit("--database-url takes a postgresql:// URL; leave it out for SQLite.")
        if options.postgres:
            programs = private_postgres.find_programs()
            if programs is None:
                raise SystemExit("PostgreSQL is not installed here: give --database-url a server.")
            url = stack.enter_context(private_postgres.private_postgres(programs))
        os.environ["DATABASE_URL"] = url or ""
        yield "postgresql" if url else "sqlite"


@contextlib.contextmanager
def _stack(options: argparse.Namespace) -> Iterator[Stack]:
    """The running stack; this process reads its database through Django's own models."""
    from tests.stack import Stack

    settings = {
        **SETTINGS,
        "LEASE_S": options.lease_s,
        "STALL_S": options.lease_s * STALL_LEASES,
        "ACTIVE_USER_QUANTUM_S": options.quantum_s,
    }
    with Stack(cpu_workers=WORKERS, settings=settings) as stack:
        for name in SCHEDULERS:
            stack.start_scheduler(name)
        os.environ.update(stack.env)
        import django

        django.setup()
        from bench import chaos_rows

        try:
            yield stack
        finally:
            chaos_rows.close()


class Run:
    """Load, faults and the drain of one run."""

    def __init__(self, stack: Stack, options: argparse.Namespace, told: Console) -> None:
        from bench.chaos_rows import Clock, LeaseBook

        self.stack = stack
        self.options = options
        self.told = told
        self.book = LeaseBook()
        self.clock = Clock()
        self.rng = random.Random(options.seed)
        self.faults = self._faults()
        self.people = [self._person(number) for number in range(TENANTS)]
        self._backlog_due = 0.0

    def _faults(self) -> Faults:
        from bench.chaos_faults import Faults, Pace

        options = self.options
        return Faults(
            self.stack,
            random.Random(self.rng.random()),
            Pace(options.kill_every_s, options.stop_every_s, options.redis_every_s),
            lease_s=options.lease_s,
            stall_s=options.lease_s * STALL_LEASES,
            database=None if self.stack.database.server else Path(self.stack.database.name),
        )

    def _person(self, number: int) -> Person:
        from bench.chaos_load import Person

        client = self.stack.client(f"lab-{number}")
        return Person(client, random.Random(self.rng.random()), enough=ENOUGH)

    def evidence(self) -> Evidence:
        """Run to the end and collect what a verdict needs."""
        from bench import chaos_rows

        for person in self.people:
            person.start()
        with bar_of(self.told, self.options.minutes * 60) as show:
            self._harm(show)
            for person in self.people:
                person.stop()
            self.faults.end()
            self._drain(show)
        for person in self.people:
            person.join()
        return Evidence(
            log=_read_log(Path(self.stack.env["LABSCHED_PROBE_LOG"])),
            rows=chaos_rows.jobs(self.clock),
            submitted=[job for person in self.people for job in person.submitted],
            history=[*self.faults.history, *self.book.entries()],
            max_workers=LIMITS["MAX_WORKERS"],
            max_active_users=LIMITS["MAX_ACTIVE_USERS"],
        )

    def _harm(self, show: Bar) -> None:
        began = time.monotonic()
        while (gone := time.monotonic() - began) < self.options.minutes * 60:
            self.faults.turn(self._look())
            show(gone, self._words())
            time.sleep(TICK_S)

    def _drain(self, show: Bar) -> None:
        """Until every job is over, or the bound; then a moment for late words."""
        give_up_at = time.monotonic() + self.options.drain_s
        calm_since = None
        while time.monotonic() < give_up_at:
            self.faults.mend(self._look())
            self._backlog_due = 0.0
            show(self.options.minutes * 60, f"draining, {self._words()}")
            busy = sum(person.backlog for person in self.people) or any(
                person.is_alive() for person in self.people
            )
            calm_since = None if busy else calm_since or time.monotonic()
            if calm_since and time.monotonic() > calm_since + LATE_WORDS_S:
                return
            time.sleep(TICK_S)

    def _look(self) -> Any:
        """The leases held now, noted in the book; the people learn their backlogs now and then."""
        from bench import chaos_rows

        now = time.monotonic()
        leases = chaos_rows.held_by_pid()
        self.book.note(leases, now)
        self.clock.note()
        if now >= self._backlog_due:
            self._backlog_due = now + BACKLOG_EVERY_S
            live = chaos_rows.live_by_tenant()
            for person in self.people:
                person.backlog = live.get(person.client.user, 0)
        return leases

    def _words(self) -> str:
        history = self.faults.history
        kills = [entry for entry in history if entry["what"] == "kill"]
        return (
            f"{sum(len(person.submitted) for person in self.people)} jobs, "
            f"{sum(person.backlog for person in self.people)} under way, {len(kills)} kills "
            f"({sum(bool(kill['held']) for kill in kills)} holding), "
            f"{sum(entry['what'] == 'stop' for entry in history)} stops, "
            f"{sum(entry['what'] == 'redis' for entry in history)} Redis faults"
        )


def _read_log(path: Path) -> list[dict[str, Any]]:
    """The lines of the probe log; one whose writer died in it is no line."""
    lines = path.read_text().splitlines() if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("}")]


def _kept(path: Path) -> tuple[Evidence, dict[str, Any]]:
    kept = json.loads(path.read_text())
    about: dict[str, Any] = kept.pop("about")
    return Evidence(**kept), about


if __name__ == "__main__":
    sys.exit(main())
