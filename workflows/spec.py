"""What a client submits, checked and turned into plain values. Pure: no database, no files."""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from workflows.dag import BadGraph, topological_order

KEY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
PRIORITIES = (-100, 100)
MAX_JOBS = 20_000
FORBIDDEN = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")  # no database or page shows these well

CheckParams = Callable[[str, Mapping[str, Any]], "TypeFacts"]


class SpecError(ValueError):
    """The submission is refused. `errors` maps a field to its sentences, nested like the body."""

    def __init__(self, errors: dict[str, Any]) -> None:
        super().__init__(str(errors))
        self.errors = errors


@dataclass(frozen=True)
class TypeFacts:
    """What the registry says of a job type with these params."""

    known: bool
    needs_slide: bool = False
    problems: tuple[str, ...] = ()
    choices: tuple[str, ...] = ()


@dataclass(frozen=True)
class JobSpec:
    """One job of a submission."""

    key: str
    job_type: str
    branch: str | None
    image_path: str | None
    slide_id: uuid.UUID | None
    depends_on: tuple[str, ...]
    params: Mapping[str, Any]
    priority: int


@dataclass(frozen=True)
class WorkflowSpec:
    """A submission; `order` are the positions of its jobs in topological order."""

    name: str
    on_failure: str
    jobs: tuple[JobSpec, ...]
    order: tuple[int, ...]


@dataclass
class _Fields:
    """Reads a JSON object field by field and gathers what is wrong."""

    body: Mapping[str, Any]
    errors: dict[str, list[str]] = field(default_factory=dict)

    def say(self, name: str, sentence: str) -> None:
        self.errors.setdefault(name, []).append(sentence)

    def text(self, name: str, *, most: int, required: bool = False) -> str | None:
        value = self.body.get(name)
        if value is None:
            if required:
                self.say(name, "This field is required.")
            return None
        if not isinstance(value, str):
            self.say(name, "Give a text.")
        elif not 1 <= len(value) <= most or not value.strip():
            self.say(name, f"Give 1 to {most} characters.")
        elif FORBIDDEN.search(value):
            self.say(name, "Control characters are not allowed.")
        else:
            return value
        return None

    def integer(self, name: str, default: int, low: int, high: int) -> int:
        value = self.body.get(name, default)
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            self.say(name, f"Give a whole number from {low} to {high}.")
            return default
        return value

    def boolean(self, name: str, default: bool) -> bool:
        value = self.body.get(name, default)
        if not isinstance(value, bool):
            self.say(name, "Give true or false.")
            return default
        return value

    def choice(self, name: str, choices: tuple[str, ...]) -> str:
        value = self.body.get(name, choices[0])
        if value not in choices:
            self.say(name, f"Give one of {', '.join(choices)}.")
            return choices[0]
        return str(value)

    def key(self, name: str) -> str | None:
        value = self.body.get(name)
        if value is None:
            return None
        if isinstance(value, str) and KEY.fullmatch(value):
            return value
        self.say(
            name,
            "Give 1 to 100 letters, digits, dots, underscores or dashes, "
            "starting with a letter or digit.",
        )
        return None

    def uuid(self, name: str) -> uuid.UUID | None:
        value = self.body.get(name)
        if value is None:
            return None
        try:
            return uuid.UUID(str(value))
        except ValueError:
            self.say(name, "This is not an id of a slide.")
            return None

    def keys(self, name: str) -> tuple[str, ...]:
        value = self.body.get(name)
        if value is None:
            return ()
        if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
            self.say(name, "Give a list of job ids.")
            return ()
        return tuple(value)

    def mapping(self, name: str) -> Mapping[str, Any]:
        value = self.body.get(name)
        if value is None:
            return {}
        if not isinstance(value, Mapping):
            self.say(name, "Give an object.")
            return {}
        return value


