"""An RQ worker whose work-horse is one long-lived spawned child.

This process pops messages, keeps row and lease (in a thread), watches the child and ends it when
it must. It runs no job itself and never loads torch. RQ's own time-outs, retries and recovery are
not used: the database is the record.
"""

from __future__ import annotations

import gc
import logging
import math
import time
from dataclasses import replace
from typing import Any

import redis
from django.conf import settings
from rq import Worker

from jobs.running import artifacts, endings, shards, verdicts, warmth
from jobs.running.alarm import Alarm
from jobs.running.child import DONE, READY, STARTED, Said
from jobs.running.handle import ChildHandle
from jobs.running.keeper import Keeper
from jobs.running.watch import Limits, Verdict, Watch
from jobs.running.wire import Wire
from jobs.scheduling.dispatch import Order

STOP_GRACE_S = 8.0  # what a running job gets to finish in after SIGTERM
WRITE_S = 8.0  # how long an ending is tried to be written; then the sweep does it
STOP_WRITE_S = 3.0  # the same after SIGTERM
LONGEST_BACK_OFF_S = 1.0  # Redis away: work goes on within one sweep of its return
WARM_UP_S = 600.0
COLD_PAUSE_S = 10.0  # before the next try to load the model
DRAIN_PAUSE_S = 2.0
SHOWN_AFTER_S = 0.25  # shorter jobs never appear on RQ's pages
LOOK_S = 20.0
TIDY_EVERY_S = 600.0
log = logging.getLogger(__name__)


class StopNow(BaseException):
    """Asked to end while nothing runs."""


