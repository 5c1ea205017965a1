"""One slide spread over several workers: who is sent to help, and who gives way."""

from __future__ import annotations

import datetime as dt
from collections import Counter
from typing import Any

import pytest
from django.utils import timezone

from jobs import moves, services, types
from jobs.models import Branch, Job, JobProgress, Lease, Queue, Slide, UserSlot, Worker
from jobs.scheduling import explain, leases, promotion, shards, slots, sweep, workers
from jobs.scheduling.dispatch import Message, message_id, read_id
from jobs.scheduling.line import Line
from jobs.states import JobState
from tenants.models import Tenant
from tests import factories
from tests.factories import jobs_of, states, workflow
from tests.jobs.scheduling.steps import finish, start_all
from tests.labsched.counting import samples

pytestmark = pytest.mark.django_db
LONG_AGO = dt.timedelta(minutes=10)


@pytest.fixture(autouse=True)
def house(settings: Any, rules: None, monkeypatch: pytest.MonkeyPatch) -> None:
    settings.MAX_WORKERS = 6
    settings.SPREAD_SHARDS = 4
    factories.capacity(cpu=2, gpu=4)
    monkeypatch.setattr(shards, "_pace", shards._Pace())  # jobs of other tests are not these


def slide(tenant: Tenant, key: str = "cells", *, done: int = 10, total: int = 1000) -> Job:
    """A slide that is segmented since ten minutes, so far."""
    flow = workflow(tenant, [factories.job(key, params={"queue": "gpu"})])
    (pair,) = (pair for pair in promotion.promote() if pair[0] == jobs_of(flow)[key].pk)
    assert services.start(*pair, f"gpu-of-{key}") is not None
    Job.objects.for_tenant(tenant).filter(pk=pair[0]).update(
        job_type=shards.SPREADS[0], started_at=timezone.now() - LONG_AGO
    )
    JobProgress.objects.create(
        job_id=pair[0],
        tenant=tenant,
        attempt=pair[1],
        phase="segment",
        tiles_done=done,
        tiles_total=total,
    )
    return jobs_of(flow)[key]


def settle(times: int = 1) -> list[Message]:
    """So many sweeps, after each of which the helpers that were sent have come."""
    sent = []
    for _ in range(times):
        for each in shards.settle():
            worker = f"helper-{each.job}-{each.shard}"
            assert moves.take_shard(each.job, each.attempt, each.shard, worker)
            sent.append(each)
    return sent


def helpers(job: Job | None = None) -> list[Lease]:
    rows = Lease.objects.across_tenants("test").filter(shard__gt=0).order_by("pk")
    return list(rows if job is None else rows.filter(job=job))


def held() -> Counter[str]:
    return Counter(Lease.objects.across_tenants("test").values_list("queue", flat=True))


def recalled() -> list[int]:
    return [each.shard for each in helpers() if each.attempt == 0]


# --- sent --------------------------------------------------------------------------------


def test_idle_workers_help_one_a_sweep_and_no_more_than_may_be() -> None:
    job = slide(factories.tenant())
    assert settle() == [Message(job.pk, 1, "gpu", 1)]
    assert [each.shard for each in settle(5)] == [2, 3]  # four workers in all
    assert held() == {"gpu": 4}


def test_no_second_helper_is_sent_before_the_first_came() -> None:
    slide(factories.tenant())
    assert len(shards.settle()) == 1
    assert shards.settle() == []


@pytest.mark.parametrize("most", [0, 1])
def test_a_setting_turns_it_off(settings: Any, most: int) -> None:
    settings.SPREAD_SHARDS = most
    slide(factories.tenant())
    assert settle(2) == []


def test_the_slot_that_is_kept_for_cpu_is_left_free(settings: Any) -> None:
    settings.MAX_WORKERS = 4
    slots.seed()
    Queue.objects.filter(name="gpu").update(capacity=4)
    slide(factories.tenant())
    assert len(settle(4)) == 2
    workflow(factories.tenant(), [factories.job("mask")])
    assert len(start_all()) == 1


def test_helpers_never_exceed_the_capacity_of_their_queue() -> None:
    Queue.objects.filter(name="gpu").update(capacity=2)
    slide(factories.tenant())
    assert len(settle(4)) == 1


