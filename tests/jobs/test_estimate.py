"""Durations are learnt from jobs that finished, in the slow sweep, and nothing is made up."""

from __future__ import annotations

import datetime as dt
import math
import random
from typing import Any

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from jobs.models import Duration, Job, JobProgress, LearntUntil
from jobs.scheduling import estimate
from jobs.scheduling.durations import (
    NOTHING_LEARNT,
    Guess,
    Learnt,
    left_by_progress,
    samples,
    total,
)
from jobs.states import JobState
from tests import factories

# --- the statistic ---------------------------------------------------------------------------


def learnt_from(*seconds: float) -> Learnt:
    found = NOTHING_LEARNT
    for each in seconds:
        found = found.with_one_more(each)
    return found


def test_one_job_leaves_a_wide_range_and_many_a_narrow_one() -> None:
    one, many = learnt_from(60.0).guess().span(), learnt_from(*[60.0] * 30).guess().span()
    assert one.typical == pytest.approx(60)
    assert many.typical == pytest.approx(60)
    assert one.high / one.low > 3
    assert many.high / many.low < 1.5


def test_the_range_holds_eight_of_ten() -> None:
    dice = random.Random(1)
    seen = [dice.lognormvariate(4, 0.5) for _ in range(2000)]
    found = learnt_from(*seen[:1000]).guess().span()
    inside = sum(found.low <= each <= found.high for each in seen[1000:])
    assert 700 <= inside <= 900


def test_one_job_that_hung_moves_little_and_a_new_machine_is_learnt() -> None:
    usual = [60.0 + n % 7 for n in range(40)]
    assert learnt_from(*usual, 90_000.0).guess().span().typical < 80
    assert learnt_from(*usual, *[6.0] * 60).guess().span().typical == pytest.approx(6, rel=0.2)


def test_a_sum_is_narrower_than_its_parts() -> None:
    part = Guess(math.log(10), 0.3)
    whole = total([part] * 9)
    assert 90 < whole.span().typical < 110
    assert whole.variance < part.variance


def test_what_is_left_shrinks_and_is_never_negative() -> None:
    guess = Guess(math.log(100), 0.1)
    before = guess.span().typical
    for elapsed in (10.0, 50.0, 90.0):
        left = guess.left_after(elapsed)
        assert 0 <= left.low <= left.typical <= left.high
        assert left.typical < before
        before = left.typical
    assert guess.left_after(1e6).low == 0


def test_progress_tells_what_is_left() -> None:
    half, late = left_by_progress(0.5, 100), left_by_progress(0.95, 190)
    assert half.typical == pytest.approx(100)
    assert late.typical == pytest.approx(10)
    assert late.high / late.low < half.high / half.low


def test_a_job_with_tiles_teaches_both_units() -> None:
    timed = [{"name": "open", "seconds": 2.0}, {"name": "segment", "seconds": 50}, {"name": 3}]
    found = {(phase, tile): s for phase, tile, s in samples(timed, whole_s=60, tiles=100)}
    assert found[("segment", True)] == 0.5
    assert found[("open", False)] == 2.0
    assert found[("", False)] == 60
    assert not any(tile for _, tile, _ in samples(timed, whole_s=60, tiles=0))


# --- learning from rows ------------------------------------------------------------------------

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def probes(settings: Any) -> None:
    settings.LABSCHED_ENABLE_PROBE_JOBS = True


def ended(
    seconds: float,
    *,
    ago_s: float = 60.0,
    job_type: str = "probe",
    phases: dict[str, float] | None = None,
    **fields: Any,
) -> Job:
    """A job that succeeded `ago_s` ago after `seconds`."""
    flow = factories.workflow(factories.tenant(), [factories.job("j")])
    (job,) = factories.jobs_of(flow).values()
    finished = timezone.now() - dt.timedelta(seconds=ago_s)
    values = {
        "state": JobState.SUCCEEDED.value,
        "attempt": 1,
        "job_type": job_type,
        "started_at": finished - dt.timedelta(seconds=seconds),
        "finished_at": finished,
    }
    Job.objects.for_tenant(flow.tenant).filter(pk=job.pk).update(**{**values, **fields})
    if phases:
        timed = [{"name": name, "seconds": each} for name, each in phases.items()]
        JobProgress.objects.create(job=job, tenant=flow.tenant, phases=timed)
    return job


def test_without_history_there_is_no_estimate() -> None:
    assert estimate.seconds("probe") is None


