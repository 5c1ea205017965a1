"""The workflows app: what tenants submit."""

from __future__ import annotations

from django.apps import AppConfig


class WorkflowsConfig(AppConfig):
    """Owns Workflow and the one way in."""

    name = "workflows"

    def ready(self) -> None:
        from workflows import idempotency, progress

        progress.connect()
        idempotency.connect()
