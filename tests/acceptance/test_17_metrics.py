"""Scenario 17: /metrics says what the API says, at work and idle, and has every promised name."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence

import pytest
import requests
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from tests.acceptance.test_06_cancel import keep_busy
from tests.acceptance.test_07_no_leak import last_end, runs_then_cancelled
from tests.client import Client, Row, by_key, lane, probe, until
from tests.conftest import Cast
from tests.processes import REPOSITORY
from tests.stack import Stack

PROMISES = {  # the README's words for what /metrics tells, and its names for them
    "queue depth": ("queue_depth", "workflow_queue_depth", "scheduler_pending_jobs"),
    "active users": ("active_users", "scheduler_active_users"),
    "waits": ("job_wait_seconds_bucket", "job_wait_seconds_count", "job_wait_seconds_sum"),
    "latencies": (
        "job_latency_seconds_bucket",
        "job_latency_seconds_count",
        "job_latency_seconds_sum",
    ),
}
CONTRACT = (  # what clients outside of this repository read besides
    "scheduler_jobs_enqueued_total",
    "scheduler_jobs_completed_total",
    "scheduler_rate_limited_total",
    "workflow_jobs_total",
    "workflow_jobs_active",
    "worker_active_jobs",
)
ZERO_WHEN_IDLE = (
    *("scheduler_pending_jobs", "queue_depth", "workflow_queue_depth", "queue_oldest_wait_seconds"),
    *("workflow_jobs_active", "worker_active_jobs", "scheduler_leases"),
    *("active_users", "scheduler_active_users", "scheduler_user_slots_held"),
)
LOOK_S = 0.1


class Scraper:
    """Reads /metrics of a stack, and the API's counts of some users, who alone have work."""

    def __init__(self, stack: Stack, clients: Sequence[Client]) -> None:
        self.stack = stack
        self.clients = clients
        self.before = self.scrape()
        self.looks = 0
        self.looks_at_work = 0

    def scrape(self) -> Counter[str]:
        """The sum of each name over its labels; counts of ended jobs also as `name:STATE`."""
        sums: Counter[str] = Counter()
        for family in families(self.stack):
            for sample in family.samples:
                sums[sample.name] += sample.value  # type: ignore[assignment]
                if state := sample.labels.get("state"):
                    sums[f"{sample.name}:{state}"] += sample.value  # type: ignore[assignment]
        return sums

    def look(self) -> None:
        """Compare one scrape with the API's counts, unless these changed around it."""
        before = self._api()
        seen = self.scrape()
        if self._api() != before:
            return
        jobs, depth, active_users, busy = before
        self.looks += 1
        active = jobs["QUEUED"] + jobs["RUNNING"]
        self.looks_at_work += active > 0
        assert depth == jobs["PENDING"], jobs
        for name in ("scheduler_pending_jobs", "queue_depth", "workflow_queue_depth"):
            assert seen[name] == jobs["PENDING"], (name, jobs)
        assert seen["workflow_jobs_active"] == active, jobs
        assert seen["worker_active_jobs"] == busy <= active
        assert seen["scheduler_active_users"] == seen["active_users"] == active_users
        assert seen["scheduler_user_slots_held"] >= active_users
        for state in ("SUCCEEDED", "FAILED", "CANCELLED"):
            assert self._since(seen, f"scheduler_jobs_completed_total:{state}") == jobs[state]
        assert self._since(seen, "workflow_jobs_total") == jobs.total()

    def _api(self) -> tuple[Counter[str], int, int, int]:
        """Jobs of these users by state and in all branches; active users and busy workers of all."""
        boards = [client.dashboard() for client in self.clients]
        jobs: Counter[str] = Counter()
        for board in boards:
            jobs.update(board["jobs"])
        depth = sum(branch["pending"] for board in boards for branch in board["queue_depth"])
        return jobs, depth, boards[-1]["active_users"], boards[-1]["workers"]["busy"]

    def _since(self, seen: Counter[str], name: str) -> float:
        return seen[name] - self.before[name]

    def look_until(self, over: Callable[[], bool]) -> None:
        """Compare again and again, once more when it is over, and see zeros at the end."""

        def looked() -> bool:
            done = over()
            self.look()
            return done

        until(looked, timeout_s=90, what="everything over", every_s=LOOK_S)
        until(self.stack.idle, timeout_s=10, what="nobody active")
        looks = self.looks
        self.look()
        assert self.looks == looks + 1, "counts change although nothing is under way"
        idle = self.scrape()
        assert {name: idle[name] for name in ZERO_WHEN_IDLE} == dict.fromkeys(ZERO_WHEN_IDLE, 0)

    def check_totals(self, workflows: Sequence[Row]) -> None:
        """Counters rose by what these workflows, all over, say of their jobs."""
        jobs = [job for workflow in workflows for job in workflow["jobs"]]
        seen = self.scrape()
        promoted = [job for job in jobs if job["queued_at"]]
        attempts = sum(job["attempt"] for job in jobs)
        assert self._since(seen, "scheduler_jobs_enqueued_total") == attempts
        assert self._since(seen, "job_wait_seconds_count") == len(promoted)
        assert self._since(seen, "job_latency_seconds_count") == len(promoted)


