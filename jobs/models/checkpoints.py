"""The finished blocks of jobs: what another attempt, or another worker, need not compute again."""

from __future__ import annotations

from typing import ClassVar

from django.db import models

from tenants.models import Tenant
from tenants.scoping import TenantQuerySet

PLAN = (-1, -1)
"""Row and column of the plan itself, which is kept as its blocks are."""


class Block(models.Model):
    """A finished block of a job, or the plan of its blocks: bytes in the storage.

    It is written once. Only these rows make the bytes readable, by workers and while the job runs.
    A row without a job is released: its file is deleted, then the row.
    """

    # no cascades: with the row the place of the bytes would be forgotten
    tenant = models.ForeignKey(Tenant, on_delete=models.PROTECT, related_name="+")
    # no index of its own: the constraint's begins with it
    job = models.ForeignKey(
        "jobs.Job", null=True, on_delete=models.SET_NULL, related_name="blocks", db_index=False
    )
    name = models.CharField(max_length=100, help_text="Of the plan: equal plans, equal blocks.")
    row = models.IntegerField()
    col = models.IntegerField()
    attempt = models.PositiveIntegerField(help_text="The one that finished it.")
    path = models.CharField(max_length=500, unique=True, help_text="In the storage.")
    size = models.BigIntegerField(help_text="Bytes.")
    sha256 = models.CharField(max_length=64)
    cells = models.PositiveIntegerField(default=0)
    gaps = models.PositiveIntegerField(default=0, help_text="Rectangles that could not be read.")
    left_l0 = models.FloatField(null=True, help_text="The box round its cells; none: no cells.")
    top_l0 = models.FloatField(null=True)
    right_l0 = models.FloatField(null=True)
    bottom_l0 = models.FloatField(null=True)
    fingerprint = models.TextField(blank=True, help_text="What computed it.")
    finished_at = models.DateTimeField(auto_now_add=True)
    objects = TenantQuerySet.as_manager()

    class Meta:
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["job", "name", "row", "col"], name="block_once")
        ]
        indexes: ClassVar = [
            # clean-up: what was released
            models.Index(
                fields=["finished_at"],
                name="block_released",
                condition=models.Q(job__isnull=True),
            )
        ]

    def __str__(self) -> str:
        return f"{self.name[:12]} {self.row}, {self.col} of attempt {self.attempt}"
