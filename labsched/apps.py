"""The project's own app: system checks, health, metrics, commands."""

from __future__ import annotations

from django.apps import AppConfig


class LabschedConfig(AppConfig):
    """Imports every other app; nothing imports it."""

    name = "labsched"

    def ready(self) -> None:
        from labsched import checks, metrics

        checks.register_all()
        metrics.register_collector()
