"""What happened to a tenant's jobs and workflows, in commit order: the live feed reads these rows."""

from __future__ import annotations

from typing import ClassVar

from django.db import models

from jobs.models.jobs import Job
from tenants.models import Tenant
from tenants.scoping import TenantQuerySet


class Event(models.Model):
    """A state event, written in the transaction of the move it tells.

    A job's event keeps what the move changed; what never changes is read from the job. It refers
    to rows without constraints: it is a log, and each would cost every move.
    """

    tenant = models.ForeignKey(
        Tenant, on_delete=models.CASCADE, related_name="+", db_constraint=False, db_index=False
    )
    seq = models.BigIntegerField(help_text="Rises per tenant in commit order.")
    kind = models.CharField(max_length=10)  # job, workflow
    workflow = models.ForeignKey(
        "workflows.Workflow",
        on_delete=models.CASCADE,
        related_name="+",
        db_constraint=False,
        db_index=False,
    )
    at = models.DateTimeField()
    data = models.JSONField(null=True)  # of a workflow's event: its shape
    job = models.ForeignKey(
        Job,
        null=True,
        on_delete=models.CASCADE,
        related_name="+",
        db_constraint=False,
        db_index=False,
    )
    state = models.SmallIntegerField(null=True)
    reason = models.CharField(max_length=20, default="")
    error = models.TextField(default="")
    attempt = models.PositiveIntegerField(default=0)
    phase = models.CharField(max_length=20, default="")
    progress = models.FloatField(default=0.0)
    tiles_done = models.PositiveIntegerField(default=0)
    tiles_total = models.PositiveIntegerField(default=0)
    queued_at = models.DateTimeField(null=True)
    started_at = models.DateTimeField(null=True)
    finished_at = models.DateTimeField(null=True)
    objects = TenantQuerySet.as_manager()

    class Meta:
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["tenant", "seq"], name="event_seq_once")
        ]
        # retention: the oldest go first; refreshing workflows: the newest
        indexes: ClassVar = [models.Index(fields=["at"], name="event_at")]

    def __str__(self) -> str:
        return f"{self.kind} {self.seq}"