@pytest.mark.parametrize(
    ("done", "total"), [(0, 1), (995, 1000), (1000, 1000)], ids=["planning", "nearly", "merging"]
)
def test_a_job_of_which_not_much_is_left_gets_no_help(done: int, total: int) -> None:
    slide(factories.tenant(), done=done, total=total)
    assert settle() == []


def test_the_types_that_are_spread_are_those_that_can_be_helped_with() -> None:
    kinds = (types.get(name) for name in types.names())
    assert {kind.name for kind in kinds if kind.help} == set(shards.SPREADS)


def test_other_job_types_are_not_spread() -> None:
    job = slide(factories.tenant())
    Job.objects.for_tenant(job.tenant).update(job_type="probe")
    assert settle() == []


@pytest.mark.parametrize("what", ["tenant", "lane", "queue", "maintenance", "cancel"])
def test_nothing_is_sent_where_nothing_may_start(what: str) -> None:
    job = slide(factories.tenant())
    if what == "tenant":
        Tenant.objects.filter(pk=job.tenant_id).update(paused=True)
    elif what == "lane":
        Branch.objects.for_tenant(job.tenant).update(paused=True)
    elif what == "queue":
        Queue.objects.filter(name="gpu").update(paused=True)
    elif what == "maintenance":
        slots.set_maintenance(True)
    else:
        services.cancel(job)
    assert settle() == []


def test_a_tenant_whose_turn_is_over_gets_no_more_while_others_wait(settings: Any) -> None:
    settings.ACTIVE_USER_QUANTUM_S = 60
    settings.MAX_ACTIVE_USERS = 1
    UserSlot.objects.filter(number__gt=1).delete()
    slide(factories.tenant())
    UserSlot.objects.update(acquired_at=timezone.now() - LONG_AGO)
    assert len(settle()) == 1
    workflow(factories.tenant(), [factories.job("mask")])
    promotion.promote()
    assert settle() == []


def test_nothing_is_sent_where_somebody_in_line_has_work_for_the_queue(settings: Any) -> None:
    settings.MAX_ACTIVE_USERS = 1
    UserSlot.objects.filter(number__gt=1).delete()
    slide(factories.tenant())
    workflow(factories.tenant(), [factories.job("mask")])
    assert len(settle()) == 1  # a mask does not want the GPU
    workflow(factories.tenant(), [factories.job("cells", params={"queue": "gpu"})])
    assert settle() == []


def test_idle_workers_go_to_the_tenant_with_the_fewest_then_to_the_job_with_the_fewest() -> None:
    ann, bob = factories.tenant(), factories.tenant()
    first, second = slide(ann, "first"), slide(ann, "second")
    third = slide(bob, "third")
    assert {each.job for each in settle()} == {third.pk}
    finish(second.pk, 1)
    finish(third.pk, 1)
    assert [each.job for each in settle(3)] == [first.pk] * 3


def test_helpers_that_do_not_stay_are_sent_now_and_then_only() -> None:
    slide(factories.tenant())
    sent = 0
    for _ in range(10):
        sent += len(settle())
        Lease.objects.across_tenants("test").filter(shard__gt=0).delete()
    assert sent == 2  # one may have died


# --- a helper's hold ---------------------------------------------------------------------


def test_a_message_names_the_shard_it_is_about() -> None:
    assert message_id(7, 2) == "job-7-2"
    assert read_id(b"job-7-2") == (7, 2, 0)
    assert read_id(message_id(7, 2, 3).encode()) == (7, 2, 3)
    assert read_id(b"job-7-2-0") is None


def test_two_workers_can_not_both_take_a_part() -> None:
    slide(factories.tenant())
    ((pk, attempt, _, shard),) = shards.settle()
    assert moves.take_shard(pk, attempt, shard, "gpu-1")
    assert moves.take_shard(pk, attempt, shard, "gpu-1")  # asked again: the answer was lost
    assert not moves.take_shard(pk, attempt, shard, "gpu-2")
    assert moves.holds_shard(pk, attempt, shard, "gpu-1")
    assert leases.renew(pk, attempt, "gpu-1").mine
    assert moves.leave_shard(pk, shard, "gpu-1")
    assert not moves.holds_shard(pk, attempt, shard, "gpu-1")


