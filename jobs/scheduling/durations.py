"""How long something takes, as what was seen before says: a log-normal guess and its range. Pure.

Durations of jobs are skewed and differ by factors, so all is kept and compared in logarithms.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import NamedTuple

NORMAL = NormalDist()
EDGE = NORMAL.inv_cdf(0.9)  # eight of ten fall between low and high
SLOWEST_STEP = 0.1  # a new job weighs at least this much: machines and models change
DOUBT = 0.25  # variance of the logarithm that one job alone leaves open
KNOWN_AFTER = 5  # jobs; from then on one that is far off counts as the edge of what was seen
OUTLIER = 3.0  # standard deviations
SHORTEST_S = 1e-3
MOST_PHASES = 20
PHASE_CHARS = 20
CERTAIN = 0.999  # a job that outlived nearly all others: nobody knows better than "soon"


class Span(NamedTuple):
    """Seconds: eight of ten fall between `low` and `high`, half of them below `typical`."""

    low: float
    typical: float
    high: float


UNKNOWN = Span(math.inf, math.inf, math.inf)
AT_ONCE = Span(0.0, 0.0, 0.0)


@dataclass(frozen=True)
class Guess:
    """A log-normal duration."""

    mean: float
    variance: float

    def span(self) -> Span:
        """Its middle and its edges."""
        reach = EDGE * math.sqrt(self.variance)
        return Span(*(math.exp(self.mean + step) for step in (-reach, 0.0, reach)))

    def times(self, units: float) -> Guess:
        """The same for so many units."""
        return Guess(self.mean + math.log(units), self.variance)

    def left_after(self, elapsed_s: float) -> Span:
        """What is left of it, given that it took `elapsed_s` already and is not over."""
        if elapsed_s <= SHORTEST_S:
            return self.span()
        deviation = math.sqrt(self.variance)
        passed = min(NORMAL.cdf((math.log(elapsed_s) - self.mean) / deviation), CERTAIN)
        whole = (
            math.exp(self.mean + deviation * NORMAL.inv_cdf(passed + (1 - passed) * part))
            for part in (0.1, 0.5, 0.9)
        )
        return Span(*(max(0.0, each - elapsed_s) for each in whole))


@dataclass(frozen=True)
class Learnt:
    """What so many jobs taught about the seconds of one unit."""

    jobs: int
    mean: float
    variance: float

    def with_one_more(self, seconds: float) -> Learnt:
        """After another one. What is far off moves it no more than what is just unusual."""
        value = math.log(max(seconds, SHORTEST_S))
        if self.jobs >= KNOWN_AFTER:
            reach = OUTLIER * math.sqrt(self.guess().variance)
            value = min(max(value, self.mean - reach), self.mean + reach)
        weight = max(1 / (self.jobs + 1), SLOWEST_STEP)
        off = value - self.mean
        return Learnt(
            self.jobs + 1,
            self.mean + weight * off,
            (1 - weight) * (self.variance + weight * off * off),
        )

    def guess(self) -> Guess:
        """The next one: wider while few were seen."""
        return Guess(self.mean, self.variance * (1 + 1 / self.jobs) + DOUBT / self.jobs)


NOTHING_LEARNT = Learnt(0, 0.0, 0.0)


def total(guesses: Sequence[Guess]) -> Guess:
    """One after the other, independent of each other: the log-normal of equal mean and variance.

    source  Fenton (1960), moments of a sum of log-normals
    """
    if len(guesses) == 1:
        return guesses[0]
    means = [math.exp(each.mean + each.variance / 2) for each in guesses]
    spread = sum(
        mean * mean * math.expm1(each.variance) for mean, each in zip(means, guesses, strict=True)
    )
    mean = sum(means)
    variance = math.log1p(spread / (mean * mean))
    return Guess(math.log(mean) - variance / 2, variance)


def left_by_progress(progress: float, elapsed_s: float) -> Span:
    """What is left of a running job by how far it is; the less is done, the wider."""
    left = elapsed_s * (1 - progress) / progress
    return Guess(math.log(max(left, SHORTEST_S)), DOUBT * (1 - progress)).span()


class Sample(NamedTuple):
    """What one job says about one phase; the phase "" is the whole job."""

    phase: str
    per_tile: bool
    seconds: float  # of one unit


def samples(timed: Iterable[Mapping[str, object]], *, whole_s: float, tiles: int) -> list[Sample]:
    """What a finished job teaches: of each phase its seconds a job and, with tiles, a tile.

    timed  [{"name", "seconds"}] as the job reported
    """
    spent = {"": whole_s}
    for each in list(timed)[:MOST_PHASES]:
        name, seconds = each.get("name"), each.get("seconds")
        if isinstance(name, str) and isinstance(seconds, int | float):
            spent[name[:PHASE_CHARS]] = float(seconds)
    found = [Sample(name, False, seconds) for name, seconds in spent.items()]
    if tiles > 0:
        found += [Sample(name, True, seconds / tiles) for name, seconds in spent.items()]
    return found
