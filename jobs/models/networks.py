"""InstanSeg models that operators registered; every tenant may name them in a job."""

from __future__ import annotations

from typing import ClassVar

from django.conf import settings
from django.core.validators import RegexValidator
from django.db import models

NAME = r"[a-z0-9][a-z0-9_-]{0,59}"
VERSION = r"[A-Za-z0-9][A-Za-z0-9._-]{0,29}"


class SegmentationModel(models.Model):
    """A TorchScript file in the storage, what it said of itself, and how it was checked.

    Its file never changes: another file is another version. Rows stay, because results name them.
    """

    name = models.CharField(
        max_length=60,
        validators=[RegexValidator(rf"^{NAME}\Z", "Use a-z, 0-9, _ and -, such as our_nuclei.")],
        help_text="What jobs say: our_nuclei, or our_nuclei:2 for one version.",
    )
    version = models.CharField(
        max_length=30,
        default="1",
        validators=[RegexValidator(rf"^{VERSION}\Z", "Use letters, digits, dots, _ and -.")],
    )
    path = models.CharField(max_length=300, help_text="In the storage.")
    sha256 = models.CharField(max_length=64)
    size = models.BigIntegerField(help_text="Bytes.")
    outputs = models.JSONField(default=list, help_text="nuclei, cells.")
    pixel_size = models.FloatField(help_text="µm per pixel that it was trained at.")
    channels = models.PositiveSmallIntegerField(
        null=True, blank=True, help_text="That it takes; empty: any number."
    )
    parity = models.TextField(
        help_text="What came of comparing it, run as here, with its own code, when it was added."
    )
    enabled = models.BooleanField(default=True)
    added_by = models.ForeignKey(
        settings.AUTH_USER_MODEL, on_delete=models.SET_NULL, null=True, blank=True, related_name="+"
    )
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["name", "version"], name="model_version_once")
        ]

    def __str__(self) -> str:
        return f"{self.name}:{self.version}"