def end(job: Job, how: str) -> None:
    if how == "succeeds":
        assert finish(job.pk, 1)
    elif how == "fails":
        assert services.fail(job.pk, 1, services.Reason.ERROR, "It broke.")
    elif how == "is cancelled":
        services.cancel(job)
        assert services.finish_cancel(job.pk, 1)
    elif how == "is handed back":
        assert services.hand_back(job.pk, 1)
    else:
        own = Lease.objects.across_tenants("test").filter(job=job, shard=0)
        own.update(expires_at=timezone.now() - LONG_AGO)
        sweep.repair()


ENDS = ["succeeds", "fails", "is cancelled", "is handed back", "is lost"]


@pytest.mark.parametrize("how", ENDS)
def test_the_helpers_of_a_job_that_ends_end_with_it(how: str) -> None:
    job = slide(factories.tenant())
    settle(2)
    (offered,) = shards.settle()  # one that nobody took yet
    end(job, how)
    assert held() == {}
    assert not moves.holds_shard(job.pk, 1, 1, f"helper-{job.pk}-1")
    assert not moves.take_shard(job.pk, 1, offered.shard, "gpu-3")


def test_helpers_stop_as_soon_as_a_cancel_is_asked_for() -> None:
    job = slide(factories.tenant())
    settle()
    services.cancel(job)
    assert not moves.holds_shard(job.pk, 1, 1, f"helper-{job.pk}-1")


def expire(shard: int) -> None:
    rows = Lease.objects.across_tenants("test").filter(shard=shard)
    rows.update(expires_at=timezone.now() - LONG_AGO)
    sweep.repair()


def test_a_helper_that_dies_costs_the_job_nothing() -> None:
    job = slide(factories.tenant())
    settle(2)
    expire(1)
    assert [each.shard for each in helpers()] == [2]
    row = Job.objects.for_tenant(job.tenant).get()
    assert (row.status, row.failures, row.attempt) == (JobState.RUNNING, 0, 1)
    assert [each.shard for each in settle()] == [1]


def test_a_job_whose_own_lease_was_renewed_is_not_lost_with_its_helper() -> None:
    job = slide(factories.tenant())
    settle()
    rows = Lease.objects.across_tenants("test").filter(shard=1)
    rows.update(expires_at=timezone.now() - LONG_AGO)
    assert not services.expire(job.pk, 1)
    assert Job.objects.for_tenant(job.tenant).get().status is JobState.RUNNING


def test_a_part_that_no_worker_takes_is_withdrawn() -> None:
    slide(factories.tenant())
    ((pk, attempt, _, shard),) = shards.settle()
    expire(shard)
    assert helpers() == []
    assert not moves.take_shard(pk, attempt, shard, "gpu-3")


# --- giving way --------------------------------------------------------------------------


def full_of_helpers(tenant: Tenant) -> Job:
    job = slide(tenant)
    settle(3)
    assert held() == {"gpu": 4}
    return job


def test_the_newest_helper_gives_way_to_a_job_that_waits_and_keeps_its_slot_until_it_left() -> None:
    job = full_of_helpers(factories.tenant())
    flow = workflow(factories.tenant(), [factories.job("cells", params={"queue": "gpu"})])
    assert promotion.promote() == []
    assert settle() == []
    assert recalled() == [3]
    assert not moves.holds_shard(job.pk, 1, 3, f"helper-{job.pk}-3")
    assert not leases.renew(job.pk, 1, f"helper-{job.pk}-3").mine
    assert settle() == []
    assert recalled() == [3]  # one is enough
    assert promotion.promote() == []
    assert moves.leave_shard(job.pk, 3, f"helper-{job.pk}-3")
    assert len(start_all()) == 1
    assert states(flow) == {"cells": "RUNNING"}
    assert held() == {"gpu": 4}
    assert settle(3) == []


def test_as_many_give_way_as_jobs_wait() -> None:
    full_of_helpers(factories.tenant())
    jobs = [factories.job(f"cells{n}", params={"queue": "gpu"}) for n in range(5)]
    workflow(factories.tenant(), jobs)
    assert promotion.promote() == []
    settle()
    assert recalled() == [1, 2, 3]


