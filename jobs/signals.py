"""Signals after the fact: they nudge. Losing every one of them changes nothing but latency."""

from __future__ import annotations

from django.dispatch import Signal

# after a commit that moved jobs; arguments: tenant_id, look_at (UUIDs of workflows that may have
# begun, ended or been reopened), work_may_start
jobs_moved = Signal()
# a throttled tick of a running job; arguments: tenant_id, workflow_id, data (JSON)
job_progressed = Signal()
# a throttled tick of cells that became readable while a job runs; arguments as above
cells_found = Signal()
# after each sweep of a scheduler, at least every second or so
swept = Signal()
# now and then, from a scheduler: drop what is past its retention, learn from what ended
tidied = Signal()
