"""Idempotency-Key, the pending cap and large submissions, as clients meet them."""

from __future__ import annotations

import datetime as dt
import threading
from typing import Any

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.utils import timezone
from rest_framework.response import Response

from jobs.models import Job
from jobs.signals import tidied
from tenants.models import Tenant
from tests import factories
from tests.api.conftest import GONE, People, by_header
from workflows import submission
from workflows.idempotency import KEPT
from workflows.models import KeptKey, Workflow

pytestmark = pytest.mark.django_db
BODY = {"name": "once", "jobs": [{"job_id": "a", "job_type": "probe", "params": {"seconds": 0}}]}


def submit(body: object = BODY, key: str | None = "key-1", who: str = "ann") -> Response:
    headers = {} if key is None else {"Idempotency-Key": key}
    answer: Response = by_header(who).post("/api/workflows", body, format="json", headers=headers)
    return answer


def workflows(who: str = "ann") -> int:
    return len(by_header(who).get("/api/workflows").json()["results"])


# --- workflows ---------------------------------------------------------------------------


def test_a_repeated_submission_returns_the_first_ones_answer() -> None:
    first, again = submit(), submit()
    assert (first.status_code, again.status_code) == (201, 201)
    assert again.json() == first.json()
    other_order = {"jobs": BODY["jobs"], "name": "once"}
    assert submit(other_order).json()["id"] == first.json()["id"]
    assert workflows() == 1
    assert Job.objects.across_tenants("test").count() == 1


def test_the_answer_tells_the_state_as_it_is_now() -> None:
    made = submit().json()
    by_header("ann").post(f"/api/workflows/{made['id']}/cancel")
    assert submit().json()["state"] == "CANCELLED"


def test_another_body_with_the_same_key_is_refused() -> None:
    made = submit().json()
    answer = submit({**BODY, "name": "twice"})
    assert answer.status_code == 422
    assert "new key" in answer.json()["detail"]
    added = {"workflow_id": made["id"], "job_type": "probe"}
    other_address = by_header("ann").post(
        "/api/jobs", added, format="json", headers={"Idempotency-Key": "key-1"}
    )
    assert other_address.status_code == 422
    assert workflows() == 1


def test_without_a_key_or_with_another_one_each_submission_counts() -> None:
    ids = {submit(key=key).json()["id"] for key in (None, None, "k1", "k2")}
    assert len(ids) == 4


def test_keys_belong_to_their_tenant() -> None:
    assert submit(who="ann").json()["id"] != submit(who="bob").json()["id"]
    assert workflows("bob") == workflows("ann") == 1


def test_the_unprefixed_address_knows_the_same_keys() -> None:
    made = submit().json()
    answer = by_header("ann").post(
        "/workflows", BODY, format="json", headers={"Idempotency-Key": "key-1"}
    )
    assert answer.json()["id"] == made["id"]


@pytest.mark.parametrize("body", [{}, {"name": "n", "jobs": [{"job_id": "a", "job_type": "fly"}]}])
def test_what_is_refused_keeps_no_key(body: object) -> None:
    assert submit(body).status_code == 400
    assert submit().status_code == 201


def test_a_submission_above_the_cap_keeps_no_key(settings: Any) -> None:
    settings.MAX_PENDING_JOBS = 1
    two = {"name": "n", "jobs": [factories.job("a"), factories.job("b")]}
    assert submit(two).status_code == 429
    settings.MAX_PENDING_JOBS = 2
    assert submit(two).status_code == 201
    settings.MAX_PENDING_JOBS = 1
    assert submit(two).status_code == 201, "a repetition adds nothing"


@pytest.mark.parametrize("key", ["", "x" * 256, "two words", "tab\there", "ümlaut", "\x7f"])
def test_a_key_that_can_be_none_is_refused(key: str) -> None:
    answer = submit(key=key)
    assert answer.status_code == 400
    assert "Idempotency-Key" in answer.json()["detail"]
    assert workflows() == 0


@pytest.mark.parametrize("key", ["x", "x" * 255, '"8e03978e-40d5"', "!~"])
def test_every_visible_text_is_a_key(key: str) -> None:
    assert submit(key=key).json()["id"] == submit(key=key).json()["id"]


def test_a_key_is_forgotten_after_a_day() -> None:
    first = submit().json()
    old = timezone.now() - KEPT - dt.timedelta(seconds=1)
    KeptKey.objects.across_tenants("test").update(at=old)
    second = submit({**BODY, "name": "next day"})
    assert second.status_code == 201
    assert second.json()["id"] != first["id"]
    KeptKey.objects.across_tenants("test").update(at=old)
    submit(key="young")
    tidied.send(sender=None)
    assert KeptKey.objects.across_tenants("test").get().key == "young"


def test_a_key_whose_workflow_was_deleted_makes_a_new_one() -> None:
    first = submit().json()
    Workflow.objects.across_tenants("test").filter(pk=first["id"]).delete()
    assert submit().json()["id"] != first["id"]
    assert workflows() == 1


@pytest.mark.django_db(transaction=True)
def test_two_at_the_same_moment_make_one() -> None:
    answers: list[Response] = []
    start = threading.Barrier(4)

    def ask() -> None:
        try:
            start.wait()
            answers.append(submit())
        finally:
            connection.close()

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [answer.status_code for answer in answers] == [201] * 4
    assert len({answer.json()["id"] for answer in answers}) == 1
    assert Workflow.objects.across_tenants("test").count() == 1
    assert KeptKey.objects.across_tenants("test").count() == 1