def parse_workflow(body: object, check: CheckParams) -> WorkflowSpec:
    """The submission in `body`. Raises SpecError with every fault found."""
    fields = _Fields(_object(body))
    name = fields.text("name", most=200, required=True)
    on_failure = fields.choice("on_failure", ("continue", "halt"))
    reuse = fields.boolean("reuse", True)
    listed = fields.body.get("jobs")
    if listed is not None and not isinstance(listed, list):
        fields.say("jobs", "Give a list of jobs.")
        listed = []
    if listed and len(listed) > MAX_JOBS:
        raise SpecError(
            {
                "jobs": [
                    f"{len(listed)} jobs are too many: at most {MAX_JOBS} fit in one submission."
                ]
            }
        )
    jobs, faults = _parse_jobs(listed or [], check, reuse)
    errors: dict[str, Any] = dict(fields.errors)
    if faults:
        errors["jobs"] = faults
    if errors:
        raise SpecError(errors)
    return WorkflowSpec(name or "", on_failure, jobs, _order(jobs))


def _parse_jobs(
    listed: list[Any], check: CheckParams, reuse: bool
) -> tuple[tuple[JobSpec, ...], dict[str, Any]]:
    jobs: list[JobSpec] = []
    faults: dict[str, Any] = {}
    for place, entry in enumerate(listed):
        try:
            jobs.append(parse_job(entry, check, key_required=True, reuse=reuse))
        except SpecError as error:
            faults[str(place)] = error.errors
            if len(faults) >= 50:
                break
    return tuple(jobs), faults


def _order(jobs: tuple[JobSpec, ...]) -> tuple[int, ...]:
    try:
        upstream = {job.key: job.depends_on for job in jobs if job.depends_on}
        return tuple(topological_order([job.key for job in jobs], upstream))
    except BadGraph as error:
        raise SpecError({"jobs": [str(error)]}) from error


def parse_job(
    body: object, check: CheckParams, *, key_required: bool = False, reuse: bool = True
) -> JobSpec:
    """One job in `body`. Raises SpecError. A missing job_id is made up unless required.

    reuse  what the submission says where the job says nothing; kept in the parameters
    """
    fields = _Fields(_object(body))
    key = fields.key("job_id")
    if key is None and "job_id" not in fields.errors and key_required:
        fields.say("job_id", "This field is required.")
    branch = fields.text("branch" if "branch" in fields.body else "branch_id", most=100)
    image_path = fields.text("image_path", most=1000)
    slide_id = fields.uuid("slide_id")
    params = fields.mapping("params")
    job_type = _job_type(fields, params, check, has_slide=bool(image_path or slide_id))
    spec = JobSpec(
        key=key or f"job-{uuid.uuid4().hex[:12]}",
        job_type=job_type,
        branch=branch,
        image_path=image_path,
        slide_id=slide_id,
        depends_on=fields.keys("depends_on"),
        params=params if fields.boolean("reuse", reuse) else {"reuse": False, **params},
        priority=fields.integer("priority", 0, *PRIORITIES),
    )
    if image_path and slide_id:
        fields.say("slide_id", "Give image_path or slide_id, not both.")
    if fields.errors:
        raise SpecError(dict(fields.errors))
    return spec


def _job_type(
    fields: _Fields, params: Mapping[str, Any], check: CheckParams, *, has_slide: bool
) -> str:
    name = fields.text("job_type", most=50, required=True)
    if name is None:
        return ""
    facts = check(name, params)
    if not facts.known:
        fields.say("job_type", f"{name!r} is not a job type: give one of {_list(facts.choices)}.")
        return name
    for problem in facts.problems:
        fields.say("params", problem)
    asked = {"image_path", "slide_id"} & set(fields.errors)
    if facts.needs_slide and not has_slide and not asked:
        fields.say("image_path", f"A {name} job needs a slide: give image_path or slide_id.")
    return name


def _list(names: tuple[str, ...]) -> str:
    return ", ".join(names)


def _object(body: object) -> Mapping[str, Any]:
    if not isinstance(body, Mapping):
        raise SpecError({"detail": "Give a JSON object."})
    return body
