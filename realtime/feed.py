"""What the feed reads from the database: who listens, the snapshot, the events since."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Any
from urllib.parse import parse_qs

from django.conf import settings

from jobs.models import Event, Job
from jobs.shapes import job_event, job_state, moment
from tenants import identity
from tenants.identity import Identity
from tenants.models import Tenant
from workflows.models import Workflow
from workflows.shapes import workflow_state

BEARER = "bearer."
WORKFLOWS = 50
JOBS = 1000
EVENTS_A_READ = 500

Scope = Mapping[str, Any]


class UnknownWorkflow(LookupError):
    """The tenant has no workflow with this id."""


def query_of(scope: Scope) -> dict[str, str]:
    """The first value of each query parameter; empty ones too."""
    text = scope.get("query_string", b"").decode("latin-1")
    return {name: values[0] for name, values in parse_qs(text, keep_blank_values=True).items()}


def identify(scope: Scope) -> Identity:
    """Who listens: by token, by trusted user id, by session. Raises NotIdentified."""
    for offered in scope.get("subprotocols") or ():
        if offered.startswith(BEARER):
            return identity.by_token(offered.removeprefix(BEARER))
    user_id = query_of(scope).get("user_id")
    if user_id is not None and settings.TRUST_USER_HEADER:
        return identity.by_user_id(user_id)
    return identity.by_session(scope.get("user"), scope.get("session") or {})


def workflow_of(tenant: Tenant, text: str | None) -> uuid.UUID | None:
    """The workflow that is asked for; None when none is. Raises UnknownWorkflow."""
    if text is None:
        return None
    try:
        wanted = uuid.UUID(text)
    except ValueError as error:
        raise UnknownWorkflow(text) from error
    if tenant._state.adding or not _workflows(tenant).filter(pk=wanted).exists():
        raise UnknownWorkflow(text)
    return wanted


def saved(tenant: Tenant) -> Tenant:
    """The tenant's row, once there is one."""
    return identity.tenant_of(tenant.key) if tenant._state.adding else tenant


def last_seq(tenant: Tenant) -> int:
    """The number of the tenant's last event; 0 before the first."""
    if tenant._state.adding:
        return 0
    return int(Tenant.objects.values_list("next_event", flat=True).get(pk=tenant.pk)) - 1


def still_kept(tenant: Tenant, since: int) -> bool:
    """Whether every event after `since` is still there."""
    last = last_seq(tenant)
    if since >= last:
        return since == last
    return Event.objects.for_tenant(tenant).filter(seq=since + 1).exists()


def snapshot(tenant: Tenant, workflow: uuid.UUID | None) -> tuple[int, dict[str, Any]]:
    """(seq, data): the newest workflows and their live jobs, or one workflow and all its jobs.

    The number is read first: what changes meanwhile is told again, never left out.
    """
    seq = last_seq(tenant)
    if tenant._state.adding:
        return 0, {"workflows": [], "jobs": []}
    rows, jobs = _workflows(tenant), Job.objects.for_tenant(tenant)
    if workflow is not None:
        rows, jobs = rows.filter(pk=workflow), jobs.filter(workflow=workflow).order_by("position")
    else:
        jobs = jobs.live().order_by("-id")
    newest = rows.order_by("-created_at", "id")[:WORKFLOWS]
    loaded = jobs.select_related("branch", "progress_row")[:JOBS]
    return seq, {
        "workflows": [workflow_state(row) for row in newest],
        "jobs": [job_state(job) for job in loaded],
    }


def events_after(
    tenant: Tenant, workflow: uuid.UUID | None, since: int
) -> tuple[int, list[dict[str, Any]]]:
    """(seq reached, messages): the next events after `since`, at most EVENTS_A_READ."""
    last = last_seq(tenant)
    if last <= since:
        return since, []
    rows = Event.objects.for_tenant(tenant).filter(seq__gt=since, seq__lte=last)
    if workflow is not None:
        rows = rows.filter(workflow=workflow)
    found = list(rows.select_related("job__branch").order_by("seq")[:EVENTS_A_READ])
    reached = found[-1].seq if len(found) == EVENTS_A_READ else last
    return reached, [_message(event) for event in found if event.data or event.job]


def _message(event: Event) -> dict[str, Any]:
    data = job_event(event.job, event) if event.job else event.data
    return {"type": event.kind, "seq": event.seq, "at": moment(event.at), "data": data}


def _workflows(tenant: Tenant) -> Any:
    return Workflow.objects.for_tenant(tenant)
