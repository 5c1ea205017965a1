"""What finished jobs taught, and what was counted: it outlives their rows."""

from __future__ import annotations

from typing import ClassVar

from django.db import models


class Duration(models.Model):
    """The learnt seconds of one phase a unit, as the moving mean and variance of their logarithm.

    It is a statistic over all tenants and names none of them. The phase "" is the job as a whole.
    Jobs that count tiles teach both units; the one that varies less is what the phase grows with.
    """

    job_type = models.CharField(max_length=50)
    model = models.CharField(max_length=100, blank=True)
    device = models.CharField(max_length=100, blank=True)
    phase = models.CharField(max_length=20, blank=True)
    per_tile = models.BooleanField(help_text="The unit is a tile, else a job.")
    jobs = models.PositiveIntegerField(help_text="How many jobs it was learnt from.")
    log_mean = models.FloatField()
    log_variance = models.FloatField()
    learnt_at = models.DateTimeField(auto_now=True)

    class Meta:
        constraints: ClassVar = [
            models.UniqueConstraint(
                fields=["job_type", "model", "device", "phase", "per_tile"], name="duration_once"
            )
        ]

    def __str__(self) -> str:
        return f"{self.job_type} {self.phase or 'whole'} on {self.device or 'any device'}"


class LearntUntil(models.Model):
    """How far the history was read: one row, which is also the lock of who reads it."""

    id = models.PositiveSmallIntegerField(primary_key=True, default=1)
    at = models.DateTimeField(help_text="Jobs that ended until then were looked at.")

    class Meta:
        constraints: ClassVar = [
            models.CheckConstraint(condition=models.Q(id=1), name="learnt_until_one_row")
        ]

    def __str__(self) -> str:
        return f"until {self.at:%Y-%m-%d %H:%M:%S}"


class Tally(models.Model):
    """What schedulers counted for /metrics: one row, so that a scrape reads one."""

    id = models.PositiveSmallIntegerField(primary_key=True, default=1)
    ended_until = models.DateTimeField(help_text="Jobs that ended until then are counted.")
    counts = models.JSONField(default=dict)

    class Meta:
        verbose_name_plural = "tally"
        constraints: ClassVar = [
            models.CheckConstraint(condition=models.Q(id=1), name="tally_one_row")
        ]

    def __str__(self) -> str:
        return f"until {self.ended_until:%Y-%m-%d %H:%M:%S}"