# --- jobs --------------------------------------------------------------------------------


def test_a_job_is_added_once() -> None:
    made = submit(key=None).json()
    body = {"workflow_id": made["id"], "job_type": "probe", "depends_on": ["a"]}
    ann = by_header("ann")
    first, again = (
        ann.post("/api/jobs", body, format="json", headers={"Idempotency-Key": "j"})
        for _ in range(2)
    )
    assert (first.status_code, again.status_code) == (201, 201)
    assert again.json() == first.json()
    assert len(ann.get(f"/api/workflows/{made['id']}").json()["jobs"]) == 2
    other = {**body, "job_id": "named"}
    answer = ann.post("/api/jobs", other, format="json", headers={"Idempotency-Key": "j"})
    assert answer.status_code == 422
    unknown = {**body, "workflow_id": GONE}
    answer = ann.post("/api/jobs", unknown, format="json", headers={"Idempotency-Key": "j"})
    assert answer.status_code == 404


# --- bounds ------------------------------------------------------------------------------


def test_the_cap_counts_what_lives_and_not_what_ended(settings: Any, people: People) -> None:
    settings.MAX_PENDING_JOBS = 4
    lab = people.lab
    flow = factories.workflow(lab, [factories.job(f"j{n}") for n in range(3)])
    with pytest.raises(submission.TooManyPending, match="3 jobs of yours wait already, 4 may"):
        factories.workflow(lab, [factories.job("a"), factories.job("b")])
    submission.cancel(flow)
    for _ in range(3):
        submission.cancel(factories.workflow(lab, [factories.job(f"j{n}") for n in range(4)]))
    full = factories.workflow(lab, [factories.job(f"j{n}") for n in range(4)])
    with pytest.raises(submission.TooManyPending):
        factories.workflow(lab, [factories.job("a")])
    with pytest.raises(submission.TooManyPending):
        submission.add_job(lab, full, factories.job("late"))
    factories.workflow(lab, [])  # an empty one adds nothing
    factories.workflow(people.elsewhere, [factories.job("a")])


def test_retries_count_towards_the_cap(settings: Any, people: People) -> None:
    settings.MAX_PENDING_JOBS = 4
    flow = factories.workflow(people.lab, [factories.job("a"), factories.job("b")])
    with pytest.raises(submission.TooManyPending):  # counts, but keeps no count
        factories.workflow(people.lab, [factories.job(f"j{n}") for n in range(3)])
    submission.cancel(flow)
    factories.workflow(people.lab, [factories.job("c"), factories.job("d")])
    Job.objects.for_tenant(people.lab).filter(workflow=flow).update(state=11)
    submission.retry(flow)
    assert Job.objects.for_tenant(people.lab).live().count() == 4
    with pytest.raises(submission.TooManyPending):
        factories.workflow(people.lab, [factories.job("e")])


def test_most_submissions_count_nothing(settings: Any, people: People) -> None:
    settings.MAX_PENDING_JOBS = 10
    flow = factories.workflow(people.lab, [factories.job(f"j{n}") for n in range(8)])
    submission.cancel(flow)

    def counted() -> bool:
        with CaptureQueriesContext(connection) as queries:
            factories.workflow(people.lab, [factories.job("a")])
        return any(
            "COUNT(" in each["sql"] and "jobs_job" in each["sql"] and '"state" <' in each["sql"]
            for each in queries
        )

    assert [counted() for _ in range(6)] == [False, False, True, False, False, False]
    assert Tenant.objects.get(pk=people.lab.pk).live_counted == 2


def test_more_jobs_than_a_submission_holds_are_refused_with_a_sentence() -> None:
    body = {"name": "n", "jobs": [{"job_id": f"j{n}", "job_type": "probe"} for n in range(20_001)]}
    answer = submit(body, key=None)
    assert answer.status_code == 400
    assert "at most 20000 fit" in str(answer.json()["jobs"])
    assert Tenant.objects.filter(key="ann").count() == 0, "nothing was written"


@pytest.mark.parametrize("backwards", [False, True])
def test_the_answer_to_a_submission_is_what_the_rows_say(backwards: bool) -> None:
    jobs = [factories.job("j0", "a"), factories.job("own")]
    jobs += [
        factories.job(f"j{n}", "ab"[n % 2], after=[f"j{n - 1}", *(["own"] if n == 3 else [])])
        for n in range(1, 30)
    ]
    with CaptureQueriesContext(connection) as queries:
        made = submit({"name": "n", "jobs": jobs[::-1] if backwards else jobs}, key=None).json()
    assert len(queries) < 40
    found = by_header("ann").get(f"/api/workflows/{made['id']}").json()
    assert {**made, "jobs": None} == {**found, "jobs": None}
    assert made["jobs"] == found["jobs"]
    assert [job["job_id"] for job in made["jobs"]] == [
        job["job_id"] for job in (jobs[::-1] if backwards else jobs)
    ]


def test_created_by_is_the_member_that_shares(people: People) -> None:
    answer = people.client("ann").post("/api/workflows", BODY, format="json")
    job = Job.objects.across_tenants("test").get(uuid=answer.json()["jobs"][0]["id"])
    assert job.member == job.created_by_id != 0
    submit()
    mine = Job.objects.across_tenants("test").get(tenant__key="ann")
    assert (mine.member, mine.created_by_id) == (0, None)