def test_jobs_that_ended_are_learnt_once() -> None:
    for number in range(3):
        ended(30.0 + number, ago_s=60 - number)
    assert estimate.learn() == 3
    assert estimate.learn() == 0
    found = estimate.seconds("probe")
    assert found is not None
    assert found.low < 30
    assert found.typical == pytest.approx(31, rel=0.05)
    ended(300.0, ago_s=20)
    assert estimate.learn() == 1
    assert Duration.objects.get().jobs == 4


def test_what_says_nothing_about_the_time_is_left_out() -> None:
    ended(5.0, state=JobState.FAILED.value)
    ended(5.0, attempt=2)  # it may have resumed
    ended(5.0, attempt=0, started_at=None, reason="reused")
    ended(0.01, reason="reused")  # by its worker: it took another job's result, and no time
    ended(5.0, ago_s=1.0)  # its neighbours may not be committed yet
    assert estimate.learn() == 0
    assert not Duration.objects.exists()


def test_what_taught_nothing_is_not_read_again() -> None:
    failed = [ended(5.0, ago_s=ago_s, state=JobState.FAILED.value) for ago_s in (50.0, 40.0)]
    assert estimate.learn() == 0
    failed[1].refresh_from_db()
    assert LearntUntil.objects.get().at == failed[1].finished_at
    with CaptureQueriesContext(connection) as seen:
        assert estimate.learn() == 0
    assert sum("jobs_job" in each["sql"] for each in seen) == 1, "the last end, and no more"
    ended(7.0, ago_s=30)
    assert estimate.learn() == 1


def test_the_first_look_goes_back_a_day_and_no_further() -> None:
    ended(5.0, ago_s=100_000)
    assert estimate.learn() == 0


def test_when_many_ended_the_newest_are_taken_and_the_cursor_is_past_all(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(estimate, "BATCH", 2)
    for ago_s, seconds in ((50, 1.0), (40, 10.0), (30, 10.0)):
        ended(seconds, ago_s=ago_s)
    assert estimate.learn() == 2
    assert estimate.learn() == 0
    found = estimate.seconds("probe")
    assert found is not None
    assert found.typical == pytest.approx(10, rel=0.01)


def cells(tiles: int, *, device: str = "cpu", per_tile: float = 0.5, ago_s: float = 60) -> None:
    """Opening takes 20 s whatever the slide; segmenting takes its seconds a tile."""
    segment = tiles * per_tile
    ended(
        20 + segment,
        ago_s=ago_s,
        job_type="cell_segmentation",
        queue="gpu",
        summary={"tiles": tiles, "device": device, "precision": "fp32"},
        phases={"open": 20.0, "segment": segment},
    )


def test_each_phase_is_learnt_in_the_unit_that_it_grows_with() -> None:
    for number, tiles in enumerate((100, 1000, 300, 50, 2000)):
        cells(tiles, ago_s=100 - number)
    estimate.learn()
    for tiles in (40, 400, 4000):
        found = estimate.seconds("cell_segmentation", tiles=tiles)
        assert found is not None
        assert found.typical == pytest.approx(20 + tiles / 2, rel=0.1)
    whole = estimate.seconds("cell_segmentation")
    assert whole is not None
    assert whole.high / whole.low > 10, "without its tiles a slide may be of any size"


def test_the_history_of_the_device_at_hand_counts_first() -> None:
    for number in range(4):
        tiles = 100 * (number + 1)
        cells(tiles, device="NVIDIA H200", per_tile=0.01, ago_s=100 - number)
        cells(tiles, device="cpu", per_tile=2.0, ago_s=50 - number)
    estimate.learn()
    fast = estimate.seconds("cell_segmentation", device="NVIDIA H200", tiles=1000)
    slow = estimate.seconds("cell_segmentation", device="CPU", tiles=1000)
    assert fast is not None
    assert slow is not None
    assert fast.typical == pytest.approx(30, rel=0.2)
    assert slow.typical == pytest.approx(2020, rel=0.1)


def test_learning_costs_the_same_few_queries_for_one_job_and_for_many() -> None:
    def queries() -> int:
        with CaptureQueriesContext(connection) as seen:
            estimate.learn()
        return len(seen)

    ended(1.0, ago_s=90)
    queries()
    ended(1.0, ago_s=80)
    one = queries()
    for number in range(40):
        ended(1.0, ago_s=70 - number)
    assert queries() == one <= 9


def test_the_cursor_is_one_row() -> None:
    ended(1.0)
    estimate.learn()
    estimate.learn()
    assert LearntUntil.objects.count() == 1