def test_a_job_of_the_same_tenant_goes_before_help_too() -> None:
    user = factories.tenant()
    full_of_helpers(user)
    workflow(user, [factories.job("next", params={"queue": "gpu"})])
    settle()
    assert recalled() == [3]


def test_a_part_that_no_worker_took_is_given_back_at_once() -> None:
    slide(factories.tenant())
    settle(2)
    (offered,) = shards.settle()
    flow = workflow(factories.tenant(), [factories.job("cells", params={"queue": "gpu"})])
    assert promotion.promote() == []
    assert settle() == []
    assert [each.shard for each in helpers()] == [1, 2]
    assert not moves.take_shard(offered.job, offered.attempt, offered.shard, "gpu-3")
    assert len(start_all()) == 1
    assert states(flow) == {"cells": "RUNNING"}


def test_helpers_of_any_queue_give_way_where_all_run_slots_are_taken(settings: Any) -> None:
    settings.MAX_WORKERS = 4
    slots.seed()
    Queue.objects.filter(name="gpu").update(capacity=3)
    slide(factories.tenant())
    settle(3)
    assert held() == {"gpu": 3}
    workflow(factories.tenant(), [factories.job(f"mask{n}") for n in range(2)])
    assert len(start_all()) == 1
    settle()
    assert recalled() == [2]


def test_nobody_gives_way_for_a_job_that_could_not_start_anyway(settings: Any) -> None:
    settings.MAX_ACTIVE_USERS = 1
    UserSlot.objects.filter(number__gt=1).delete()
    full_of_helpers(factories.tenant())
    workflow(factories.tenant(), [factories.job("cells", params={"queue": "gpu"})])
    settle()
    assert recalled() == []


def test_helpers_give_way_after_spreading_was_turned_off(settings: Any) -> None:
    full_of_helpers(factories.tenant())
    settings.SPREAD_SHARDS = 0
    workflow(factories.tenant(), [factories.job("cells", params={"queue": "gpu"})])
    assert promotion.promote() == []
    settle()
    assert recalled() == [3]


def test_nobody_gives_way_in_maintenance() -> None:
    full_of_helpers(factories.tenant())
    workflow(factories.tenant(), [factories.job("cells", params={"queue": "gpu"})])
    assert promotion.promote() == []
    slots.set_maintenance(True)
    settle()
    assert recalled() == []


def test_a_worker_that_drains_stops_helping() -> None:
    job = slide(factories.tenant())
    settle(2)
    workers.announce(f"helper-{job.pk}-1", "gpu", warm=True)
    Worker.objects.filter(name=f"helper-{job.pk}-1").update(draining=True)
    settle()
    assert recalled() == [1]


def test_a_helper_that_was_asked_back_and_died_is_forgotten_in_time() -> None:
    full_of_helpers(factories.tenant())
    workflow(factories.tenant(), [factories.job("cells", params={"queue": "gpu"})])
    settle()
    expire(3)
    assert len(start_all()) == 1


# --- told --------------------------------------------------------------------------------


def test_who_waits_behind_helpers_is_told_so_and_has_a_forecast() -> None:
    full_of_helpers(factories.tenant())
    flow = workflow(factories.tenant(), [factories.job("cells", params={"queue": "gpu"})])
    promotion.promote()
    told = explain.why(jobs_of(flow)["cells"])
    assert told["reason"] == "worker_limit"
    assert "within seconds" in told["detail"]
    assert told["position"] == 1


def test_helpers_are_workers_that_are_busy_and_no_jobs_that_run() -> None:
    user = factories.tenant()
    job = slide(user)
    path = Slide.objects.create(tenant=user, path="one.svs")
    Job.objects.for_tenant(user).filter(pk=job.pk).update(slide=path)
    alone = samples()
    settle(2)
    with_help = samples()
    assert with_help["worker_active_jobs"] == 3
    assert with_help["scheduler_leases{queue=gpu}"] == 3
    speed = "imaging_running_tiles_per_second{job_type=cell_segmentation}"
    assert with_help[speed] == pytest.approx(alone[speed], rel=0.1)
    assert Line(user).running == Line(user).leases[:1]
