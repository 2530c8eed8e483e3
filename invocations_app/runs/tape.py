"""The wire events of one run in order, between the run that writes and readers that follow.

The writer waits for its slowest reader (back pressure), so a slow client slows
the agent down instead of filling memory. Who counts as a reader, and what it
means that the last one leaves, is decided by the run.
"""

from __future__ import annotations

import asyncio
import weakref
from collections import deque
from collections.abc import Callable

from invocations_app.sse import KEEPALIVE

#: Wire events that a reader may be behind before the run waits for it.
HIGH_WATER = 64
#: Bytes handed over in one write. A reader on a slow line has the stall time for each of them.
CHUNK_BYTES = 32 * 1024


class Tape:
    """Wire events, numbered from 1, kept until every reader has taken them."""

    def __init__(self) -> None:
        self._frames: deque[bytes] = deque()
        self._dropped = 0
        self._readers: set[TapeReader] = set()
        self._room = asyncio.Event()
        self.closed = False

    @property
    def last(self) -> int:
        """Number of the last event written; 0 for none."""
        return self._dropped + len(self._frames)

    @property
    def has_readers(self) -> bool:
        """Whether anybody reads."""
        return bool(self._readers)

    def append(self, frames: list[bytes]) -> None:
        """Write wire events and wake the readers.

        Args:
            frames: The events, each whole.
        """
        if not frames:
            return
        self._frames.extend(frames)
        if not self._readers:
            self._trim()
        for reader in self._readers:
            reader.wake()

    def close(self) -> None:
        """Say that nothing follows."""
        self.closed = True
        for reader in self._readers:
            reader.wake()

    async def room(self) -> None:
        """Wait until no reader is more than `HIGH_WATER` events behind."""
        while any(self.last - reader.position >= HIGH_WATER for reader in self._readers):
            self._room.clear()
            await self._room.wait()

    def attach(self) -> TapeReader:
        """Return a reader that starts at the first event that is still there."""
        reader = TapeReader(self, self._dropped)
        self._readers.add(reader)
        return reader

    def detach(self, reader: TapeReader) -> None:
        """Forget a reader; what only it had not taken goes.

        Args:
            reader: The reader; one that is not attached is ignored.
        """
        self._readers.discard(reader)
        self._trim()

    def read(self, after: int) -> tuple[bytes, int]:
        """Return events in one piece of about `CHUNK_BYTES`, and the number of the last one.

        Args:
            after: Number of the last event that the reader has.
        """
        taken: list[bytes] = []
        size = 0
        start = after - self._dropped
        for index in range(start, len(self._frames)):
            taken.append(self._frames[index])
            size += len(taken[-1])
            if size >= CHUNK_BYTES:
                break
        return b"".join(taken), after + len(taken)

    def _trim(self) -> None:
        needed = min((reader.position for reader in self._readers), default=self.last)
        while self._dropped < needed:
            self._frames.popleft()
            self._dropped += 1
        self._room.set()


class TapeReader:
    """One reader's place on a tape."""

    def __init__(self, tape: Tape, position: int) -> None:
        self._tape = tape
        self._news = asyncio.Event()
        self.position = position

    def wake(self) -> None:
        """Say that there is something new."""
        self._news.set()

    def take(self) -> bytes:
        """Return what is ready, up to about `CHUNK_BYTES`; empty for nothing."""
        self._news.clear()
        if self.position >= self._tape.last:
            return b""
        chunk, self.position = self._tape.read(self.position)
        self._tape._trim()
        return chunk

    async def wait(self) -> None:
        """Wait for something to take or for the end."""
        if self.position >= self._tape.last and not self._tape.closed:
            await self._news.wait()


class FrameStream:
    """The body of a streamed response: reads a tape, and notices when its client has left.

    Django does not close a response's iterator when the client leaves while it
    waits in ``send``; so the task that iterates is watched, and a client that
    takes nothing for a while counts as gone.

    Args:
        tape: The tape to read.
        reader: Its place on the tape.
        keepalive_seconds: Silence after which a comment is sent; 0 for never.
        stall_seconds: Time of taking nothing after which the reader is dropped.
        on_leave: Called once when the reader has read everything or left.
    """

    def __init__(
        self,
        tape: Tape,
        reader: TapeReader,
        *,
        keepalive_seconds: float,
        stall_seconds: float,
        on_leave: Callable[[], None],
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._tape = tape
        self._reader = reader
        self._keepalive_seconds = keepalive_seconds or None
        self._stall_seconds = stall_seconds
        self._on_leave: Callable[[], None] | None = on_leave
        self._sender: asyncio.Task[object] | None = None
        self._handed_at: float | None = self._loop.time()
        self._watch = self._watch_later(stall_seconds)
        self._is_cut = False

    def __aiter__(self) -> FrameStream:
        return self

    async def __anext__(self) -> bytes:
        if self._is_cut:
            # First asked for after the reader was dropped: its place is gone. As one that hangs in send, it ends
            # without an end, for which the server closes the connection.
            raise asyncio.CancelledError
        self._handed_at = None
        if self._sender is None:
            self._sender = asyncio.current_task()
            if self._sender is not None:
                self._sender.add_done_callback(lambda _: self.leave())
        try:
            chunk = await self._next()
        except BaseException:
            self.leave()
            raise
        if not chunk:
            self.leave()
            raise StopAsyncIteration
        self._handed_at = self._loop.time()
        return chunk

    async def _next(self) -> bytes:
        while True:
            chunk = self._reader.take()
            if chunk or self._tape.closed or self._on_leave is None:
                return chunk
            try:
                async with asyncio.timeout(self._keepalive_seconds):
                    await self._reader.wait()
            except TimeoutError:
                return KEEPALIVE

    def leave(self) -> None:
        """Stop reading; harmless when done before."""
        on_leave, self._on_leave = self._on_leave, None
        if on_leave is None:
            return
        self._watch.cancel()
        on_leave()

    def _watch_later(self, seconds: float) -> asyncio.TimerHandle:
        # By a weak reference: the timer must not keep alive a response that nobody iterates.
        return self._loop.call_later(seconds, _check_stall_of, weakref.ref(self))

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
        if self._on_leave is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self.leave)


def _check_stall_of(reference: weakref.ref[FrameStream]) -> None:
    stream = reference()
    if stream is not None:
        stream._check_stall()
