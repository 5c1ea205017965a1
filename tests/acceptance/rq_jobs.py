"""What plain RQ's workers run beside scenario 16: bodies that note when they began."""

from __future__ import annotations

from rq import Queue, get_current_job

from bench.peers import tasks
from bench.peers.plain_rq import PlainRq
from tests.client import until


def chained(left: int) -> None:
    """Note the moment, and enqueue the next job unless this is the last."""
    tasks.mark()
    job = get_current_job()
    if left and job is not None:
        Queue(job.origin, connection=job.connection).enqueue(chained, left - 1)


def enqueue_many(peer: PlainRq, count: int) -> None:
    peer.queue.enqueue_many([Queue.prepare_data(tasks.mark) for _ in range(count)])


def enqueue_chain(peer: PlainRq, count: int) -> None:
    peer.queue.enqueue(chained, count - 1)


def marks(peer: PlainRq) -> list[float]:
    """When each body began, in the order of writing."""
    lines = peer.marks.read_text().split("\n")[:-1] if peer.marks.exists() else []
    return [float(line) for line in lines]


def wait(peer: PlainRq, count: int) -> list[float]:
    """The marks once there are so many."""

    def there() -> list[float]:
        found = marks(peer)
        return found if len(found) >= count else []

    return until(there, timeout_s=60, what=f"{peer.name} began {count} jobs", every_s=0.1)
