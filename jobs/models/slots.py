"""What bounds the work: user slots, run slots, queues, leases, workers. The limits rest on these rows."""

from __future__ import annotations

import datetime as dt
from typing import ClassVar

from django.conf import settings
from django.db import models
from django.db.models.functions import Now

from tenants.models import Tenant
from tenants.scoping import TenantQuerySet


class UserSlot(models.Model):
    """The right of one tenant to have jobs promoted. Exactly MAX_ACTIVE_USERS rows (R4)."""

    number = models.PositiveSmallIntegerField(primary_key=True)
    holder = models.OneToOneField(
        Tenant, null=True, blank=True, on_delete=models.PROTECT, related_name="+"
    )
    acquired_at = models.DateTimeField(null=True, blank=True)

    def __str__(self) -> str:
        return f"user slot {self.number}"


class RunSlot(models.Model):
    """One place for a lease. Exactly MAX_WORKERS rows, so leases can not exceed them (R3)."""

    number = models.PositiveSmallIntegerField(primary_key=True)

    def __str__(self) -> str:
        return f"run slot {self.number}"


class Queue(models.Model):
    """A queue that workers serve, its capacity in leases, and whether it is paused."""

    name = models.CharField(max_length=20, primary_key=True)
    capacity = models.PositiveIntegerField(
        null=True, blank=True, help_text="Most leases at once; empty: by settings."
    )
    paused = models.BooleanField(default=False)

    def __str__(self) -> str:
        return self.name


class Maintenance(models.Model):
    """Maintenance mode: while its one row stands, nothing is promoted anywhere."""

    id = models.PositiveSmallIntegerField(primary_key=True, default=1)
    note = models.CharField(max_length=200, blank=True, help_text="Shown to who waits.")
    since = models.DateTimeField(auto_now_add=True)

    class Meta:
        verbose_name_plural = "maintenance"
        constraints: ClassVar = [
            models.CheckConstraint(condition=models.Q(id=1), name="maintenance_one_row")
        ]

    def __str__(self) -> str:
        return self.note or "maintenance"


class WorkerQuerySet(models.QuerySet["Worker"]):
    """Workers by whether they can take a job."""

    def live(self) -> WorkerQuerySet:
        silence = dt.timedelta(seconds=settings.WORKER_TTL_S)  # by the database's clock alone
        return self.filter(seen_at__gte=Now() - silence, draining=False)


class Worker(models.Model):
    """A worker process: it says that it lives, and serves one queue."""

    name = models.CharField(max_length=100, primary_key=True)
    queue = models.CharField(max_length=20)
    host = models.CharField(max_length=255)
    pid = models.PositiveIntegerField()
    device = models.CharField(max_length=100, blank=True)
    warm = models.BooleanField(default=False, help_text="Ready to take jobs.")
    draining = models.BooleanField(default=False, help_text="Takes no new job.")
    gpu_memory_used = models.BigIntegerField(null=True, blank=True, help_text="Bytes.")
    gpu_memory_total = models.BigIntegerField(null=True, blank=True, help_text="Bytes.")
    started_at = models.DateTimeField(auto_now_add=True)
    seen_at = models.DateTimeField()
    objects = WorkerQuerySet.as_manager()

    class Meta:
        indexes: ClassVar = [models.Index(fields=["queue", "seen_at"], name="worker_live")]

    def __str__(self) -> str:
        return self.name


class Lease(models.Model):
    """A worker's hold on a job, from its promotion on; it must be renewed (R8).

    A lease that no worker took yet is the outbox: its message is on the wire, or is pushed again.
    """

    tenant = models.ForeignKey(Tenant, on_delete=models.CASCADE, related_name="+")
    run_slot = models.OneToOneField(RunSlot, on_delete=models.PROTECT, related_name="+")
    job = models.ForeignKey("jobs.Job", on_delete=models.CASCADE, related_name="leases")
    queue = models.CharField(max_length=20)
    member = models.BigIntegerField(default=0)
    attempt = models.PositiveIntegerField()
    shard = models.PositiveSmallIntegerField(default=0)
    worker = models.CharField(max_length=100, blank=True)  # empty until one takes the job
    user_slot = models.ForeignKey(
        UserSlot, to_field="holder", on_delete=models.PROTECT, related_name="+"
    )
    expires_at = models.DateTimeField()
    pushed_at = models.DateTimeField(
        db_default=Now(), help_text="When its message last went to the wire."
    )
    objects = TenantQuerySet.as_manager()

    class Meta:
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["job", "shard"], name="lease_once_a_shard"),
            models.CheckConstraint(
                condition=models.Q(user_slot=models.F("tenant")), name="lease_slot_is_its_tenants"
            ),
        ]

    def __str__(self) -> str:
        return f"{self.worker or 'nobody'} on {self.job_id} until {self.expires_at:%H:%M:%S}"
