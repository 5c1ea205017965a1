"""Reading /metrics, and the jobs of one workflow."""

from __future__ import annotations

import datetime as dt

from django.test import Client
from prometheus_client.parser import text_string_to_metric_families

from jobs.models import Job
from jobs.models.jobs import JobQuerySet
from workflows.models import Workflow

LONG_AGO = dt.timedelta(seconds=30)


def samples() -> dict[str, float]:
    """Each sample of /metrics as its name and labels read."""
    text = Client().get("/metrics").content.decode()
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = ",".join(f"{name}={sample.labels[name]}" for name in sorted(sample.labels))
            found[f"{sample.name}{{{labels}}}" if labels else sample.name] = sample.value
    return found


def of(flow: Workflow) -> JobQuerySet:
    """The jobs of a workflow."""
    found: JobQuerySet = Job.objects.for_tenant(flow.tenant).filter(workflow=flow)
    return found
