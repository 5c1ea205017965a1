"""How long jobs take: learnt from those that finished, by type, model, device and phase.

Nothing is learnt where a job ends; a slow sweep reads the newest ended jobs now and then. Without
history there is no estimate: none is made up.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from django.db import transaction
from django.db.models.functions import Now
from django.utils import timezone

from jobs.models import Duration, Job, LearntUntil
from jobs.scheduling.durations import NOTHING_LEARNT, Guess, Learnt, Span, samples, total
from jobs.states import FIRST_TERMINAL, JobState, Reason

BATCH = 500  # jobs a call; when more ended, the newest say enough
LAG = dt.timedelta(seconds=5)  # an end is written before it is committed
FIRST_LOOK = dt.timedelta(days=1)
NAME_CHARS = 100


class Key(NamedTuple):
    """What a duration was learnt for."""

    job_type: str
    model: str
    device: str
    phase: str
    per_tile: bool


@dataclass(frozen=True)
class Ended:
    """A job that succeeded at its first attempt: a later one may resume finished work."""

    job_type: str
    queue: str
    summary: Mapping[str, Any]
    took: dt.timedelta
    phases: list[dict[str, Any]]

    def keys(self) -> dict[Key, float]:
        """The seconds of each unit that it teaches."""
        found = samples(self.phases, whole_s=self.took.total_seconds(), tiles=self._tiles())
        return {
            Key(self.job_type, self._model(), self._device(), each.phase, each.per_tile): (
                each.seconds
            )
            for each in found
        }

    def _tiles(self) -> int:
        tiles = self.summary.get("tiles")
        return tiles if isinstance(tiles, int) else 0

    def _model(self) -> str:
        told = (self.summary.get("model"), self.summary.get("precision"))
        return " ".join(str(each) for each in told if each)[:NAME_CHARS]

    def _device(self) -> str:
        return str(self.summary.get("device") or self.queue).casefold()[:NAME_CHARS]


def learn() -> int:
    """Take in the jobs that ended since the last call. Returns how many; 0 when another learns."""
    with transaction.atomic():
        LearntUntil.objects.get_or_create(pk=1, defaults={"at": timezone.now() - FIRST_LOOK})
        until = LearntUntil.objects.select_for_update(skip_locked=True).filter(pk=1).first()
        reached = _last_end()
        if until is None or reached is None or reached <= until.at:
            return 0
        ended = _ended_between(until.at, reached)
        if ended:
            _write(ended)
        until.at = reached  # also past what taught nothing: it is not looked at again
        until.save(update_fields=["at"])
    return len(ended)


def _all_ended() -> Any:
    rows = Job.objects.across_tenants("durations are a statistic over all tenants")
    return rows.filter(state__gte=int(FIRST_TERMINAL))  # the words of the index


def _last_end() -> dt.datetime | None:
    """When the last job ended, whatever its end."""
    ends = _all_ended().filter(finished_at__lte=Now() - LAG).order_by("-finished_at")
    last: dt.datetime | None = ends.values_list("finished_at", flat=True).first()
    return last


def _ended_between(after: dt.datetime, until: dt.datetime) -> list[Ended]:
    """The newest that teach something, in the order of their ends."""
    jobs = (
        _all_ended()
        .filter(
            state=JobState.SUCCEEDED.value,
            finished_at__gt=after,
            finished_at__lte=until,
            started_at__isnull=False,
            attempt=1,
        )
        .exclude(reason=Reason.REUSED.value)
    )  # it took another job's result, and no time
    rows = jobs.order_by("-finished_at").values_list(
        "finished_at", "started_at", "job_type", "queue", "summary", "progress_row__phases"
    )[:BATCH]
    return [
        Ended(job_type, queue, summary or {}, finished - started, phases or [])
        for finished, started, job_type, queue, summary, phases in reversed(rows)
    ]


def _write(ended: Iterable[Ended]) -> None:
    taught = [(key, seconds) for each in ended for key, seconds in each.keys().items()]
    known = _rows({key.job_type for key, _ in taught})
    new: dict[Key, Learnt] = {}
    for key, seconds in taught:
        before = new.get(key) or (_learnt(known[key]) if key in known else NOTHING_LEARNT)
        new[key] = before.with_one_more(seconds)
    Duration.objects.bulk_create(
        [
            Duration(
                **key._asdict(), jobs=each.jobs, log_mean=each.mean, log_variance=each.variance
            )
            for key, each in new.items()
        ],
        update_conflicts=True,
        unique_fields=list(Key._fields),
        update_fields=["jobs", "log_mean", "log_variance", "learnt_at"],
    )


def _rows(job_types: Iterable[str]) -> dict[Key, Duration]:
    return {
        Key(row.job_type, row.model, row.device, row.phase, row.per_tile): row
        for row in Duration.objects.filter(job_type__in=sorted(job_types))
    }


def _learnt(row: Duration) -> Learnt:
    return Learnt(row.jobs, row.log_mean, row.log_variance)


class History:
    """What is known of some types, read once."""

    def __init__(self, job_types: Iterable[str]) -> None:
        self._groups: dict[str, dict[tuple[str, str], list[Duration]]] = {}
        for key, row in _rows(job_types).items():
            group = self._groups.setdefault(key.job_type, {})
            group.setdefault((key.model, key.device), []).append(row)

    def guess(
        self, job_type: str, *, devices: Collection[str] = (), tiles: int = 0
    ) -> Guess | None:
        """How long a job takes from its start to its end. None without history.

        devices  what the live workers run on; history of one of them counts before any other
        tiles    how many it has, 0 when that is not known yet
        """
        groups = self._groups.get(job_type)
        if not groups:
            return None
        here = {each.casefold() for each in devices}

        def rank(pair: tuple[tuple[str, str], list[Duration]]) -> tuple[bool, dt.datetime]:
            (_, device), rows = pair
            return (device in here, max(row.learnt_at for row in rows))

        return _of_group(max(groups.items(), key=rank)[1], tiles)


def _of_group(rows: Collection[Duration], tiles: int) -> Guess:
    """By phases where the tiles are known, each in the unit that it grows with."""
    by_job = {row.phase: row for row in rows if not row.per_tile}
    by_tile = {row.phase: row for row in rows if row.per_tile}
    if tiles <= 0 or not by_tile:
        return _learnt(by_job[""]).guess()
    phases = [name for name in by_job if name] or [""]
    longest = max(phases, key=lambda name: by_job[name].log_mean)
    guesses = []
    for name in phases:
        row, other = by_job[name], by_tile.get(name)
        if other is not None and _grows_with_tiles(row, other, longest=name == longest):
            guesses.append(_learnt(other).guess().times(tiles))
        else:
            guesses.append(_learnt(row).guess())
    return total(guesses)


def _grows_with_tiles(job: Duration, tile: Duration, *, longest: bool) -> bool:
    """What varies clearly less a tile than a job; where slides were alike, the longest phase."""
    small = 1e-6  # alike to the last digit
    if abs(job.log_variance - tile.log_variance) <= 0.1 * job.log_variance + small:
        return longest
    return tile.log_variance < job.log_variance


def seconds(job_type: str, *, device: str = "", tiles: int = 0) -> Span | None:
    """(low, typical, high) of a job from start to end; None when no such job finished yet."""
    guess = History([job_type]).guess(job_type, devices=[device] if device else [], tiles=tiles)
    return guess.span() if guess else None
