"""The scheduler process: promotes jobs until told to stop."""

from __future__ import annotations

import logging
import signal
import time
from threading import Event
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandParser
from django.db import DatabaseError, close_old_connections

from jobs.scheduling import slots
from jobs.scheduling.sweep import sweep, tidy
from jobs.scheduling.wake import wait

TIDY_EVERY_S = 300.0
log = logging.getLogger(__name__)


class Command(BaseCommand):
    """Any number of these may run; one decides at a time."""

    requires_system_checks = ()  # checking addresses would import the whole web
    help = "Promote waiting jobs to the worker queues until told to stop."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--once", action="store_true", help="One round, then end.")
        parser.add_argument("--interval", type=float, default=settings.SWEEP_S)

    def handle(self, *args: Any, once: bool, interval: float, **options: Any) -> None:
        stop = Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: stop.set())
        slots.seed()
        if once:
            sweep()
            return
        log.info(
            "scheduler started: %s workers, %s active users at most",
            settings.MAX_WORKERS,
            settings.MAX_ACTIVE_USERS,
        )
        self._loop(stop, interval)

    def _loop(self, stop: Event, interval: float) -> None:
        tidied = time.monotonic()
        while not stop.is_set():
            close_old_connections()
            try:
                sweep()
                if time.monotonic() - tidied > TIDY_EVERY_S:
                    tidied = time.monotonic()
                    tidy()
            except DatabaseError as error:
                log.error("the database refused this round, trying again: %s", error)
                stop.wait(interval)
            wait(interval)
