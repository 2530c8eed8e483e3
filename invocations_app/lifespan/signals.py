"""Hears the signals that end a process, in front of the server's own handlers."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

_NAMES = ("SIGTERM", "SIGINT", "SIGBREAK")


class SignalChain:
    """Handlers that call back into the loop, and then the handlers that were there before.

    With ``signal.signal``, as uvicorn's own: that works on every loop, and with a handler of
    ``loop.add_signal_handler`` before it too, as the loop hears of the signal by another way.

    Args:
        on_signal: Called in the running loop, once for each signal.
    """

    def __init__(self, on_signal: Callable[[], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._on_signal = on_signal
        self._previous: dict[int, Callable[[int, FrameType | None], Any]] = {}

    def install(self) -> None:
        """Stand before the server's handlers; outside the main thread, where nobody may, nothing happens."""
        if threading.current_thread() is not threading.main_thread():
            return
        for number in [getattr(signal, name) for name in _NAMES if hasattr(signal, name)]:
            previous = signal.getsignal(number)
            # A signal that nobody handles ends the process, or is ignored: so it stays.
            if callable(previous):
                self._previous[number] = previous
                signal.signal(number, self._handle)

    def restore(self) -> None:
        """Put the handlers back, but for those that somebody else has replaced since."""
        for number, previous in self._previous.items():
            if signal.getsignal(number) == self._handle:
                signal.signal(number, previous)
        self._previous.clear()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._on_signal)
        self._previous[number](number, frame)
