"""The live feed: a snapshot or the missed events first, then every state event, and ticks.

Handlers of the channel layer only note what came; one writer task a socket sends, so a slow client
holds nobody up and costs no memory: events wait in the database, of ticks the latest is kept.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
import uuid
from typing import Any

import orjson
from channels.db import database_sync_to_async
from channels.generic.websocket import AsyncWebsocketConsumer
from django.db import DatabaseError
from django.utils import timezone
from redis import RedisError

from jobs.shapes import merged_ticks, moment
from realtime import feed
from realtime.groups import EVERYONE, tenant_group
from tenants.identity import Identity, NotIdentified
from tenants.limiter import charge_socket

TOO_FAST = 1013  # try again later
NOT_IDENTIFIED = 4401
UNKNOWN_WORKFLOW = 4404
TICK_EVERY_S = 0.25
POLL_S = 5.0
"""How late an event may be when every nudge is lost."""
POLL_WITHOUT_REDIS_S = 1.0
RECHECK_S = 60.0
QUEUE = "queue"
CELLS = "cells"
ENDED = ("SUCCEEDED", "FAILED", "CANCELLED")

Message = dict[str, Any]
log = logging.getLogger(__name__)


class FeedConsumer(AsyncWebsocketConsumer):
    """One listener."""

    who: Identity
    workflow: uuid.UUID | None = None
    writer: asyncio.Task[None] | None = None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> Any:
        try:
            return await super().__call__(scope, receive, send)
        except (RedisError, OSError) as error:
            if self.writer is not None:
                raise
            log.warning("a feed goes on without Redis, by asking the database: %r", error)
            self.channel_layer_alias = "none"
            return await super().__call__(scope, receive, send)

    # --- life ----------------------------------------------------------------------------

    async def connect(self) -> None:
        self.seq = 0
        self.news = asyncio.Event()
        self.moved = self.recheck = False
        self.ticks: dict[str, Message] = {}
        self.told_at: dict[str, float] = {}
        self.checked_at = time.monotonic()
        try:
            self.who = await database_sync_to_async(feed.identify)(self.scope)
            if await charge_socket(self.scope, self.who.tenant.key) is not None:
                await self._refuse(TOO_FAST)
                return
            self.workflow = await self._workflow()
        except NotIdentified:
            await self._refuse(NOT_IDENTIFIED)
            return
        except feed.UnknownWorkflow:
            await self._refuse(UNKNOWN_WORKFLOW)
            return
        # join before looking: what happens in between is told twice rather than never
        await self._join()
        await self.accept(self._subprotocol())
        self.writer = asyncio.create_task(self._write())

    async def _workflow(self) -> uuid.UUID | None:
        named = feed.query_of(self.scope).get("workflow")
        return await database_sync_to_async(feed.workflow_of)(self.who.tenant, named)

    async def _refuse(self, code: int) -> None:
        # accepted first, because a refused handshake carries no code
        await self.accept(self._subprotocol())
        await self.close(code)

    def _subprotocol(self) -> str | None:
        """The offered `bearer.…`: browsers drop a socket that does not repeat it."""
        offered = self.scope.get("subprotocols") or []
        return next((each for each in offered if each.startswith(feed.BEARER)), None)

    async def _join(self) -> None:
        if self.channel_layer is not None:
            for group in (tenant_group(self.who.tenant.key), EVERYONE):
                await self.channel_layer.group_add(group, self.channel_name)

    async def receive(self, text_data: str | None = None, bytes_data: bytes | None = None) -> None:
        """Listeners have nothing to say."""

    async def disconnect(self, code: int) -> None:
        if self.writer is None:
            return
        self.writer.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self.writer
        if self.channel_layer is not None:
            with contextlib.suppress(RedisError, OSError):
                for group in (tenant_group(self.who.tenant.key), EVERYONE):
                    await self.channel_layer.group_discard(group, self.channel_name)

    # --- what comes from the channel layer -------------------------------------------------

    async def feed_moved(self, message: Message) -> None:
        self.moved = True
        self.news.set()

    async def feed_tick(self, message: Message) -> None:
        data = message["data"]
        if self.workflow is None or message["workflow"] == str(self.workflow):
            self.ticks[str(data.get("job") or data.get("id"))] = {"type": "progress", "data": data}
            self.news.set()

    async def feed_cells(self, message: Message) -> None:
        data = message["data"]
        if self.workflow is None or message["workflow"] == str(self.workflow):
            about = f"{CELLS} {data['job']}"
            if about in self.ticks:  # not told yet: the client must hear of both boxes
                data = merged_ticks(self.ticks[about]["data"], data)
            self.ticks[about] = {"type": CELLS, "data": data}
            self.news.set()

    async def feed_queue(self, message: Message) -> None:
        self.ticks[QUEUE] = {"type": "queue", "data": message["data"]}
        self.news.set()

    async def feed_recheck(self, message: Message) -> None:
        self.recheck = True
        self.news.set()

    # --- what goes to the client -----------------------------------------------------------

    async def _write(self) -> None:
        """Send until the socket closes; a fault of the database only delays."""
        begun = False
        while True:
            try:
                if not begun:
                    await self._begin()
                    begun = True
                await self._rest()
                if not await self._still_allowed():
                    await self.close(NOT_IDENTIFIED)
                    return
                await self._send_events()
                await self._send_ticks()
            except DatabaseError as error:
                log.warning("a feed waits for the database: %s", error)
                await asyncio.sleep(1)

    async def _begin(self) -> None:
        since = _number(feed.query_of(self.scope).get("since"))
        tenant = self.who.tenant
        if since is not None and await database_sync_to_async(feed.still_kept)(tenant, since):
            self.seq = since
            self.moved = True
            self.news.set()
            return
        seq, data = await database_sync_to_async(feed.snapshot)(tenant, self.workflow)
        self.seq = seq
        message: Message = {"type": "snapshot", "data": data}
        if since is not None:
            data["reset"] = message["reset"] = True
        await self._say(message)

    async def _rest(self) -> None:
        """Wait for news, for a tick that is due, or for the time to look by ourselves."""
        timeout = POLL_S if self.channel_layer is not None else POLL_WITHOUT_REDIS_S
        timeout *= random.uniform(0.8, 1.2)  # noqa: S311 - sockets must not all ask at once
        try:
            await asyncio.wait_for(self.news.wait(), min(timeout, self._next_tick_s()))
        except TimeoutError:
            self.moved = self.moved or not self.ticks
        self.news.clear()

    def _next_tick_s(self) -> float:
        now = time.monotonic()
        due = (self.told_at.get(about, 0.0) + TICK_EVERY_S - now for about in self.ticks)
        return max(0.0, min(due, default=POLL_S))

    async def _still_allowed(self) -> bool:
        now = time.monotonic()
        if not self.recheck and now - self.checked_at < RECHECK_S:
            return True
        self.recheck, self.checked_at = False, now
        try:
            who = await database_sync_to_async(feed.identify)(self.scope)
        except NotIdentified:
            return False
        return who.tenant.key == self.who.tenant.key

    async def _send_events(self) -> None:
        if not self.moved:
            return
        self.moved = False
        tenant = await database_sync_to_async(feed.saved)(self.who.tenant)
        if tenant is not self.who.tenant:
            self.who = Identity(tenant, self.who.role, self.who.user)
        while True:
            reached, events = await database_sync_to_async(feed.events_after)(
                tenant, self.workflow, self.seq
            )
            for event in events:
                self._forget_ticks(event)
                await self._send(event)
            if reached == self.seq:
                return
            self.seq = reached

    def _forget_ticks(self, event: Message) -> None:
        """No tick of a job follows its end."""
        if event["type"] == "job" and event["data"].get("state") in ENDED:
            job = event["data"]["id"]
            for about in (job, f"{CELLS} {job}"):
                self.ticks.pop(about, None)
                self.told_at.pop(about, None)

    async def _send_ticks(self) -> None:
        now = time.monotonic()
        for about in list(self.ticks):
            if now - self.told_at.get(about, 0.0) >= TICK_EVERY_S:
                self.told_at[about] = now
                await self._say(self.ticks.pop(about))

    async def _say(self, message: Message) -> None:
        await self._send({**message, "seq": self.seq, "at": moment(timezone.now())})

    async def _send(self, message: Message) -> None:
        await self.send(text_data=orjson.dumps(message).decode())


def _number(text: str | None) -> int | None:
    """`since` as a number; nonsense is the past that is no longer kept."""
    if text is None:
        return None
    return int(text) if text.isascii() and text.isdigit() and len(text) < 19 else -1
