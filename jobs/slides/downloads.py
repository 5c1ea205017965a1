"""Bringing an object's bytes into a file, while somebody is shown signs of life."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from jobs.slides import bucket
from jobs.slides.bucket import STREAMS, SlideAway, Stored, Unanswered
from jobs.slides.files import Beat

PART_BYTES = 16 << 20
BEAT_S = 0.5
LEAVE_S = 1.0
"""How long threads that shall stop are waited for: the network may hold them for much longer."""
PAUSES_S = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0, 30.0, 30.0, 30.0)
"""Before each further try of a part whose connection broke: an outage of minutes loses nothing."""

Made = TypeVar("Made")


def fetch(stored: Stored, into: Path, *, beat: Beat) -> None:
    """Write the object's bytes over the file `into`, with several requests at once.

    beat     called every BEAT_S; what it raises ends the download
    raises   Gone; SlideAway, also when the object changes meanwhile
    """
    starts = iter(range(0, stored.size, PART_BYTES))
    lock, stop = threading.Lock(), threading.Event()
    faults: list[Exception] = []

    def work(descriptor: int) -> None:
        try:
            while (start := _next(starts, lock)) is not None and not stop.is_set():
                _fetch_part(stored, start, descriptor, stop)
        except Exception as fault:  # told by the thread that waits
            faults.append(fault)
            stop.set()
        finally:
            os.close(descriptor)

    with into.open("r+b" if into.exists() else "w+b") as file:
        file.truncate(stored.size)
        try:
            # each thread has a descriptor of its own: one that is left behind writes to this file still
            _wait(
                [
                    _started(work, os.dup(file.fileno()))
                    for _ in range(min(STREAMS, -(-stored.size // PART_BYTES)))
                ],
                beat,
                stop,
            )
        finally:
            stop.set()
        if faults:
            raise faults[0]
        os.fsync(file.fileno())
    os.utime(into, ns=(stored.modified_ns, stored.modified_ns))


def while_beating(ask: Callable[[], Made], beat: Beat) -> Made:
    """What `ask` returns or raises; a beat that raises does not wait for it."""
    made: list[Made] = []
    faults: list[Exception] = []

    def work(_: int) -> None:
        try:
            made.append(ask())
        except Exception as fault:  # told by the thread that waits
            faults.append(fault)

    _wait([_started(work, 0)], beat, threading.Event())
    if faults:
        raise faults[0]
    return made[0]


def pause(seconds: float, beat: Beat) -> None:
    """Sleep, showing signs of life."""
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0:
        beat()
        time.sleep(min(left, BEAT_S))


def _started(work: Callable[[int], None], descriptor: int) -> threading.Thread:
    # not of a pool: Python waits for those at exit, whatever they still have to do
    thread = threading.Thread(target=work, args=(descriptor,), daemon=True)
    thread.start()
    return thread


def _wait(threads: list[threading.Thread], beat: Beat, stop: threading.Event) -> None:
    """Until all have ended, or a moment after one said `stop`."""
    leave_at = float("inf")
    while any(thread.is_alive() for thread in threads) and time.monotonic() < leave_at:
        next(thread for thread in threads if thread.is_alive()).join(BEAT_S)
        beat()
        if stop.is_set():
            leave_at = min(leave_at, time.monotonic() + LEAVE_S)


def _next(starts: Iterator[int], lock: threading.Lock) -> int | None:
    with lock:
        return next(starts, None)


def _fetch_part(stored: Stored, at: int, descriptor: int, stop: threading.Event) -> None:
    """Write one part, going on from where a connection broke. Raises Gone or SlideAway."""
    end = min(at + PART_BYTES, stored.size)
    for pause_s in (*PAUSES_S, None):
        try:
            for chunk in bucket.chunks(stored, at, end):
                if stop.is_set():
                    return
                os.pwrite(descriptor, chunk, at)
                at += len(chunk)
        except Unanswered:
            if pause_s is None:
                raise
        if at >= end or (pause_s is not None and stop.wait(pause_s)):
            return
    raise SlideAway(f"The slide bucket sent too little of {stored.path}: try again.")
