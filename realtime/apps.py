"""The realtime app: the live feed over websockets."""

from __future__ import annotations

from django.apps import AppConfig


class RealtimeConfig(AppConfig):
    """Nudged by signals, reads Event rows, pushes to consumers."""

    name = "realtime"

    def ready(self) -> None:
        from realtime import receivers

        receivers.connect()
