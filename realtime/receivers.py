"""From signals to nudges. Losing every one of them costs the feed latency, never events."""

from __future__ import annotations

import time
import uuid
from typing import Any

from django.db import transaction
from django.db.models.signals import post_delete

from jobs.shapes import merged_ticks
from jobs.signals import cells_found, job_progressed, jobs_moved, swept
from realtime import courier
from realtime.groups import EVERYONE, group_of
from tenants.models import Membership, Tenant
from workflows import dashboard

QUEUE_EVERY_S = 1.0
REPEAT_EVERY_S = 10.0

_last_queue: dict[str, Any] = {"at": float("-inf"), "data": None}


def connect() -> None:
    """Listen."""
    jobs_moved.connect(_moved, dispatch_uid="realtime.moved")
    job_progressed.connect(_progressed, dispatch_uid="realtime.progressed")
    cells_found.connect(_found, dispatch_uid="realtime.found")
    swept.connect(_swept, dispatch_uid="realtime.swept")
    post_delete.connect(_left, sender=Membership, dispatch_uid="realtime.left")


def _moved(tenant_id: int, **_: object) -> None:
    _post(tenant_id, {"type": "feed.moved"})


def _progressed(tenant_id: int, workflow_id: uuid.UUID, data: dict[str, Any], **_: object) -> None:
    message = {"type": "feed.tick", "workflow": str(workflow_id), "data": data}
    _post(tenant_id, message, about=str(data.get("job") or data.get("id")))


def _found(tenant_id: int, workflow_id: uuid.UUID, data: dict[str, Any], **_: object) -> None:
    message = {"type": "feed.cells", "workflow": str(workflow_id), "data": data}
    _post(tenant_id, message, about=data["job"], merge=_both)


def _both(before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    """One message for two about the cells of one job: no box may be left out."""
    return {**after, "data": merged_ticks(before["data"], after["data"])}


def _swept(**_: object) -> None:
    """Tell everyone how busy the lab is, when that changed."""
    now = time.monotonic()
    if now - _last_queue["at"] < QUEUE_EVERY_S:
        return
    data = {"active_users": dashboard.active_users(), "workers": dashboard.workers()}
    if data == _last_queue["data"] and now - _last_queue["at"] < REPEAT_EVERY_S:
        return
    _last_queue.update(at=now, data=data)
    courier.post(EVERYONE, {"type": "feed.queue", "data": data})


def _left(instance: Membership, **_: object) -> None:
    """A person lost a tenant: open feeds ask again who listens."""
    tenant_id = instance.tenant_id
    transaction.on_commit(lambda: _post(tenant_id, {"type": "feed.recheck"}))


def _post(
    tenant_id: int,
    message: dict[str, Any],
    *,
    about: str = "",
    merge: courier.Merge | None = None,
) -> None:
    try:
        group = group_of(tenant_id)
    except Tenant.DoesNotExist:
        return
    courier.post(group, message, about=about, merge=merge)
