"""The stored bytes behind artifacts, one row for each content of a tenant."""

from __future__ import annotations

from typing import ClassVar

from django.db import models
from django.db.models import Q

from tenants.models import Tenant
from tenants.scoping import TenantQuerySet


class Blob(models.Model):
    """Bytes in the storage that the artifacts of one tenant share; they go with the last.

    Live → loose (an artifact of it was deleted, perhaps the last) → doomed (none was left, and
    none may come back) → the file is deleted → the row is deleted.
    """

    # no cascade: with the row the place of the bytes would be forgotten
    tenant = models.ForeignKey(Tenant, on_delete=models.PROTECT, related_name="+")
    sha256 = models.CharField(max_length=64)
    path = models.CharField(max_length=500, unique=True, help_text="In the storage.")
    size = models.BigIntegerField(help_text="Bytes.")
    created_at = models.DateTimeField(auto_now_add=True)
    loose_at = models.DateTimeField(null=True, blank=True)
    doomed_at = models.DateTimeField(null=True, blank=True)
    objects = TenantQuerySet.as_manager()

    class Meta:
        constraints: ClassVar = [
            models.UniqueConstraint(
                fields=["tenant", "sha256"],
                condition=Q(doomed_at__isnull=True),
                name="blob_once",
            )
        ]
        indexes: ClassVar = [
            # clean-up: what may have lost its last artifact, and what has to go
            models.Index(
                fields=["loose_at"],
                name="blob_loose",
                condition=Q(loose_at__isnull=False, doomed_at__isnull=True),
            ),
            models.Index(
                fields=["doomed_at"], name="blob_doomed", condition=Q(doomed_at__isnull=False)
            ),
        ]

    def __str__(self) -> str:
        return f"{self.sha256[:12]} ({self.size} bytes)"
