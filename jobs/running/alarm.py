"""How signals and the keeper's thread wake a worker's main thread, whatever it waits for."""

from __future__ import annotations

import select
import signal
import socket
from collections.abc import Callable


class Alarm:
    """A pair of sockets: ring one end from anywhere, wait on the other among other things."""

    def __init__(self) -> None:
        self._inside, self._outside = socket.socketpair()
        self._inside.setblocking(False)
        self._outside.setblocking(False)

    def fileno(self) -> int:
        """What becomes readable when it rings."""
        return self._inside.fileno()

    def ring(self) -> None:
        """Wake the main thread. Any thread may call it."""
        try:
            self._outside.send(b"!")
        except BlockingIOError:
            return  # it is ringing already

    def ring_on_signals(self, handle: Callable[[int, object], None]) -> None:
        """Ring at SIGTERM and SIGINT, after `handle` took note of them."""
        signal.set_wakeup_fd(self._outside.fileno(), warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, handle)

    def silence(self) -> None:
        """Take note of all rings so far."""
        try:
            while self._inside.recv(64):
                continue
        except BlockingIOError:
            return

    def sleep(self, seconds: float) -> None:
        """Sleep, but not through a ring."""
        select.select([self._inside], [], [], seconds)
        self.silence()
