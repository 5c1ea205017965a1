"""Random histories of the scheduler over real rows: every step is one call that the product makes.

After each step every rule is checked on the rows; at the end everything that is left must drain.
"""

from __future__ import annotations

import uuid
from collections import Counter
from typing import Any

from django.conf import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
)

from jobs import moves, retrying, services
from jobs.models import Branch, Job, Queue
from jobs.scheduling import dispatch, lanes, leases, promotion, shards, sweep
from jobs.services import StaleTransition
from jobs.states import JobState, Reason
from tenants.models import Tenant, User
from tests import factories
from tests.proofs import bench, picture
from tests.proofs.bench import Word
from tests.proofs.picture import JobRow, Picture
from workflows import progress, submission
from workflows.models import Workflow

LANES = ("a", "b", "c", None)
LIVE = tuple(state for state in JobState if not state.terminal)
ENDED = tuple(state for state in JobState if state.terminal)
ANY = st.integers(0, 1000)  # which of those there are, counted around
WHY = "a history of the tests"

job_bodies = st.fixed_dictionaries(
    {
        "lane": st.sampled_from(LANES),
        "queue": st.sampled_from(("cpu", "cpu", "cpu", "gpu")),
        "priority": st.sampled_from((0, 0, 0, 1)),
        "after": st.sets(st.integers(0, 3), max_size=2),
    }
)

submissions = st.fixed_dictionaries(
    {
        "tenant": st.integers(0, 3),
        "member": st.integers(0, 2),
        "jobs": st.lists(job_bodies, min_size=1, max_size=4),
        "halt": st.booleans(),
        "backwards": st.booleans(),
    }
)
outcomes = st.sampled_from(("succeed", "succeed", "fail", "fail for good", "lose", "leave"))


