"""The scheduler process: promotes jobs until told to stop."""

from __future__ import annotations

import functools
import gc
import logging
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandParser
from django.db import DatabaseError, InterfaceError, close_old_connections, connection

from jobs import blobs, blocks, sql
from jobs.running.persist import reconnect
from jobs.scheduling import slots
from jobs.scheduling.sweep import round_of_work, sweep, tidy
from jobs.scheduling.wake import Alarm

STOP_SIGNALS = {signal.SIGTERM, signal.SIGINT}
TIDY_EVERY_S = 300.0
COLLECT_EVERY_S = 60.0
COLLECTED_AT_ONCE = 100
COLLECT_S = 20.0  # of one kind, before the others get their turn
MOST_REST_S = 0.01
log = logging.getLogger(__name__)


class Command(BaseCommand):
    """Any number of these may run; one decides at a time."""

    requires_system_checks = ()  # checking addresses would import the whole web
    help = "Promote waiting jobs to the worker queues until told to stop."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--once", action="store_true", help="One sweep, then end.")
        parser.add_argument("--interval", type=float, default=settings.SWEEP_S)

    def handle(self, *args: Any, once: bool, interval: float, **options: Any) -> None:
        slots.seed()
        if once:
            sweep()
            return
        Scheduler(interval).work()


class Scheduler:
    """Rounds at every wake-up, a sweep every `interval` seconds, until a signal."""

    def __init__(self, interval: float) -> None:
        self.interval = interval
        self.alarm = Alarm()
        self.stopping = False
        self._sweep_due = 0.0
        self._tidy_due = time.monotonic() + TIDY_EVERY_S

    def work(self) -> None:
        # taken by a thread of its own: a handler could ring while this thread holds the bell
        signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
        threading.Thread(target=self._await_stop, name="stop", daemon=True).start()
        threading.Thread(target=self._collect, name="collect", daemon=True).start()
        self.alarm.start()
        gc.freeze()  # what is loaded now stays: no collection need look at it again
        log.info(
            "scheduler started: %s workers, %s active users at most",
            settings.MAX_WORKERS,
            settings.MAX_ACTIVE_USERS,
        )
        while not self.stopping:
            began_at = time.monotonic()
            try:
                self._round()
            except (DatabaseError, InterfaceError) as error:
                log.error("the database refused this round, trying again: %s", error)
                reconnect()
                time.sleep(min(self.interval, 1.0))
            if not sql.is_postgres():
                # as long as the round took: nobody could write meanwhile, and now they do
                time.sleep(min(time.monotonic() - began_at, MOST_REST_S))
            self.alarm.wait(max(0.0, self._sweep_due - time.monotonic()))
        self.alarm.close()

    def _round(self) -> None:
        now = time.monotonic()
        if now < self._sweep_due:
            round_of_work()
            return
        self._sweep_due = now + self.interval
        close_old_connections()
        sweep()
        if now >= self._tidy_due:
            self._tidy_due = now + TIDY_EVERY_S
            tidy()

    def _collect(self) -> None:
        """Remove stored bytes that nobody needs, away from the passes: a storage may be slow."""
        while not self.stopping:
            time.sleep(COLLECT_EVERY_S)
            blocks_too = (blocks.forget_old, functools.partial(collect, blocks.collect))
            for each in (functools.partial(collect, blobs.collect), *blocks_too):
                try:
                    each()
                except Exception:  # bytes that stay a while longer are no reason to stop scheduling
                    log.exception("stored bytes that nobody needs are left for the next time")
                finally:
                    connection.close()

    def _await_stop(self) -> None:
        signal.sigwait(STOP_SIGNALS)
        self.stopping = True
        self.alarm.ring()


def collect(remove: Callable[[int], int]) -> None:
    """Have `remove` take away so many at once until less are left, or it took long enough."""
    give_up_at = time.monotonic() + COLLECT_S
    while remove(COLLECTED_AT_ONCE) == COLLECTED_AT_ONCE and time.monotonic() < give_up_at:
        continue
