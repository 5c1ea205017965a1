"""Workflow: a submitted DAG of jobs, with a stored copy of its aggregate state."""

from __future__ import annotations

import uuid
from typing import ClassVar

from django.conf import settings
from django.db import models

from tenants.models import Tenant
from tenants.scoping import TenantQuerySet


class Workflow(models.Model):
    """A name and a DAG of jobs. `state` and `progress` are a copy: its jobs are the record."""

    class State(models.TextChoices):
        """What the jobs add up to."""

        PENDING = "PENDING"
        RUNNING = "RUNNING"
        SUCCEEDED = "SUCCEEDED"
        FAILED = "FAILED"
        CANCELLED = "CANCELLED"

    class OnFailure(models.TextChoices):
        """What a failed job does to the later jobs of its branch (R6)."""

        CONTINUE = "continue"
        HALT = "halt"

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    tenant = models.ForeignKey(Tenant, on_delete=models.CASCADE, related_name="+")
    name = models.CharField(max_length=200)
    on_failure = models.CharField(max_length=10, choices=OnFailure, default=OnFailure.CONTINUE)
    created_by = models.ForeignKey(
        settings.AUTH_USER_MODEL, null=True, blank=True, on_delete=models.SET_NULL, related_name="+"
    )
    state = models.CharField(max_length=10, choices=State, default=State.PENDING)
    progress = models.FloatField(default=0.0)
    created_at = models.DateTimeField()
    finished_at = models.DateTimeField(null=True, blank=True)
    refreshed_at = models.DateTimeField(null=True, blank=True)
    objects = TenantQuerySet.as_manager()

    class Meta:
        indexes: ClassVar = [
            # lists: newest first of a tenant
            models.Index(fields=["tenant", "-created_at", "id"], name="workflow_newest")
        ]

    def __str__(self) -> str:
        return self.name

    @property
    def ended(self) -> bool:
        return self.state not in (self.State.PENDING, self.State.RUNNING)


class KeptKey(models.Model):
    """A client's Idempotency-Key and what was made for it; it is dropped after a day (R10)."""

    # no index of its own: the constraint's serves
    tenant = models.ForeignKey(Tenant, on_delete=models.CASCADE, related_name="+", db_index=False)
    key = models.CharField(max_length=255)
    digest = models.CharField(max_length=64, help_text="SHA-256 of what was submitted.")
    made = models.UUIDField(help_text="The id of the workflow or of the job.")
    at = models.DateTimeField()
    objects = TenantQuerySet.as_manager()

    class Meta:
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["tenant", "key"], name="kept_key_once")
        ]
        # retention: the oldest go first
        indexes: ClassVar = [models.Index(fields=["at"], name="kept_key_at")]

    def __str__(self) -> str:
        return self.key
