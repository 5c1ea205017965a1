"""What a helper does: the body of the job's type that helps, watched and told of like any other."""

from __future__ import annotations

import logging
from pathlib import Path

from jobs import moves
from jobs.models import Job
from jobs.running import artifacts, endings, tasks
from jobs.running.checkpoints import NoPlan
from jobs.running.progress import Reporter, Stopped, StopReason
from jobs.scheduling.dispatch import Order
from jobs.states import Reason
from jobs.types.base import JobType

log = logging.getLogger(__name__)


def run(job: Job, order: Order, worker: tasks.Worker) -> bool:
    """Help until nothing is left or no help is wanted. False when memory ran out: a fresh process
    is safer."""
    try:
        kind = tasks.type_of(job)
        with artifacts.scratch() as folder, Lookout(job, kind, order, worker) as report:
            _help(job, kind, order, Path(folder), report)
    except Stopped:
        log.info("%s: helper %d stops, it is not wanted any more", job, order.shard)
    except NoPlan:
        log.info("%s: helper %d leaves, for the job has another device or model", job, order.shard)
    except Exception as error:
        reason, sentence = endings.of_error(error)
        log.warning("%s: helper %d ends: %s", job, order.shard, sentence, exc_info=error)
        return reason is not Reason.OUT_OF_MEMORY
    return True


def _help(job: Job, kind: JobType, order: Order, scratch: Path, report: Reporter) -> None:
    """Nothing of this is written where the job's own worker writes, but for finished blocks."""
    if kind.help is None:
        log.error("%s: nobody can help with a %s", job, kind.name)
        return
    source = tasks.source_of(job, kind, report.alive)
    desk = artifacts.Desk(job, None, scratch)
    kind.help(tasks.task_of(job, source, desk, report, helps=True), report, order.shard)


class Lookout(Reporter):
    """The callback of a helper's body: the cells it finds are told, how far it is is nobody's."""

    def __init__(self, job: Job, kind: JobType, order: Order, worker: tasks.Worker) -> None:
        super().__init__(job, kind, beat=worker.beat)
        self.order = order
        self.worker = worker.worker

    def _look(self) -> None:
        if not moves.holds_shard(*self.order, self.worker):
            self._stop = StopReason.FENCED

    def _write(self) -> None:
        """The row is the attempt's own."""

    def _send(self) -> None:
        """So is the feed of its progress."""
