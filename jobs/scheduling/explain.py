"""Why a waiting job waits: the first rule that holds it, behind what, and its place in line (R13)."""

from __future__ import annotations

from typing import Any

from django.conf import settings
from django.db.models import Q

from jobs.models import Branch, Job, Queue, UserSlot
from jobs.scheduling import slots
from jobs.scheduling.workers import live_by_queue
from jobs.shapes import moment
from jobs.states import FIRST_HEAD, LAST_HEAD, JobState, Reason
from tenants.models import Tenant

SHOWN = 20  # blocking jobs that are named
EXACT_TO = 1000  # a place in line is counted this far

Answer = dict[str, Any]


def why(job: Job) -> Answer:
    """The rule that holds `job` now. For an active or ended job: that, in words."""
    if job.status.terminal:
        return _answer(job.reason, f"This job is over: {job.status.public}.")
    if job.status is JobState.RUNNING:
        return _answer(job.reason, "This job is running.")
    if job.status is JobState.QUEUED:
        return _answer(Reason.NONE, "A worker is about to take this job.")
    gates = (_paused, _dependency, _branch, _retry, _no_worker, _user_limit, _worker_limit)
    return next((found for gate in gates if (found := gate(job))), _next_pass(job))


def _answer(
    reason: str,
    detail: str,
    *,
    blocking: list[Answer] | None = None,
    position: int | None = None,
    estimated_start: str | None = None,
) -> Answer:
    return {
        "reason": str(reason),
        "detail": detail,
        "blocking": blocking or [],
        "position": position,
        "estimated_start": estimated_start,
    }


def _paused(job: Job) -> Answer | None:
    lane = Branch.objects.for_tenant(job.tenant).get(pk=job.branch_id)
    queue = Queue.objects.filter(name=job.queue, paused=True)
    held = [
        (Tenant.objects.filter(pk=job.tenant_id, paused=True).exists(), "An operator paused you."),
        (lane.paused, f"Branch {lane.name} is paused."),
        (queue.exists(), f"Queue {job.queue} is paused by an operator."),
    ]
    sentence = next((text for applies, text in held if applies), None)
    return _answer(Reason.PAUSED, sentence) if sentence else None


def _dependency(job: Job) -> Answer | None:
    upstream = Job.objects.for_tenant(job.tenant).filter(edges_down__downstream=job)
    waiting = upstream.exclude(state=JobState.SUCCEEDED.value).order_by("sequence")
    blocking = [_brief(each) for each in waiting[:SHOWN]]
    if not blocking:
        return None
    names = ", ".join(each["job_id"] for each in blocking[:5])
    more = waiting.count() - len(blocking[:5])
    tail = f" and {more} more" if more > 0 else ""
    return _answer(Reason.DEPENDENCY, f"It waits for {names}{tail}.", blocking=blocking)


def _branch(job: Job) -> Answer | None:
    lane = Job.objects.for_tenant(job.tenant).filter(branch=job.branch_id).exclude(pk=job.pk)
    head = Q(state__gte=int(FIRST_HEAD), state__lte=int(LAST_HEAD))
    before = lane.filter(head | Q(state=JobState.PENDING.value, sequence__lt=job.sequence))
    if job.status >= FIRST_HEAD:
        return None
    ahead = before.count()
    if not ahead:
        return None
    first = before.order_by("-state", "sequence").first()
    detail = (
        f"Jobs of branch {job.branch.name} run one at a time, and {ahead} "
        f"{'is' if ahead == 1 else 'are'} before it. Other workflows of yours that use the same "
        "branch name share this lane."
    )
    return _answer(Reason.BRANCH, detail, blocking=[_brief(first)], position=ahead + 1)


def _retry(job: Job) -> Answer | None:
    if job.status is not JobState.RETRY_WAIT:
        return None
    at = moment(job.retry_at)
    detail = f"Attempt {job.failures} of {job.max_attempts} failed ({job.error}). Next try at {at}."
    return _answer(Reason.RETRY_WAIT, detail, estimated_start=at)


def _no_worker(job: Job) -> Answer | None:
    if live_by_queue().get(job.queue, 0):
        return None
    detail = f"No worker of queue {job.queue} is running. An operator must start one."
    return _answer(Reason.NO_WORKER, detail)


def _user_limit(job: Job) -> Answer | None:
    if UserSlot.objects.filter(holder=job.tenant_id).exists():
        return None
    held = UserSlot.objects.filter(holder__isnull=False).count()
    tenant = Tenant.objects.get(pk=job.tenant_id)
    line = Tenant.objects.filter(waiting_since__isnull=False, paused=False)
    ahead = (
        line.filter(waiting_since__lt=tenant.waiting_since).count() if tenant.waiting_since else 0
    )
    if held < settings.MAX_ACTIVE_USERS:
        return None
    detail = (
        f"{held} of {settings.MAX_ACTIVE_USERS} user slots are taken, {ahead} "
        f"{'user waits' if ahead == 1 else 'users wait'} before you."
    )
    return _answer(Reason.USER_LIMIT, detail, position=ahead + 1)


def _worker_limit(job: Job) -> Answer | None:
    if slots.free_run_slots() and slots.room_by_queue().get(job.queue, 0):
        return None
    ahead = Job.objects.for_tenant(job.tenant).filter(
        Q(priority__gt=job.priority) | Q(priority=job.priority, sequence__lt=job.sequence),
        queue=job.queue,
        state=JobState.READY.value,
    )
    place = ahead[:EXACT_TO].count() + 1
    detail = (
        f"All workers of queue {job.queue} are busy. {place - 1} of your own jobs are before it; "
        "the next free worker goes to the user with the fewest running jobs."
    )
    return _answer(Reason.WORKER_LIMIT, detail, position=place)


def _next_pass(job: Job) -> Answer:
    detail = "Nothing holds it: it starts with the scheduler's next pass."
    return _answer(job.reason, detail, position=1)


def _brief(job: Job | None) -> Answer:
    if job is None:
        return {}
    return {"id": str(job.uuid), "job_id": job.key, "state": job.status.public}
