"""What happened to a tenant's jobs and workflows, in commit order: the live feed reads these rows."""

from __future__ import annotations

from typing import ClassVar

from django.db import models

from tenants.models import Tenant
from tenants.scoping import TenantQuerySet


class Event(models.Model):
    """A state event, written in the transaction of the move it tells."""

    tenant = models.ForeignKey(Tenant, on_delete=models.CASCADE, related_name="+")
    seq = models.BigIntegerField(help_text="Rises per tenant in commit order.")
    kind = models.CharField(max_length=10)  # job, workflow
    workflow = models.ForeignKey(
        "workflows.Workflow", on_delete=models.CASCADE, related_name="+", db_index=True
    )
    at = models.DateTimeField()
    data = models.JSONField()
    objects = TenantQuerySet.as_manager()

    class Meta:
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["tenant", "seq"], name="event_seq_once")
        ]
        # retention: the oldest go first
        indexes: ClassVar = [models.Index(fields=["at"], name="event_at")]

    def __str__(self) -> str:
        return f"{self.kind} {self.seq}"
