"""The body of a streamed response: takes wire events from a source, and notices who has left.

Django does not close a response's iterator when the client leaves while it
waits in ``send``; so the task that iterates is watched, and a client that
takes nothing for a while counts as gone.
"""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Callable
from typing import Protocol

from invocations_app.sse import KEEPALIVE

# A body that nobody has begun to read this long after the view's task ended is not going to be read.
_UNREAD_SECONDS = 2.0


class Source(Protocol):
    """Where the wire events of a response come from."""

    def ready(self) -> bytes | None:
        """Return the events that are ready in one piece; empty at the end, None where one has to wait."""
        ...

    async def next(self) -> bytes:
        """Wait for events; return those that are ready in one piece, empty at the end.

        May be cancelled while it waits, and called again.
        """
        ...

    def leave(self) -> None:
        """Say that nobody reads any more."""
        ...


class _Silence:
    """One time of waiting for events.

    Attributes:
        task: Who waits.
        since: Since when, in the loop's time.
        is_over: Whether it was ended for a comment.
    """

    __slots__ = ("is_over", "since", "task")

    def __init__(self, task: asyncio.Task[object], since: float) -> None:
        self.task = task
        self.since = since
        self.is_over = False


class StreamBody:
    """An async iterator of bytes for Django's ``StreamingHttpResponse``.

    Args:
        source: Where the events come from; left once, however the response ends.
        keepalive_seconds: Silence after which a comment is sent; 0 for never.
        stall_seconds: Time of taking nothing after which the reader counts as gone.
    """

    def __init__(self, source: Source, *, keepalive_seconds: float, stall_seconds: float) -> None:
        self._loop = asyncio.get_running_loop()
        self._source: Source | None = source
        self._keepalive_seconds = keepalive_seconds or None
        self._stall_seconds = stall_seconds
        self._sender: asyncio.Task[object] | None = None
        self._handed_at: float | None = self._loop.time()
        self._watch = self._watch_later(stall_seconds)
        self._keepalive: asyncio.TimerHandle | None = None
        self._silence: _Silence | None = None
        self._is_cut = False
        self._watch_view()

    def __aiter__(self) -> StreamBody:
        return self

    async def __anext__(self) -> bytes:
        if self._is_cut:
            # First asked for after the reader was dropped: what it missed is gone. As one that hangs in send, it
            # ends without an end, for which the server closes the connection.
            raise asyncio.CancelledError
        self._handed_at = None
        if self._sender is None:
            self._sender = asyncio.current_task()
            if self._sender is not None:
                self._sender.add_done_callback(_leave_of(weakref.ref(self)))
        if self._source is None:
            raise StopAsyncIteration
        chunk = self._source.ready()
        if chunk is None:
            try:
                chunk = await self._wait(self._source)
            except BaseException:
                self.leave()
                raise
        if not chunk:
            self.leave()
            raise StopAsyncIteration
        self._handed_at = self._loop.time()
        return chunk

    async def _wait(self, source: Source) -> bytes:
        """Wait for events, or for as much silence as asks for a comment."""
        task = asyncio.current_task()
        if self._keepalive_seconds is None or task is None:
            return await source.next()
        before = task.cancelling()
        self._silence = _Silence(task, self._loop.time())
        if self._keepalive is None:
            # One timer for many pieces: one for each would cost more than to send it.
            self._keepalive = self._speak_later(self._keepalive_seconds)
        silence = self._silence
        try:
            return await source.next()
        except asyncio.CancelledError:
            if not silence.is_over or task.uncancel() > before:
                raise
            return KEEPALIVE
        finally:
            self._silence = None

    def _speak_later(self, seconds: float) -> asyncio.TimerHandle:
        return self._loop.call_later(seconds, _check_silence_of, weakref.ref(self))

    def _check_silence(self) -> None:
        self._keepalive = None
        if self._source is None or self._keepalive_seconds is None:
            return
        silence = self._silence
        lasted = 0.0 if silence is None else self._loop.time() - silence.since
        if silence is None or silence.is_over or lasted < self._keepalive_seconds:
            self._keepalive = self._speak_later(self._keepalive_seconds - lasted)
        else:
            silence.is_over = True
            silence.task.cancel()

    def is_cause(self) -> bool:
        """Return whether its sender was cancelled by this alone; then it counts as not cancelled any more."""
        return self._is_cut and self._sender is not None and self._sender.uncancel() == 0

    def leave(self) -> None:
        """Stop reading; harmless when done before."""
        source, self._source = self._source, None
        if source is not None:
            self._watch.cancel()
            if self._keepalive is not None:
                self._keepalive.cancel()
            source.leave()

    def _watch_later(self, seconds: float) -> asyncio.TimerHandle:
        # By a weak reference: the timer must not keep alive a response that nobody iterates.
        return self._loop.call_later(seconds, _check_stall_of, weakref.ref(self))

    def _watch_view(self) -> None:
        """Notice that the request ended before the body was ever asked for: nobody is going to tell.

        The view's task is the request's own, or, behind sync middleware, one that ends just before the body is asked
        for; so some time has to pass.
        """
        view = asyncio.current_task()
        reference = weakref.ref(self)
        if view is not None:
            view.add_done_callback(_unread_later(self._loop, reference))

    def _check_unread(self) -> None:
        if self._sender is None:
            self._is_cut = True
            self.leave()

    def _check_stall(self) -> None:
        since = self._handed_at
        idle = 0.0 if since is None else self._loop.time() - since
        if idle < self._stall_seconds:
            self._watch = self._watch_later(self._stall_seconds - idle)
            return
        sender = self._sender
        self._is_cut = True
        self.leave()
        if sender is not None:
            # It hangs in send: without its end the connection would stay open, half an answer in it.
            sender.cancel()

    def __del__(self) -> None:
        # A response that nobody ever iterated; may run in any thread.
        source = getattr(self, "_source", None)
        if source is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._watch.cancel)
            self._loop.call_soon_threadsafe(source.leave)


def _check_stall_of(reference: weakref.ref[StreamBody]) -> None:
    body = reference()
    if body is not None:
        body._check_stall()


def _check_silence_of(reference: weakref.ref[StreamBody]) -> None:
    body = reference()
    if body is not None:
        body._check_silence()


def _unread_later(loop: asyncio.AbstractEventLoop, reference: weakref.ref[StreamBody]) -> Callable[[object], None]:
    def check_later(_: object) -> None:
        loop.call_later(_UNREAD_SECONDS, _check_unread_of, reference)

    return check_later


def _check_unread_of(reference: weakref.ref[StreamBody]) -> None:
    body = reference()
    if body is not None:
        body._check_unread()


def _leave_of(reference: weakref.ref[StreamBody]) -> Callable[[object], None]:
    def leave(_: object) -> None:
        body = reference()
        if body is not None:
            body.leave()

    return leave
