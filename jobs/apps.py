"""The jobs app: jobs and everything that follows from them."""

from __future__ import annotations

from django.apps import AppConfig


class JobsConfig(AppConfig):
    """Owns Job, Edge, Branch, Slide, Artifact and the rows that scheduling needs."""

    name = "jobs"

    def ready(self) -> None:
        from jobs import blobs, wiring

        wiring.connect()
        blobs.connect()
