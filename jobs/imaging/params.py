"""The parameters of a request, checked: a wrong one is a sentence, not a traceback."""

from __future__ import annotations

import math
from collections.abc import Mapping

from jobs.imaging.contract import BadInput


def number(
    params: Mapping[str, object], name: str, *, default: float | None, low: float, high: float
) -> float | None:
    """The number called `name`, or `default` where it is absent or null."""
    value = params.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise BadInput(f'"{name}" is {value!r}: give a number from {low:g} to {high:g}.')
    if not low <= value <= high:
        raise BadInput(f'"{name}" is {value:g}: give a number from {low:g} to {high:g}.')
    return float(value)


def flag(params: Mapping[str, object], name: str, *, default: bool) -> bool:
    """The switch called `name`, or `default` where it is absent or null."""
    value = params.get(name)
    if value is None:
        return default
    if not isinstance(value, bool):
        raise BadInput(f'"{name}" is {value!r}: give true or false.')
    return value
