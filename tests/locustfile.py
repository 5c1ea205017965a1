"""A lab's working day as load: most people watch, some submit, few cancel.

    locust -f tests/locustfile.py --host http://127.0.0.1:8000 --users 50 --spawn-rate 5

The server needs TRUST_USER_HEADER=1. Jobs are probes where LABSCHED_ENABLE_PROBE_JOBS=1 is set, else
tissue masks of `--slide` (a path in the shared slide root).
"""

from __future__ import annotations

import random
from argparse import ArgumentParser
from typing import Any

from locust import HttpUser, between, events, task

LABS = 20  # people share labs, as they do in life
KEPT = 20  # workflows a person still looks at


@events.init_command_line_parser.add_listener
def add_options(parser: ArgumentParser) -> None:
    parser.add_argument("--slide", default="", help="submit tissue masks of this slide, not probes")


class Person(HttpUser):
    """One member of a lab."""

    wait_time = between(0.5, 3)

    def on_start(self) -> None:
        self.client.headers["X-User-ID"] = f"load-{random.randrange(LABS)}"
        self.workflows: list[str] = []
        self.submit()  # nobody comes with nothing to look at

    def job(self, number: int) -> dict[str, Any]:
        """One step of a workflow; steps share three branches and follow each other."""
        spec: dict[str, Any] = {"job_id": f"step-{number}", "branch": f"branch-{number % 3}"}
        if number >= 3:
            spec["depends_on"] = [f"step-{number - 3}"]
        slide = self.environment.parsed_options.slide
        if slide:
            return {**spec, "job_type": "tissue_mask", "image_path": slide}
        seconds = random.choice([0, 0.1, 0.5])
        return {**spec, "job_type": "probe", "params": {"seconds": seconds, "ticks": 5}}

    @task(3)
    def submit(self) -> None:
        jobs = [self.job(number) for number in range(random.randint(1, 6))]
        body = {"name": "load", "jobs": jobs}
        with self.client.post("/api/workflows", json=body, catch_response=True) as answer:
            if answer.status_code == 201:
                self.workflows = [*self.workflows, answer.json()["id"]][-KEPT:]
            elif answer.status_code == 429:
                answer.success()  # the limiter at work is no fault

    @task(10)
    def watch_one(self) -> None:
        if self.workflows:
            path = f"/api/workflows/{random.choice(self.workflows)}"
            self.client.get(path, name="/api/workflows/[id]")

    @task(5)
    def look_at_lists(self) -> None:
        self.client.get("/api/workflows?page_size=50", name="/api/workflows")
        self.client.get("/api/jobs?page_size=50", name="/api/jobs")

    @task(4)
    def look_at_the_dashboard(self) -> None:
        self.client.get("/api/metrics/dashboard")

    @task(1)
    def cancel_one(self) -> None:
        if not self.workflows:
            return
        path = f"/api/workflows/{random.choice(self.workflows)}/cancel"
        with self.client.post(
            path, name="/api/workflows/[id]/cancel", catch_response=True
        ) as answer:
            if answer.status_code == 409:
                answer.success()  # it was over already
