"""The tables of jobs, one module a noun family."""

from __future__ import annotations

from jobs.models.blobs import Blob
from jobs.models.checkpoints import Block
from jobs.models.events import Event
from jobs.models.history import Duration, LearntUntil, Tally
from jobs.models.jobs import Branch, Edge, Job, JobProgress
from jobs.models.networks import SegmentationModel
from jobs.models.slides import Artifact, Slide
from jobs.models.slots import Lease, Maintenance, Queue, RunSlot, UserSlot, Worker

__all__ = [
    "Artifact",
    "Blob",
    "Block",
    "Branch",
    "Duration",
    "Edge",
    "Event",
    "Job",
    "JobProgress",
    "LearntUntil",
    "Lease",
    "Maintenance",
    "Queue",
    "RunSlot",
    "SegmentationModel",
    "Slide",
    "Tally",
    "UserSlot",
    "Worker",
]