class LabWorker(Worker):
    """Serves one queue until told to stop."""

    def __init__(self, queue_name: str, name: str) -> None:
        self.wire = Wire(name, queue_name, hash_key=f"{self.redis_worker_namespace_prefix}{name}")
        super().__init__(
            [self.wire.queue],
            name=name,
            connection=self.wire.connection,
            serializer=self.wire.queue.serializer,
            queue_class=type(self.wire.queue),
            prepare_for_work=False,  # it would need Redis here; it may come later
        )
        self.queue_name = queue_name
        self.child = ChildHandle(name, queue_name)
        self.stops = 0  # how often this worker was asked to end
        self._cold_because = ""
        self._interruptible = False
        self._back_off_s = 0.0
        self._tidy_due = 0.0
        self.alarm = Alarm()
        self.keeper = Keeper(name, queue_name, learnt=self.alarm.ring)

    def _set_connection(self, connection: redis.Redis) -> redis.Redis:
        return connection  # RQ would lengthen its time-outs

    # --- the loop ------------------------------------------------------------------------

    def work(self, *_: Any, **__: Any) -> bool:
        """Take and run jobs until a signal says to end."""
        self.alarm.ring_on_signals(self._on_signal)
        self.keeper.start()
        gc.freeze()  # what is loaded now stays: no collection need look at it again
        try:
            while not self.stops:
                if self._is_ready():
                    self._serve_next()
        except StopNow:
            log.info("%s: asked to end, nothing runs", self.name)
        finally:
            self.teardown()
        return True

    def _is_ready(self) -> bool:
        """Whether a job may be taken now; waits a moment when not."""
        if self.child.alive and not self.keeper.draining:
            return True
        self.wire.show_over()
        if not self.child.alive:
            return self._start_child()
        self._pause(DRAIN_PAUSE_S)
        return False

    def _serve_next(self) -> None:
        order = self._pop()
        if order is None:
            return
        if self.child.alive or self._start_child():
            self._run(order)

    def _pop(self) -> Order | None:
        """The next order; None when none came, or Redis is away."""
        try:
            self._interruptible = True
            if self.stops:
                raise StopNow
            self._tidy()
            order = self.wire.pop()
        except redis.RedisError as error:
            order = None
            self._interruptible = False
            self._wait_for_redis(error)
        else:
            self._back_off_s = 0.0
        finally:
            self._interruptible = False
        return order

    def _wait_for_redis(self, error: redis.RedisError) -> None:
        if not self._back_off_s:
            log.warning("%s: Redis does not answer, waiting for it: %s", self.name, error)
        self._back_off_s = min(max(0.05, self._back_off_s * 2), LONGEST_BACK_OFF_S)
        self._pause(self._back_off_s)

    def _tidy(self) -> None:
        """Drop from RQ's registries what dead workers left there."""
        if time.monotonic() >= self._tidy_due:
            self._tidy_due = time.monotonic() + TIDY_EVERY_S
            self.clean_registries()

    # --- the child -----------------------------------------------------------------------

    def _start_child(self) -> bool:
        """Spawn a child and wait until it is warm. False when it is not to be had now."""
        self.child.bury()
        artifacts.clear_scratch()
        if missing := warmth.what_is_missing(self.queue_name):
            return self._stay_cold(missing)
        self.keeper.show("", warm=False)
        self.child.spawn()
        said = self._first_word()
        if self.stops:
            return False
        if said is not None and said[0] == READY:
            self.keeper.show(said[1], warm=True)
            self._cold_because = ""
            log.info("%s: warm on %s", self.name, said[1])
            return True
        self.child.kill()
        return self._stay_cold(
            said[1] if said else f"its process ended with code {self.child.exit_code}"
        )

    def _stay_cold(self, reason: str) -> bool:
        """Say once why no job is taken, and wait before the next try."""
        if reason != self._cold_because:
            self._cold_because = reason
            log.error("%s takes no job, and tries again from time to time: %s", self.name, reason)
            self.keeper.show(f"cold: {reason}", warm=False)
        self._pause(COLD_PAUSE_S)
        return False

    def _first_word(self) -> Said | None:
        """READY or COLD; None when the child died or takes too long, or this worker is to end."""
        give_up_at = time.monotonic() + WARM_UP_S
        while not self.stops and (left_s := give_up_at - time.monotonic()) > 0:
            said = self.child.listen(left_s, also=self.alarm.fileno())
            if said is not None:
                return said
            if not self.child.alive:
                return None
            self.alarm.silence()
        return None

    # --- one job, or help with one -------------------------------------------------------

    def _run(self, order: Order) -> None:
        began_at = time.monotonic()
        watch = Watch(_limits({}, order), began_at=began_at, renewed_at=began_at)
        self.child.order(*order)
        try:
            verdict = self._attend(order, watch)
        finally:
            self.keeper.let_go()
        if verdict is not None:
            log.warning("%s: %s: %s", self.name, _what(order), verdict.value)
            self._settle(order, verdict, watch.limits)

    def _settle(self, order: Order, verdict: Verdict, limits: Limits) -> None:
        """Write what became of an order whose child was killed."""
        if order.shard:
            shards.let_go(order, self.name, for_s=self._write_s)
        else:
            verdicts.settle(order.job, order.attempt, verdict, limits, for_s=self._write_s)

    @property
    def _write_s(self) -> float:
        return STOP_WRITE_S if self.stops else WRITE_S

    def _attend(self, order: Order, watch: Watch) -> Verdict | None:
        """Stay with a running job. None when it ended by itself, or its child died."""
        look_s = SHOWN_AFTER_S
        while True:
            if verdict := watch.verdict(time.monotonic(), self.child.beat_at):
                self.child.kill()
                return verdict
            pause_s = watch.pause_s(time.monotonic(), self.child.beat_at)
            said = self.child.listen(min(pause_s, look_s), also=self.alarm.fileno())
            if said is None and not self.child.alive:
                self._bury_child(order)
                return None
            if said is not None and self._hear(said, order, watch):
                return None
            self.alarm.silence()
            self._mind_stops(watch)
            if time.monotonic() - watch.began_at >= SHOWN_AFTER_S:
                look_s = LOOK_S
                self.wire.show_running()
                self.wire.show_still_running()

    def _hear(self, said: Said, order: Order, watch: Watch) -> bool:
        """Take in what the child says. True when the job is over."""
        kind, content = said
        if kind == STARTED:
            watch.limits = _limits(content, order)
            self.keeper.hold(order.job, order.attempt, watch)
        elif kind == DONE and not content:
            self.child.kill()  # its work is written, but memory ran out in it
        return kind == DONE

    def _bury_child(self, order: Order) -> None:
        """Write that the child died in the middle of a job; the next one gets a new child."""
        self.child.bury()
        reason, sentence = endings.of_exit(
            self.child.exit_code, oom_kills=self.child.oom_kills_since_order()
        )
        log.error("%s: %s: %s", self.name, _what(order), sentence)
        self.keeper.let_go()
        if order.shard:
            shards.let_go(order, self.name, for_s=self._write_s)
        else:
            verdicts.bury(order.job, order.attempt, reason, sentence, for_s=self._write_s)

    def _mind_stops(self, watch: Watch) -> None:
        """The first signal gives the job its grace, the second takes it away."""
        if self.stops and math.isinf(watch.stop_seen_at):
            watch.stop_seen_at = time.monotonic()
            # no capacity any more: a job handed back must not be promoted to this worker again
            self.keeper.show(self.keeper.device, warm=False)
            log.info("%s: asked to end, the job has %.0f s to finish", self.name, STOP_GRACE_S)
        if self.stops > 1:
            watch.stop_seen_at = -math.inf

    # --- signals and sleep ---------------------------------------------------------------

    def _on_signal(self, *_: object) -> None:
        self.stops += 1
        if self._interruptible:
            raise StopNow

    def _pause(self, seconds: float) -> None:
        """Sleep, but not when this worker is to end."""
        if not self.stops:
            self.alarm.sleep(seconds)

    def teardown(self) -> None:
        """Leave nothing behind: no child, no row, no place on RQ's pages."""
        self._interruptible = False
        self.child.kill()
        self.keeper.close()
        self.wire.show_over()
        self.wire.show_gone()


def _what(order: Order) -> str:
    helping = f", helping as {order.shard}" if order.shard else ""
    return f"job {order.job} attempt {order.attempt}{helping}"


def _limits(content: dict[str, float], order: Order) -> Limits:
    """The bounds of a job: the settings', and what its parameters say. stall_s may only raise."""
    limits = Limits(
        lease_s=settings.LEASE_S,
        stall_s=max(settings.STALL_S, content.get("stall_s", 0.0)),
        cancel_grace_s=settings.CANCEL_GRACE_S,
        stop_grace_s=STOP_GRACE_S,
    )
    if order.shard:  # what it finished is kept; a warm child is worth a moment of patience
        return replace(limits, stop_grace_s=0.0, fence_grace_s=settings.CANCEL_GRACE_S)
    timeout_s = content.get("timeout_s")
    return limits if timeout_s is None else replace(limits, timeout_s=timeout_s)