class Rows(RuleBasedStateMachine):
    """Tenants, lanes and edges under every word that people, workers and time can say."""

    def __init__(self) -> None:
        super().__init__()
        bench.empty_house()
        self.tenants: list[Tenant] = []
        self.members: list[User | None] = []
        self.words: list[Word] = []  # every promotion that ever was: what a zombie may hold
        self.started: set[Word] = set()
        self.succeeded: Counter[int] = Counter()
        self.asked: set[int] = set()  # jobs whose cancel was answered
        self.now = picture.take()

    @initialize(
        quantum_s=st.sampled_from((0, 0, 1800)),
        weights=st.lists(st.integers(1, 2), min_size=4, max_size=4),
        first=st.lists(submissions, min_size=2, max_size=5),
    )
    def open(self, quantum_s: int, weights: list[int], first: list[dict[str, Any]]) -> None:
        settings.ACTIVE_USER_QUANTUM_S = quantum_s
        self.tenants = [factories.tenant(f"t{n}", weight=w) for n, w in enumerate(weights)]
        ann = User.objects.create(username="ann")
        bob = User.objects.create(username="bob")
        self.members = [None, ann, bob]
        for wanted in first:
            self._submit(wanted)

    # --- people --------------------------------------------------------------------------

    @rule(wanted=submissions)
    def submit(self, wanted: dict[str, Any]) -> None:
        self._submit(wanted)

    @rule(which=ANY)
    def cancel(self, which: int) -> None:
        job = self._pick(which, *LIVE, *ENDED)
        if job is None:
            return
        before = picture.record() if job.state.terminal else None
        try:
            services.cancel(self._row(job))
        except StaleTransition:
            assert before == picture.record(), "a refused cancel wrote something"
        else:
            assert before is None, "a job that was over was cancelled"
            self.asked.add(job.pk)

    @rule(which=ANY)
    def cancel_workflow(self, which: int) -> None:
        job = self._pick(which, *LIVE)
        if job is None:
            return
        services.cancel_all(job.tenant, uuid.UUID(job.workflow))
        self.asked |= {
            each.pk for each in self.now.in_state(*LIVE) if each.workflow == job.workflow
        }

    @rule(which=ANY)
    def retry(self, which: int) -> None:
        job = self._pick(which, *ENDED)
        if job is None:
            return
        before = picture.record()
        try:
            retrying.retry(self._row(job))
        except StaleTransition:
            assert before == picture.record(), "a refused retry wrote something"
        else:
            assert job.state is not JobState.SUCCEEDED
            now = picture.take()
            self.asked -= {each.pk for each in now.jobs.values() if each.live}

    @rule(
        what=st.sampled_from(("lane", "tenant", "queue")),
        which=st.integers(0, 3),
        lane=st.sampled_from(LANES[:3]),
        paused=st.sampled_from((True, False, False)),
    )
    def pause(self, what: str, which: int, lane: str, paused: bool) -> None:
        """Pause or resume a lane of a tenant, a tenant, or a queue."""
        tenant = self.tenants[which]
        branch = Branch.objects.for_tenant(tenant).filter(name=lane).first()
        if what == "queue":
            Queue.objects.filter(name=("cpu", "gpu")[which % 2]).update(paused=paused)
        elif what == "tenant":
            Tenant.objects.filter(pk=tenant.pk).update(paused=paused)
        elif branch is not None:
            lanes.set_paused(branch, paused)

    # --- schedulers ----------------------------------------------------------------------

    @rule()
    def promote(self) -> None:
        before = picture.take()
        promoted = promotion.promote()
        self._check_pass(before, promoted)
        assert promotion.promote() == [], "a second pass found what the first one left"

    @rule()
    def sweep(self) -> None:
        """A round of a scheduler: repair, promote, push."""
        sweep.sweep()
        self._note_promotions()

    @rule()
    def race(self) -> None:
        """Two schedulers decide at once."""
        before = picture.take()
        first, second = bench.at_once(promotion.promote, promotion.promote)
        assert not set(first) & set(second), "two schedulers promoted the same attempt"
        self._check_pass(before, [*first, *second])

    @rule(which=ANY)
    def race_with_a_worker(self, which: int) -> None:
        """A worker starts a job while a scheduler decides and a person cancels it."""
        job = self._pick(which, JobState.QUEUED)
        if job is None:
            return
        word, row = (job.pk, job.attempt), self._row(job)
        started, _, _ = bench.at_once(
            lambda: bench.start(word), promotion.promote, lambda: services.cancel(row)
        )
        if started:
            self.started.add(word)
        self.asked.add(job.pk)
        self._note_promotions()

    @rule(ends=st.lists(outcomes, min_size=3, max_size=3))
    def work(self, ends: list[str]) -> None:
        """What happens most: a pass, workers that start all of it, and how each attempt ends."""
        self.promote()
        self._end_all(ends)

    @rule(ends=st.lists(outcomes, min_size=3, max_size=3))
    def work_in_a_race(self, ends: list[str]) -> None:
        self.race()
        self._end_all(ends)

    # --- time and the wire ---------------------------------------------------------------

    @rule(which=ANY)
    def lose_lease(self, which: int) -> None:
        """Its worker was not heard of in time; the sweep ends its hold."""
        job = self._pick(which, JobState.QUEUED, JobState.RUNNING)
        if job is None:
            return
        bench.expire(job.pk)
        sweep.repair()
        assert not self._row(job).status.active
        self._note_promotions()

    @rule()
    def sleep(self) -> None:
        bench.sleep()
        services.wake_retries()

    @rule()
    def end_turns(self) -> None:
        bench.end_turns()

    @rule()
    def lose_wire(self) -> None:
        """Redis is emptied; what a sweep finds overdue is pushed again."""
        bench.lose_wire()
        bench.sleep()
        dispatch.push_overdue()
        queued = {(job.pk, job.attempt) for job in self.now.in_state(JobState.QUEUED)}
        assert queued <= set(bench.on_wire()), "a promoted job has no message"

    @rule()
    def deliver(self) -> None:
        """A worker takes the next message; who is to start it is said by the row alone."""
        word = bench.pop()
        if word is not None:
            self._start(word, "cpu-1")

    # --- workers -------------------------------------------------------------------------

    @rule(which=ANY, twice=st.booleans())
    def start(self, which: int, twice: bool) -> None:
        job = self._pick(which, JobState.QUEUED)
        if job is None:
            return
        word = (job.pk, job.attempt)
        if job.attempt > 1:  # the message of its last attempt was still on the wire, and is first
            self._start((job.pk, job.attempt - 1), "zombie")
        self._start(word, "cpu-0")
        if twice:
            self.now = picture.take()
            self._start(word, "cpu-2")

    @rule(which=ANY)
    def succeed(self, which: int) -> None:
        job = self._pick(which, JobState.RUNNING)
        if job is None:
            return
        self._succeed((job.pk, job.attempt))

    @rule(which=ANY, reason=st.sampled_from((Reason.ERROR, Reason.ERROR, Reason.BAD_INPUT)))
    def fail(self, which: int, reason: Reason) -> None:
        job = self._pick(which, JobState.RUNNING)
        if job is None:
            return
        assert bench.fail((job.pk, job.attempt), reason)

    @rule(which=ANY)
    def hand_back(self, which: int) -> None:
        job = self._pick(which, JobState.QUEUED, JobState.RUNNING)
        if job is None:
            return
        assert services.hand_back(job.pk, job.attempt)

    @rule(which=ANY)
    def stop(self, which: int) -> None:
        """A worker saw that a cancel was asked for."""
        asked = [job for job in self.now.in_state(JobState.RUNNING) if job.cancel_asked]
        if asked:
            job = asked[which % len(asked)]
            assert services.finish_cancel(job.pk, job.attempt)

    @rule(
        which=ANY, verb=st.sampled_from(("start", "succeed", "fail", "hand_back", "stop", "renew"))
    )
    def late_word(self, which: int, verb: str) -> None:
        """A worker that was stopped and woken says what it has to say: nothing changes."""
        late = self._late_words()
        if not late:
            return
        word = late[which % len(late)]
        before = picture.record()
        answer = {
            "start": lambda: bench.start(word, "zombie"),
            "succeed": lambda: bench.succeed(word),
            "fail": lambda: bench.fail(word),
            "hand_back": lambda: services.hand_back(*word),
            "stop": lambda: services.finish_cancel(*word),
            "renew": lambda: leases.renew(*word, "cpu-0").mine,
        }[verb]()
        assert not answer, f"a late {verb} was believed"
        assert picture.record() == before, f"a late {verb} changed rows"

    # --- helpers -------------------------------------------------------------------------

    @rule(which=ANY, comes=st.booleans())
    def help(self, which: int, comes: bool) -> None:
        """A job turns out to be long, and a scheduler looks who could help; who is sent may come."""
        job = self._pick(which, JobState.RUNNING)
        if job is None:
            return
        bench.grow_long((job.pk, job.attempt))
        waiting = {each.queue for each in self.now.jobs.values() if self.now.could_start(each)}
        for sent in shards.settle():
            assert sent.queue not in waiting, "somebody helps while jobs of the queue wait"
            if comes:
                worker = f"helper-{sent.job}-{sent.shard}"
                assert moves.take_shard(sent.job, sent.attempt, sent.shard, worker)

    @rule(which=ANY)
    def race_with_help(self, which: int) -> None:
        """A job ends while two schedulers send somebody to help with it."""
        job = self._pick(which, JobState.RUNNING)
        if job is None:
            return
        word = (job.pk, job.attempt)
        bench.grow_long(word)
        _, _, done = bench.at_once(shards.settle, shards.settle, lambda: bench.succeed(word))
        assert done == (not job.cancel_asked)
        self.succeeded[job.pk] += done

    @rule()
    def helpers_look(self) -> None:
        """Those that are not wanted any more leave, and no others."""
        for lease in self.now.leases:
            if not (lease.shard and lease.worker):
                continue
            job = self.now.jobs[lease.job]
            wanted = moves.holds_shard(job.pk, job.attempt, lease.shard, lease.worker)
            assert wanted == (lease.attempt == job.attempt and not job.cancel_asked)
            if not wanted:
                assert moves.leave_shard(job.pk, lease.shard, lease.worker)

    # --- the rules -----------------------------------------------------------------------

    @invariant()
    def every_rule_holds(self) -> None:
        before, self.now = self.now, picture.take()
        assert picture.faults(self.now) == []
        for job in self.now.jobs.values():
            was = before.jobs.get(job.pk)
            if was is not None:
                assert was.attempt <= job.attempt <= was.attempt + 1
                assert was.state is not JobState.SUCCEEDED or job.state is JobState.SUCCEEDED
                assert was.sequence == job.sequence or was.state.terminal, "it lost its place"
            if job.pk in self.asked:
                assert job.state is not JobState.SUCCEEDED, "a cancelled job succeeded"

    def teardown(self) -> None:
        """Nothing is stuck: with nothing paused, whatever is left comes to its end."""
        try:
            for branch in Branch.objects.across_tenants(WHY).filter(paused=True):
                lanes.set_paused(branch, False)
            Tenant.objects.update(paused=False)
            Queue.objects.update(paused=False)
            bench.work_off()
            over = picture.take()
            assert picture.faults(over) == []
            assert over.leases == []
            assert not any(each.holds_slot for each in over.tenants.values())
            assert all(job.state.terminal for job in over.jobs.values())
            self._check_workflows(over)
        finally:
            super().teardown()

    def _check_workflows(self, over: Picture) -> None:
        """The copy of a workflow's state is what its jobs add up to."""
        for flow in Workflow.objects.across_tenants(WHY):
            states = {job.state for job in over.jobs.values() if job.workflow == str(flow.pk)}
            progress.refresh(flow.pk)
            flow.refresh_from_db()
            wanted = next(
                (s.name for s in (JobState.FAILED, JobState.CANCELLED) if s in states), "SUCCEEDED"
            )
            assert flow.state == wanted
            assert flow.progress == 1.0

    # --- pieces --------------------------------------------------------------------------

    def _late_words(self) -> list[Word]:
        """What a zombie may hold: first of all, attempts of jobs that another attempt runs now."""
        rows = self.now.jobs
        gone = [word for word in self.words if word not in self.now.active_words()]
        taken_over = [word for word in gone if rows[word[0]].state.active]
        return taken_over or gone

    def _submit(self, wanted: dict[str, Any]) -> None:
        """Edges go down the list; submitted backwards, from a later job to an earlier one."""
        bodies = [
            factories.job(
                f"j{place}",
                body["lane"],
                after=[f"j{above}" for above in sorted(body["after"]) if above < place],
                priority=body["priority"],
                params={"queue": body["queue"]},
            )
            for place, body in enumerate(wanted["jobs"])
        ]
        submission.submit(
            self.tenants[wanted["tenant"]],
            {
                "name": "history",
                "jobs": bodies[::-1] if wanted["backwards"] else bodies,
                "on_failure": "halt" if wanted["halt"] else "continue",
            },
            user=self.members[wanted["member"]],
        )

    def _end_all(self, ends: list[str]) -> None:
        self.every_rule_holds()
        for job in self.now.in_state(JobState.QUEUED):
            if job.attempt > 1:
                self._start((job.pk, job.attempt - 1), "zombie")
            self._start((job.pk, job.attempt), f"cpu-{job.pk}")
        self.every_rule_holds()
        for job, end in zip(self.now.in_state(JobState.RUNNING), ends, strict=False):
            word = (job.pk, job.attempt)
            if end == "succeed":
                self._succeed(word)
            elif end in ("fail", "fail for good"):
                assert bench.fail(word, Reason.ERROR if end == "fail" else Reason.BAD_INPUT)
            elif end == "lose":
                bench.expire(job.pk)
                assert services.expire(*word)

    def _pick(self, which: int, *states: JobState) -> JobRow | None:
        """No precondition asks for one: what a race leaves behind differs from run to run."""
        found = self.now.in_state(*states)
        return found[which % len(found)] if found else None

    def _row(self, job: JobRow) -> Job:
        row: Job = Job.objects.across_tenants(WHY).get(pk=job.pk)
        return row

    def _start(self, word: Word, worker: str) -> None:
        """Start if the row says so, and only then."""
        job = self.now.jobs[word[0]]
        wanted = job.state is JobState.QUEUED and job.attempt == word[1]
        before = None if wanted else picture.record()
        assert bench.start(word, worker) == wanted
        if wanted:
            assert word not in self.started, "an attempt started twice"
            self.started.add(word)
        else:
            assert picture.record() == before, "a start that was refused changed rows"

    def _succeed(self, word: Word) -> None:
        job = self.now.jobs[word[0]]
        assert bench.succeed(word) == (not job.cancel_asked)
        if not job.cancel_asked:
            self.succeeded[job.pk] += 1
            assert self.succeeded[job.pk] == 1, "a job completed twice"

    def _check_pass(self, before: Picture, promoted: list[Word]) -> None:
        after = picture.take()
        assert picture.pass_faults(before, after) == []
        fresh = {
            (job.pk, job.attempt)
            for job in after.jobs.values()
            if job.attempt > before.jobs[job.pk].attempt
        }
        assert fresh == set(promoted)
        self.words += promoted

    def _note_promotions(self) -> None:
        known = set(self.words)
        self.words += [
            (job.pk, job.attempt)
            for job in picture.take().jobs.values()
            if job.attempt and (job.pk, job.attempt) not in known
        ]
