"""The process dies at every step of every move: the rows keep the rules, and after a restart all drains."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from jobs import retrying, services
from jobs.models import Event, Job
from jobs.scheduling import promotion, sweep
from jobs.states import JobState, Reason
from tenants.models import Tenant
from tests import factories
from tests.proofs import bench, crashing, picture
from tests.proofs.bench import Word
from workflows.models import Workflow

MOST_STEPS = 400
WHY = "a check of the tests"

pytestmark = [
    pytest.mark.proof,
    pytest.mark.timeout(900),
    pytest.mark.django_db(transaction=True),
    pytest.mark.usefixtures("small_house"),
]


@dataclass
class Scene:
    """What stands before the move: ann's lane of three with an edge out of it, and bob's one job."""

    ann: Tenant
    bob: Tenant
    words: list[Word]
    jobs: dict[str, Job]


def submit(ann: Tenant) -> Workflow:
    lane = [factories.job(f"a{n}", "main") for n in range(3)]
    return factories.workflow(ann, [*lane, factories.job("below", "other", after=["a0"])])


def scene(*, started: bool) -> Scene:
    bench.empty_house()
    ann, bob = factories.tenant(), factories.tenant()
    flow = submit(ann)
    factories.workflow(bob, [factories.job("b0")])
    words = promotion.promote() if started else []
    for word in words:
        assert bench.start(word)
    return Scene(ann, bob, words, factories.jobs_of(flow))


def first(where: Scene) -> Word:
    """The attempt of ann's first job."""
    return next(word for word in where.words if word[0] == where.jobs["a0"].pk)


def promoted_scene() -> Scene:
    where = scene(started=False)
    where.words = promotion.promote()
    return where


def failed_scene() -> Scene:
    where = scene(started=True)
    services.fail(*first(where), Reason.BAD_INPUT, "It is no slide.")
    return where


MOVES: dict[str, tuple[Callable[[], Scene], Callable[[Scene], object]]] = {
    "submit": (lambda: scene(started=False), lambda where: submit(where.bob)),
    "promote and push": (lambda: scene(started=False), lambda where: sweep.round_of_work()),
    "start": (promoted_scene, lambda where: bench.start(first(where))),
    "succeed": (lambda: scene(started=True), lambda where: bench.succeed(first(where))),
    "fail": (lambda: scene(started=True), lambda where: bench.fail(first(where))),
    "fail for good": (
        lambda: scene(started=True),
        lambda where: bench.fail(first(where), Reason.BAD_INPUT),
    ),
    "hand back": (lambda: scene(started=True), lambda where: services.hand_back(*first(where))),
    "cancel": (lambda: scene(started=False), lambda where: services.cancel(where.jobs["a0"])),
    "cancel all": (
        lambda: scene(started=True),
        lambda where: services.cancel_all(where.ann.pk, where.jobs["a0"].workflow_id),
    ),
    "retry": (failed_scene, lambda where: retrying.retry(where.jobs["a0"])),
}
# the rest of them costs more than it shows in every run
USUAL = ("submit", "promote and push", "start", "succeed", "fail for good")


@pytest.mark.parametrize("move", USUAL)
def test_dying_in_the_middle_loses_nothing(move: str) -> None:
    die_everywhere(*MOVES[move])


@pytest.mark.slow
@pytest.mark.parametrize("move", [name for name in MOVES if name not in USUAL])
def test_dying_in_the_middle_of_the_rest_loses_nothing(move: str) -> None:
    die_everywhere(*MOVES[move])


@pytest.mark.slow
def test_dying_in_the_middle_of_a_sweep_loses_nothing() -> None:
    """Everything a sweep can have to do at once: a lost worker, a back-off, free places."""

    def before() -> Scene:
        where = scene(started=True)
        bench.fail(next(word for word in where.words if word != first(where)))
        bench.sleep()
        bench.expire(first(where)[0])
        return where

    die_everywhere(before, lambda where: sweep.sweep())


def die_everywhere(before: Callable[[], Scene], move: Callable[[Scene], object]) -> None:
    """Die at the first step, then in a fresh house at the second, until the move ends first."""
    for step in itertools.count(1):
        assert step < MOST_STEPS, "the move has no end"
        where = before()
        jobs = Job.objects.across_tenants(WHY).count()
        died = crashing.dies_at(step, lambda where=where: move(where))  # type: ignore[misc]
        assert picture.faults(picture.take()) == [], f"after dying at step {step}"
        assert Job.objects.across_tenants(WHY).count() in (jobs, jobs + 4), "half a submission"
        restart()
        if not died:
            assert step > 2, "the steps were not counted"
            return


def restart() -> None:
    """What the dead process held is lost; a new one works until nothing is left."""
    for pk in picture.take().jobs:
        bench.expire(pk)
    bench.work_off()
    over = picture.take()
    assert picture.faults(over) == []
    assert over.leases == []
    rows = Event.objects.across_tenants(WHY).filter(state=JobState.SUCCEEDED.value)
    done = Counter(rows.values_list("job", flat=True))
    for job in over.jobs.values():
        assert job.state.terminal
        assert done[job.pk] == (job.state is JobState.SUCCEEDED), "it did not complete once"
