"""Slides that tenants may read, and the artifacts their jobs left."""

from __future__ import annotations

import uuid
from typing import ClassVar

from django.db import models

from tenants.models import Tenant
from tenants.scoping import TenantQuerySet


class Slide(models.Model):
    """A slide file under a root of a tenant; facts are filled when it was first opened."""

    uuid = models.UUIDField(default=uuid.uuid4, unique=True)
    tenant = models.ForeignKey(Tenant, on_delete=models.CASCADE, related_name="+")
    root = models.CharField(max_length=100, default="shared")
    path = models.CharField(max_length=1000, help_text="Relative to its root.")
    size = models.BigIntegerField(default=0, help_text="Bytes.")
    vendor = models.CharField(max_length=50, blank=True)
    width_l0 = models.PositiveIntegerField(null=True, blank=True)
    height_l0 = models.PositiveIntegerField(null=True, blank=True)
    levels = models.PositiveSmallIntegerField(null=True, blank=True)
    mpp_x = models.FloatField(null=True, blank=True)
    mpp_y = models.FloatField(null=True, blank=True)
    mpp_source = models.CharField(max_length=20, blank=True)
    error = models.TextField(blank=True, help_text="Why it can not be opened, in a sentence.")
    modified_at = models.DateTimeField(null=True, blank=True, help_text="Of the file, when read.")
    sha256 = models.CharField(max_length=64, blank=True, help_text="Of all its files.")
    sha256_stamp = models.CharField(
        max_length=64, blank=True, help_text="Names, sizes, times and inodes when it was hashed."
    )
    created_at = models.DateTimeField(auto_now_add=True)
    objects = TenantQuerySet.as_manager()

    class Meta:
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["tenant", "root", "path"], name="slide_once")
        ]

    def __str__(self) -> str:
        return self.path


class Artifact(models.Model):
    """A stored result file. Only these rows make a file readable.

    Its bytes are those of the tenant's Blob of this sha256, which other artifacts may share.
    """

    tenant = models.ForeignKey(Tenant, on_delete=models.CASCADE, related_name="+")
    job = models.ForeignKey("jobs.Job", on_delete=models.CASCADE, related_name="artifacts")
    attempt = models.PositiveIntegerField()
    name = models.CharField(max_length=255, help_text="The name at download.")
    kind = models.CharField(max_length=30)
    main = models.BooleanField(default=False, help_text="What /result answers.")
    path = models.CharField(max_length=500, help_text="In the storage.")
    size = models.BigIntegerField()
    sha256 = models.CharField(max_length=64)
    created_at = models.DateTimeField(auto_now_add=True)
    objects = TenantQuerySet.as_manager()

    class Meta:
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["job", "name"], name="artifact_name_once")
        ]
        indexes: ClassVar = [
            # clean-up: is any artifact left of these bytes?
            models.Index(fields=["sha256"], name="artifact_of_blob")
        ]

    def __str__(self) -> str:
        return self.name
