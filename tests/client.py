"""A person of one tenant at the HTTP door: submits, watches, cancels, and keeps the answers."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import requests

TERMINAL = frozenset({"SUCCEEDED", "FAILED", "CANCELLED"})
REQUEST_TIMEOUT_S = 60

Answer = TypeVar("Answer")
Row = dict[str, Any]


def probe(key: str, branch: str | None = None, *, after: Sequence[str] = (), **params: Any) -> Row:
    """A job spec of type `probe`; it does nothing for no time unless `seconds` is given."""
    spec: Row = {"job_id": key, "job_type": "probe", "params": {"seconds": 0, **params}}
    if branch is not None:
        spec["branch"] = branch
    if after:
        spec["depends_on"] = list(after)
    return spec


def lane(branch: str, count: int, *, seconds: float = 0) -> list[Row]:
    """`count` probes of one branch, `<branch>-0` first."""
    return [probe(f"{branch}-{n}", branch, seconds=seconds) for n in range(count)]


def until(
    look: Callable[[], Answer], *, timeout_s: float, what: str, every_s: float = 0.1
) -> Answer:
    """The first true answer of `look`, asked again and again for at most `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while True:
        answer = look()
        if answer:
            return answer
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout_s} s: {what}; last seen: {answer!r}")
        time.sleep(every_s)


class Client:
    """HTTP as one user, by `X-User-ID`; every workflow it makes is remembered, so it can be cleared."""

    def __init__(self, base_url: str, user: str) -> None:
        self.base_url = base_url
        self.user = user
        self.workflows: list[str] = []
        self.session = requests.Session()
        self.session.headers["X-User-ID"] = user

    def get(self, path: str, **options: Any) -> requests.Response:
        return self._request("GET", path, **options)

    def post(self, path: str, body: object = None, **options: Any) -> requests.Response:
        return self._request("POST", path, json=body, **options)

    def _request(self, method: str, path: str, **options: Any) -> requests.Response:
        options.setdefault("timeout", REQUEST_TIMEOUT_S)
        url = path if path.startswith("http") else self.base_url + path
        return self.session.request(method, url, **options)

    def read(self, path: str, **options: Any) -> Any:
        """The JSON of a GET that must answer 200."""
        response = self.get(path, **options)
        assert response.status_code == 200, (
            f"GET {path}: {response.status_code} {response.text[:500]}"
        )
        return response.json()

    def submit(
        self,
        jobs: Sequence[Row] | None = None,
        *,
        name: str = "",
        timeout_s: float = REQUEST_TIMEOUT_S,
        **fields: Any,
    ) -> Row:
        """Create a workflow that must be accepted; the whole object as answered."""
        body = {"name": name or f"{self.user}-{uuid.uuid4().hex[:6]}", **fields}
        if jobs is not None:
            body["jobs"] = list(jobs)
        response = self.post("/api/workflows", body, timeout=timeout_s)
        assert response.status_code == 201, f"{response.status_code} {response.text[:1000]}"
        made: Row = response.json()
        self.workflows.append(made["id"])
        return made

    def workflow(self, workflow_id: str) -> Row:
        found: Row = self.read(f"/api/workflows/{workflow_id}")
        return found

    def job(self, job_id: str) -> Row:
        found: Row = self.read(f"/api/jobs/{job_id}")
        return found

    def cancel(self, job_id: str) -> requests.Response:
        return self.post(f"/api/jobs/{job_id}/cancel")

    def dashboard(self) -> Row:
        found: Row = self.read("/api/metrics/dashboard")
        return found

    def wait(self, workflow_id: str, *, timeout_s: float = 60, every_s: float = 0.2) -> Row:
        """The workflow once it is over."""

        def over() -> Row | None:
            seen = self.workflow(workflow_id)
            done = seen["state"] in TERMINAL and all(j["state"] in TERMINAL for j in seen["jobs"])
            return seen if done else None

        try:
            found = until(
                over, timeout_s=timeout_s, what=f"workflow {workflow_id} over", every_s=every_s
            )
        except AssertionError as error:
            raise AssertionError(f"{error}; jobs: {summary(self.workflow(workflow_id))}") from None
        assert found is not None
        return found

    def wait_job(self, job_id: str, states: Sequence[str], *, timeout_s: float = 30) -> Row:
        """The job once it is in one of `states`."""

        def there() -> Row | None:
            seen = self.job(job_id)
            return seen if seen["state"] in states else None

        try:
            found = until(
                there, timeout_s=timeout_s, what=f"job {job_id} in {states}", every_s=0.05
            )
        except AssertionError as error:
            raise AssertionError(f"{error}; job: {self.job(job_id)}") from None
        assert found is not None
        return found

    def clear(self) -> None:
        """Cancel whatever this user still has under way."""
        for workflow_id in self.workflows:
            self.post(f"/api/workflows/{workflow_id}/cancel")


def by_key(workflow: Row) -> dict[str, Row]:
    """A workflow's jobs by the client's own key."""
    return {job["job_id"]: job for job in workflow["jobs"]}


def states(workflow: Row) -> dict[str, str]:
    return {job["job_id"]: job["state"] for job in workflow["jobs"]}


def summary(workflow: Row) -> list[str]:
    """One short line a job, for the message of a failed check."""
    return [
        f"{j['job_id']}:{j['state']}/{j['reason']} attempt {j['attempt']} {j['error'] or ''}"
        for j in workflow["jobs"][:20]
    ]
