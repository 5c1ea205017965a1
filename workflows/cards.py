"""What the dashboard and the workflow page show of workflows: cards, counts, the picture's nodes."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from django.db.models import Count, Q, Sum
from django.utils import timezone

from jobs import words
from jobs.models import Edge, Job
from jobs.rows import JobRow
from jobs.shapes import progress_of
from jobs.states import FIRST_TERMINAL, JobState
from tenants.identity import Identity
from tenants.pages import rows_of
from workflows import aggregate, drawing
from workflows.models import Workflow

LANES_A_CARD = 4
JOBS_A_LANE = 24
SMALL = 60  # workflows with more jobs show their bar alone
LIVE = Q(state__lt=int(FIRST_TERMINAL))


@dataclass(frozen=True)
class Segment:
    """One job in a lane of a card."""

    id: str
    key: str
    state: str
    word: str
    progress: float


@dataclass(frozen=True)
class MiniLane:
    """A lane of a card."""

    name: str
    segments: tuple[Segment, ...]


@dataclass(frozen=True)
class Card:
    """A workflow on the dashboard."""

    id: str
    name: str
    state: str
    word: str
    progress: float
    tally: str
    total: int
    live: int
    created_at: Any
    finished_at: Any
    lanes: tuple[MiniLane, ...]
    more_lanes: int

    @property
    def age(self) -> str:
        return words.age((timezone.now() - self.created_at).total_seconds())

    @property
    def percent(self) -> int:
        return 100 if self.progress >= 1 else int(self.progress * 100)


def cards_of(who: Identity, workflows: Sequence[Workflow]) -> list[Card]:
    """Cards with counts and bars as of now: two queries, however many workflows."""
    ids = [each.pk for each in workflows]
    counts = counts_of(who, ids)
    small = [pk for pk in ids if 0 < counts.get(pk, {}).get("total", 0) <= SMALL]
    lanes = mini_lanes(who, small)
    return [card_of(each, counts.get(each.pk, {}), lanes.get(each.pk, [])) for each in workflows]


def counts_of(who: Identity, ids: Sequence[uuid.UUID]) -> dict[uuid.UUID, dict[str, Any]]:
    """Jobs of each workflow by where they stand, the fields of aggregate.Counts and two more."""
    found = (
        rows_of(Job.objects, who)
        .filter(workflow__in=ids)
        .order_by()
        .values("workflow_id")
        .annotate(
            total=Count("pk"),
            live=Count("pk", filter=LIVE),
            succeeded=Count("pk", filter=Q(state=JobState.SUCCEEDED.value)),
            failed=Count("pk", filter=Q(state=JobState.FAILED.value)),
            cancelled=Count("pk", filter=Q(state=JobState.CANCELLED.value)),
            moved=Count("pk", filter=Q(attempt__gt=0) | ~LIVE),
            running=Count("pk", filter=Q(state=JobState.RUNNING.value)),
            live_progress=Sum("progress_row__progress", filter=LIVE, default=0.0),
        )
    )
    return {row.pop("workflow_id"): row for row in found}


def card_of(workflow: Workflow, found: Mapping[str, Any], lanes: list[MiniLane]) -> Card:
    counts = dict(found)
    running = counts.pop("running", 0)
    whole = aggregate.Counts(**counts)
    state = aggregate.state_of(whole, workflow.state)
    return Card(
        id=str(workflow.pk),
        name=workflow.name,
        state=state,
        word=words.STATES[state],
        progress=aggregate.progress_of(whole),
        tally=tally(whole, running),
        total=whole.total,
        live=whole.live,
        created_at=workflow.created_at,
        finished_at=workflow.finished_at if not whole.live else None,
        lanes=tuple(lanes[:LANES_A_CARD]),
        more_lanes=max(len(lanes) - LANES_A_CARD, 0),
    )


def tally(counts: aggregate.Counts, running: int) -> str:
    """The counts in words: "3 jobs · 1 done · 1 running · 1 waiting"."""
    if not counts.total:
        return "No jobs yet"
    parts = [
        (counts.succeeded, "done"),
        (running, "running"),
        (counts.live - running, "waiting"),
        (counts.failed, "failed"),
        (counts.cancelled, "cancelled"),
    ]
    jobs = "1 job" if counts.total == 1 else f"{counts.total:,} jobs"
    return " · ".join([jobs, *(f"{number:,} {word}" for number, word in parts if number)])


def mini_lanes(who: Identity, ids: Sequence[uuid.UUID]) -> dict[uuid.UUID, list[MiniLane]]:
    """The lanes of small workflows, a segment a job."""
    jobs = rows_of(Job.objects, who).filter(workflow__in=ids)
    gathered: dict[uuid.UUID, dict[int, tuple[str, list[Segment]]]] = {}
    for job in jobs.select_related("branch", "progress_row").order_by("sequence"):
        lanes = gathered.setdefault(job.workflow_id, {})
        name = job.key if job.own_branch else job.branch.name
        lanes.setdefault(job.branch_id, (name, []))[1].append(segment_of(job))
    return {
        pk: [MiniLane(name, tuple(segments[:JOBS_A_LANE])) for name, segments in lanes.values()]
        for pk, lanes in gathered.items()
    }


def segment_of(job: Job) -> Segment:
    state = job.status.public
    return Segment(str(job.uuid), job.key, state, words.state(state, job.reason), progress_of(job))


@dataclass(frozen=True)
class Node:
    """A job in the picture."""

    row: JobRow
    title: str
    place: drawing.Place

    @property
    def fill(self) -> float:
        return round(self.row.progress * (drawing.NODE_W - 2 * drawing.INSET), 1)


def picture_of(
    jobs: Sequence[Job], rows: Sequence[JobRow], upstream: Mapping[int, list[int]]
) -> tuple[drawing.Picture, list[Node]]:
    """The picture of `jobs` (in sequence order) and its nodes, beside their rows."""
    key = {job.pk: job.key for job in jobs}
    steps = [
        drawing.Step(
            job.key,
            None if job.own_branch else job.branch.name,
            tuple(key[pk] for pk in upstream.get(job.pk, []) if pk in key),
        )
        for job in jobs
    ]
    picture = drawing.draw(steps)
    nodes = [Node(row, drawing.shortened(row.key), picture.places[row.key]) for row in rows]
    return picture, nodes


def edges_of(who: Identity, job_pks: Iterable[int]) -> dict[int, list[int]]:
    """The upstream pks of each of these jobs."""
    edges = rows_of(Edge.objects, who).filter(downstream__in=list(job_pks))
    found: dict[int, list[int]] = {}
    for upstream, downstream in edges.order_by("upstream__sequence").values_list(
        "upstream_id", "downstream_id"
    ):
        found.setdefault(downstream, []).append(upstream)
    return found


def waits_for(who: Identity, jobs: Iterable[Job]) -> dict[int, list[str]]:
    """Keys of the jobs that these wait for and that are not done."""
    waiting = [job.pk for job in jobs if job.upstream_left and not job.status.terminal]
    if not waiting:
        return {}
    edges = rows_of(Edge.objects, who).filter(downstream__in=waiting)
    open_edges = edges.exclude(upstream__state=JobState.SUCCEEDED.value)
    found: dict[int, list[str]] = {}
    for downstream, key in open_edges.order_by("upstream__sequence").values_list(
        "downstream_id", "upstream__key"
    ):
        found.setdefault(downstream, []).append(key)
    return found
