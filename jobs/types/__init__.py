"""The registry of job types: every module of this package that has a TYPE. A new type is one file."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from functools import cache
from typing import Any

from django.conf import settings
from jsonschema import Draft202012Validator, ValidationError

from jobs.types.base import JobType

SHOWN = 300  # characters of a sentence that may hold what the client sent
PROBE = "probe"  # for tests and benchmarks, only where settings allow it


class UnknownType(KeyError):
    """No job type has this name."""


@cache
def _all() -> dict[str, JobType]:
    modules = (
        importlib.import_module(f"{__name__}.{info.name}")
        for info in pkgutil.iter_modules(__path__)
    )
    types = (module.TYPE for module in modules if hasattr(module, "TYPE"))
    return {kind.name: kind for kind in sorted(types, key=lambda kind: kind.name)}


def names() -> list[str]:
    """The names of the types that may be submitted here."""
    return [name for name in _all() if name != PROBE or settings.LABSCHED_ENABLE_PROBE_JOBS]


def get(name: str) -> JobType:
    """The type of this name. Raises UnknownType."""
    if name not in names():
        raise UnknownType(name)
    return _all()[name]


@cache
def _validator(name: str) -> Draft202012Validator:
    return Draft202012Validator(dict(_all()[name].schema))


def check_params(kind: JobType, params: Mapping[str, Any]) -> list[str]:
    """What is wrong with `params`, a sentence each; empty when they fit the type."""
    return _misfits(kind, params) or kind.check(params)


def _misfits(kind: JobType, params: Mapping[str, Any]) -> list[str]:
    return [
        f"params{''.join(f'.{part}' for part in error.absolute_path)}: {error.message}."[:SHOWN]
        + (f" It may have: {', '.join(kind.schema['properties'])}." if _is_unknown(error) else "")
        for error in _validator(kind.name).iter_errors(dict(params))
    ]


def _is_unknown(error: ValidationError) -> bool:
    return error.validator == "additionalProperties" and not error.absolute_path
