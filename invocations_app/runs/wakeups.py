"""Waiting for news from other processes: woken by PostgreSQL where it can, by a poll otherwise.

One connection of its own a process listens, outside any pool, and only while
somebody waits. Where it cannot be had, everybody polls.
"""

from __future__ import annotations

import asyncio
import contextvars
import importlib.util
import logging
from typing import Any
from weakref import WeakKeyDictionary

from django.db import connections

from invocations_app.storage import database
from invocations_app.storage.notify import CHANNEL

logger = logging.getLogger("invocations_app.runs")

# While listening, a look at intervals is for news that got lost with a connection.
_LISTENING_POLL_SECONDS = 2.0
_IDLE_SECONDS = 5.0
_RETRY_SECONDS = 5.0
# What Django puts among a connection's parameters for itself.
_NOT_FOR_LISTENING = ("context", "cursor_factory", "prepare_threshold")


class Wakeups:
    """Those of one event loop who wait for news."""

    def __init__(self) -> None:
        self._waiters: dict[str, set[asyncio.Event]] = {}
        self._listener: asyncio.Task[None] | None = None
        self._listening = False

    async def wait(self, key: str, poll_seconds: float) -> None:
        """Wait until there may be news.

        Args:
            key: What about; see `storage.notify`.
            poll_seconds: Longest time to wait where nobody listens.
        """
        self._start_listening()
        event = asyncio.Event()
        self._waiters.setdefault(key, set()).add(event)
        try:
            async with asyncio.timeout(_LISTENING_POLL_SECONDS if self._listening else poll_seconds):
                await event.wait()
        except TimeoutError:
            pass
        finally:
            waiting = self._waiters[key]
            waiting.discard(event)
            if not waiting:
                del self._waiters[key]

    def wake(self, key: str) -> None:
        """Wake those who wait for a key.

        Args:
            key: What there is news about.
        """
        for event in self._waiters.get(key, ()):
            event.set()

    def wake_all(self) -> None:
        """Wake everybody who waits: what they wait for may not come any more."""
        for key in list(self._waiters):
            self.wake(key)

    async def close(self) -> None:
        """Stop listening; the next one who waits begins again."""
        if self._listener is not None:
            self._listener.cancel()
            await asyncio.wait([self._listener])

    def _start_listening(self) -> None:
        if self._listener is None and _can_listen():
            loop = asyncio.get_running_loop()
            self._listener = loop.create_task(self._listen(), context=contextvars.Context())

    async def _listen(self) -> None:
        try:
            while True:
                try:
                    await self._listen_once()
                    return
                except Exception:
                    logger.warning("Listening for other processes failed; they are polled.", exc_info=True)
                finally:
                    self._listening = False
                await asyncio.sleep(_RETRY_SECONDS)
        finally:
            self._listener = None

    async def _listen_once(self) -> None:
        """Listen until nobody has waited for a while."""
        import psycopg

        parameters: dict[str, Any] = connections[database.alias()].get_connection_params()
        for name in _NOT_FOR_LISTENING:
            parameters.pop(name, None)
        async with await psycopg.AsyncConnection.connect(**parameters, autocommit=True) as connection:
            await connection.execute(f"LISTEN {CHANNEL}")
            self._listening = True
            # What came before this moment was not heard: let everybody look once.
            for key in list(self._waiters):
                self.wake(key)
            waited = True
            while waited:
                waited = False
                async for notice in connection.notifies(timeout=_IDLE_SECONDS):
                    for key in notice.payload.split(","):
                        self.wake(key)
                    waited = waited or bool(self._waiters)
                waited = waited or bool(self._waiters)


def _can_listen() -> bool:
    is_postgresql = connections[database.alias()].vendor == "postgresql"
    return is_postgresql and importlib.util.find_spec("psycopg") is not None


_wakeups: WeakKeyDictionary[asyncio.AbstractEventLoop, Wakeups] = WeakKeyDictionary()


def get_wakeups() -> Wakeups:
    """Return those of the running event loop who wait for news."""
    return _wakeups.setdefault(asyncio.get_running_loop(), Wakeups())