def test_17_after_four_users_jobs_on_many_branches(stack: Stack, cast: Cast) -> None:
    """Half-second jobs rarely let the counts stand still: what counts here is the end."""
    users = cast("A", "B", "C", "D")
    scraper = Scraper(stack, users)
    made = [
        client.submit([job for n in range(branches) for job in lane(f"b{n}", 5, seconds=0.5)])
        for client, branches in zip(users, (3, 3, 1, 1), strict=True)
    ]
    scraper.look_until(lambda: all_over(users, made))
    scraper.check_totals([*ends(users, made)])


def test_17_after_cancelled_jobs(stack: Stack, cast: Cast) -> None:
    *three, dan = cast("ann", "bob", "cyd", "dan")
    scraper = Scraper(stack, [*three, dan])
    keep_busy(stack, *three, seconds=4)  # the scrapes of a slow machine take a while
    made = dan.submit([probe("j1", "main"), probe("j2", "main")])
    assert dan.cancel(by_key(made)["j1"]["id"]).status_code == 200
    scraper.look()
    assert scraper.looks_at_work == 1, "counts change although all that runs is long"
    (running,) = three[0].workflow(three[0].workflows[0])["jobs"]
    assert three[0].cancel(running["id"]).status_code == 200
    scraper.look_until(lambda: all_over([dan], [made]))


def test_17_after_cancelled_jobs_that_held_no_slot(stack: Stack, cast: Cast) -> None:
    *three, dan = cast("ann", "bob", "cyd", "dan")
    scraper = Scraper(stack, [*three, dan])
    runs_then_cancelled(stack, three, seconds=3)
    made = dan.submit([probe("noop", "main")])
    assert dan.cancel(made["jobs"][0]["id"]).status_code == 200
    scraper.look()
    assert scraper.looks_at_work == 1, "counts change although all that runs is long"
    last_end(stack, three)
    scraper.look_until(lambda: all_over([dan], [made]))


@pytest.mark.parametrize("word", PROMISES)
def test_17_what_the_readme_promises_is_there(stack: Stack, word: str) -> None:
    chapters = (REPOSITORY / "README.md").read_text().split("\n## ")
    (monitoring,) = [chapter for chapter in chapters if chapter.startswith("Monitoring\n")]
    assert word in monitoring, "the README promises this no longer: change PROMISES with it"
    assert names(stack) >= set(PROMISES[word])


def test_17_what_clients_outside_read_is_there(stack: Stack) -> None:
    assert names(stack) >= set(CONTRACT)


def names(stack: Stack) -> set[str]:
    """Every name that /metrics declares, also those whose labels have no values now."""
    found = set()
    for family in families(stack):
        found.add(f"{family.name}_total" if family.type == "counter" else family.name)
        found.update(sample.name for sample in family.samples)
    return found


def families(stack: Stack) -> list[Metric]:
    answer = requests.get(f"{stack.url}/metrics", timeout=30)
    assert answer.status_code == 200
    return list(text_string_to_metric_families(answer.text))


def all_over(clients: Sequence[Client], made: Sequence[Row]) -> bool:
    return all(
        workflow["state"] in ("SUCCEEDED", "FAILED", "CANCELLED")
        for workflow in ends(clients, made)
    )


def ends(clients: Sequence[Client], made: Sequence[Row]) -> Iterator[Row]:
    """Each workflow as it is now."""
    for client, workflow in zip(clients, made, strict=True):
        yield client.workflow(workflow["id"])
