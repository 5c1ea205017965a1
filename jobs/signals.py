"""Signals after the fact: they nudge. Losing every one of them changes nothing but latency."""

from __future__ import annotations

from django.dispatch import Signal

# after a commit that moved jobs; arguments: tenant_id, workflow_ids (a set of UUID)
jobs_moved = Signal()
# a throttled tick of a running job; arguments: tenant_id, workflow_id, data (JSON)
job_progressed = Signal()
# after each pass of a scheduler
swept = Signal()
