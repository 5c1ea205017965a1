"""Sends nudges and ticks to the channel layer from a thread of its own.

Callers are web requests, schedulers and workers in the middle of their work: none of them waits for
Redis, and none fails with it. What is not sent yet is replaced by newer news of the same thing.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
from collections.abc import Callable
from typing import Any

from channels.layers import get_channel_layer

SEND_TIMEOUT_S = 2.0
MOST_WAITING = 10_000
COMPLAIN_EVERY_S = 30.0
GAP_S = 0.15  # between two deliveries: a busy process sends the latest news, not each

Message = dict[str, Any]
Merge = Callable[[Message, Message], Message]
log = logging.getLogger(__name__)


class Courier:
    """One thread with one event loop, started by the first message."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.waiting: dict[tuple[str, str], Message] = {}
        self.loop: asyncio.AbstractEventLoop | None = None
        self.news = asyncio.Event()
        self.asleep = False  # the thread waits for news; else it looks again by itself
        self.complained = float("-inf")

    def post(
        self, group: str, message: Message, *, about: str = "", merge: Merge | None = None
    ) -> None:
        """Send `message` soon; it replaces an unsent one of the same group about the same thing.

        merge  makes one message of that one and this one, where the older one must not be lost
        """
        key = group, f"{message['type']} {about}"
        with self.lock:
            if len(self.waiting) >= MOST_WAITING:
                self.waiting.clear()  # listeners read the rows again by themselves
            unsent = self.waiting.get(key)
            self.waiting[key] = merge(unsent, message) if merge and unsent else message
            if self.loop is None:
                self._start()
            elif self.asleep and not self.loop.is_closed():
                self.asleep = False
                self.loop.call_soon_threadsafe(self.news.set)

    def _start(self) -> None:
        self.loop = asyncio.new_event_loop()
        run = self.loop.run_until_complete
        threading.Thread(target=lambda: run(self._deliver()), daemon=True).start()

    async def _deliver(self) -> None:
        while True:
            self.news.clear()
            with self.lock:
                batch, self.waiting = self.waiting, {}
                self.asleep = not batch
            for (group, _), message in batch.items():
                await self._send(group, message)
            if batch:
                await asyncio.sleep(GAP_S)
            else:
                await self.news.wait()

    async def _send(self, group: str, message: Message) -> None:
        layer = get_channel_layer()
        if layer is None:
            return
        try:
            await asyncio.wait_for(layer.group_send(group, message), SEND_TIMEOUT_S)
        except Exception as error:
            self._complain(error)

    def _complain(self, error: Exception) -> None:
        if time.monotonic() - self.complained > COMPLAIN_EVERY_S:
            self.complained = time.monotonic()
            log.warning("live news is not sent, listeners read the rows instead: %r", error)


_courier = Courier()


def post(group: str, message: Message, *, about: str = "", merge: Merge | None = None) -> None:
    """Send `message` to `group` soon. Never waits, never raises."""
    _courier.post(group, message, about=about, merge=merge)


def _forget() -> None:
    """A forked child has no copy of the thread: it starts its own."""
    global _courier
    _courier = Courier()


os.register_at_fork(after_in_child=_forget)
