"""Workflows for operators."""

from __future__ import annotations

from typing import Any

from django.contrib import admin, messages
from django.http import HttpRequest

from tenants.readonly import ReadOnlyAdmin
from workflows import submission
from workflows.models import KeptKey, Workflow


@admin.register(Workflow)
class WorkflowAdmin(ReadOnlyAdmin):
    """What was submitted and how far it is."""

    list_display = ["name", "tenant", "state", "percent", "created_at", "finished_at"]
    list_select_related = ["tenant"]
    list_filter = ["state"]
    search_fields = ["name", "tenant__key", "id"]
    ordering = ["-created_at"]
    actions = ["cancel", "retry"]

    @admin.display(description="progress")
    def percent(self, row: Workflow) -> str:
        return f"{row.progress:.0%}"

    @admin.action(description="Cancel: all their jobs that are not over")
    def cancel(self, request: HttpRequest, rows: Any) -> None:
        self._each(request, rows, submission.cancel, "cancelled")

    @admin.action(description="Retry what failed")
    def retry(self, request: HttpRequest, rows: Any) -> None:
        self._each(request, rows, submission.retry, "retried")

    def _each(self, request: HttpRequest, rows: Any, call: Any, done: str) -> None:
        for workflow in rows:
            try:
                call(workflow)
            except submission.Conflict as error:
                messages.warning(request, str(error))
            else:
                self.log_change(request, workflow, done)
                messages.success(request, f"{workflow.name}: {done}.")


@admin.register(KeptKey)
class KeptKeyAdmin(ReadOnlyAdmin):
    """Idempotency keys of the last day."""

    list_display = ["key", "tenant", "made", "at"]
    list_select_related = ["tenant"]
