"""The tables of jobs, one module a noun family."""

from __future__ import annotations

from jobs.models.events import Event
from jobs.models.jobs import Branch, Edge, Job, JobProgress
from jobs.models.slides import Artifact, Slide
from jobs.models.slots import Lease, Queue, RunSlot, UserSlot, Worker

__all__ = [
    "Artifact",
    "Branch",
    "Edge",
    "Event",
    "Job",
    "JobProgress",
    "Lease",
    "Queue",
    "RunSlot",
    "Slide",
    "UserSlot",
    "Worker",
]
