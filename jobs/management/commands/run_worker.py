"""`manage.py run_worker --queue cpu|gpu`: one worker, which runs one job at a time."""

from __future__ import annotations

import os
import socket

from django.conf import settings
from django.core.management.base import BaseCommand, CommandParser


class Command(BaseCommand):
    """Takes jobs of one queue until SIGTERM or Ctrl-C."""

    # the check of the URLs would load the whole web into each worker; the web process runs it
    requires_system_checks = ()
    help = "Run the jobs of one queue, one at a time, until told to stop."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--queue", required=True, choices=settings.QUEUES)
        parser.add_argument(
            "--name", default="", help="How this worker is called; by default queue, host and pid."
        )

    def handle(self, *, queue: str, name: str, **options: object) -> None:
        from jobs.running.worker import LabWorker

        host = socket.gethostname()[:60]
        LabWorker(queue, name[:100] or f"{queue}-{host}-{os.getpid()}").work()
