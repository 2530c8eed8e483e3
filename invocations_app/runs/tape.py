"""The wire events of one run in order, between the run that writes and readers that follow.

The writer waits for the reader who started it (back pressure), so a slow client
slows the agent down instead of filling memory; other readers never slow it, and
turn to the log for what is gone here. Who counts as a reader, and what it means
that the last one leaves, is decided by the run.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Generator

#: Wire events that wait for the log from which on it is written to at once.
FLUSH_EVENTS = 256
#: Wire events that the first reader may be behind before the run waits for it.
HIGH_WATER = 256
#: Bytes of them, whichever is reached first.
HIGH_WATER_BYTES = 256 * 1024
#: Wire events that may wait for the log before the run waits for it: more only when the database is away.
LOG_HIGH_WATER = 1024
# A log that is due is at work, as a rule, and is not asked for again before so many more wire events.
_ASK_AGAIN_EVENTS = 32
#: Bytes handed over in one write. A reader on a slow line has the stall time for each of them.
CHUNK_BYTES = 32 * 1024


class _AtOnce:
    """Waits for nothing."""

    def __await__(self) -> Generator[None]:
        return
        yield


#: What a writer waits for that need not wait; known by its identity, it need not even be asked.
AT_ONCE: Awaitable[None] = _AtOnce()


class Tape:
    """Wire events, numbered from 1, kept until the readers that hold it and the log have them.

    Attributes:
        last: Number of the last event written; 0 for none.
        dropped: Number of the last event that is gone from here; 0 for none.
        written_bytes: Bytes of all events written.
        closed: Whether nothing follows but the last event.
        final: That one, once it is closed.
    """

    def __init__(self) -> None:
        self._frames: list[bytes] = []
        self._holders: set[Place] = set()
        self._followers: set[Place] = set()
        self._waiting: set[Place] = set()
        # Made by a writer who has to wait: most never do.
        self._room: asyncio.Event | None = None
        self._logged: int | None = 0
        # The event, and the bytes, at which the writer looks who is behind: it need not do so at every one.
        self._look_at = min(HIGH_WATER, FLUSH_EVENTS)
        self._full_at = min(HIGH_WATER, LOG_HIGH_WATER)
        self._full_at_bytes = HIGH_WATER_BYTES
        self.last = 0
        self.dropped = 0
        self.written_bytes = 0
        self.closed = False
        self.final = b""

    @property
    def unlogged(self) -> int:
        """Number of events that are not in the log."""
        return 0 if self._logged is None else self.last - self._logged

    @property
    def is_log_due(self) -> bool:
        """Whether so many events are not in the log that it is to be written without waiting for the interval."""
        return self.unlogged >= FLUSH_EVENTS

    def append(self, frames: list[bytes]) -> bool:
        """Write wire events and wake the readers who wait.

        Args:
            frames: The events, each whole.

        Returns:
            Whether to look at `is_log_due` and `is_full`: always where the latter is true, and where the
            former is, now and then.
        """
        for frame in frames:
            self._frames.append(frame)
            self.last += 1
            self.written_bytes += len(frame)
        if self._waiting and frames:
            self._wake()
        if self.last < self._look_at and self.written_bytes < self._full_at_bytes:
            return False
        self._look_at = min(self._full_at, self.last + _ASK_AGAIN_EVENTS)
        if self._logged is None and not self._holders:
            # Nobody needs them.
            self._trim()
        return True

    def close(self, final: list[bytes]) -> None:
        """Say that nothing follows but the last event.

        Args:
            final: The last event, for the reader who holds the tape; others have it from the record.
        """
        self.final = b"".join(final)
        self.closed = True
        self._wake()

    async def room(self) -> None:
        """Wait until neither a reader that holds the tape nor the log is too far behind."""
        while self.is_full:
            if self._room is None:
                self._room = asyncio.Event()
            self._room.clear()
            await self._room.wait()

    @property
    def is_full(self) -> bool:
        """Whether a reader that holds the tape, or the log, is too far behind."""
        if self._logged is not None and self.last - self._logged >= LOG_HIGH_WATER:
            return True
        for place in self._holders:
            behind = self.last - place.position
            if behind >= HIGH_WATER or self.written_bytes - place.taken_bytes >= HIGH_WATER_BYTES:
                return True
        return False

    @property
    def is_unread(self) -> bool:
        """Whether a reader that holds the tape has taken nothing of it yet."""
        return any(place.position == 0 for place in self._holders)

    def hold(self) -> Place:
        """Return a place at the start whose reader the writer waits for."""
        place = Place(self, self.dropped)
        self._holders.add(place)
        self._trim()
        return place

    def follow(self, after: int) -> Place:
        """Return a place whose reader the writer does not wait for.

        Args:
            after: Number of the last event that the reader has.
        """
        place = Place(self, after)
        self._followers.add(place)
        return place

    def release(self, place: Place) -> None:
        """Forget a place; what only its reader had not taken goes.

        Args:
            place: The place; one that was released before is ignored.
        """
        self._holders.discard(place)
        self._followers.discard(place)
        self._waiting.discard(place)
        self._trim()

    def frames_after(self, after: int, size: int = CHUNK_BYTES) -> list[bytes] | None:
        """Return the next events, up to about a size.

        Args:
            after: Number of the last event that the reader has.
            size: Bytes.

        Returns:
            The events, empty for nothing new; None where the next one is gone from here.
        """
        if after < self.dropped:
            return None
        frames = self._frames[after - self.dropped :]
        if sum(map(len, frames)) <= size:
            return frames
        count = 0
        while size > 0:
            size -= len(frames[count])
            count += 1
        return frames[:count]

    def to_log(self) -> tuple[int, tuple[bytes, ...]]:
        """Return the number of the first event that is not in the log, and all from it on."""
        if self._logged is None:
            return self.last + 1, ()
        return self._logged + 1, tuple(self._frames[self._logged - self.dropped :])

    def mark_logged(self, number: int | None) -> None:
        """Say up to which event the log is written.

        Args:
            number: The last event's number; None where nothing more will be logged.
        """
        self._logged = number
        self._trim()

    def _trim(self) -> None:
        """Let go of what nobody needs any more, and reckon how far the writer may write without a look."""
        if not self.last:
            # Most runs are plain, and write nothing.
            self._look_at = 0 if self._logged is None and not self._holders else min(HIGH_WATER, FLUSH_EVENTS)
            return
        taken, taken_bytes = self.last, self.written_bytes
        for place in self._holders:
            taken = min(taken, place.position)
            taken_bytes = min(taken_bytes, place.taken_bytes)
        logged = self.last if self._logged is None else self._logged
        gone = min(taken, logged) - self.dropped
        if gone > 0:
            del self._frames[:gone]
            self.dropped += gone
        self._full_at = min(taken + HIGH_WATER, logged + LOG_HIGH_WATER)
        self._full_at_bytes = taken_bytes + HIGH_WATER_BYTES
        self._look_at = min(self._full_at, logged + FLUSH_EVENTS)
        if self._logged is None and not self._holders:
            self._look_at = 0
        if self._room is not None:
            self._room.set()

    def _wake(self) -> None:
        for place in self._waiting:
            place.wake()
        self._waiting.clear()


class Place:
    """One reader's place on a tape.

    Attributes:
        position: Number of the last event taken.
        taken_bytes: Bytes of the events up to it, on a tape that is held from its start.
    """

    __slots__ = ("_news", "_tape", "position", "taken_bytes")

    def __init__(self, tape: Tape, position: int) -> None:
        self._tape = tape
        self._news: asyncio.Future[None] | None = None
        self.position = position
        self.taken_bytes = 0

    def take(self) -> list[bytes] | None:
        """Return what is ready, up to about `CHUNK_BYTES`; None where it is gone from here."""
        tape = self._tape
        if self.position >= tape.last:
            return []
        frames = tape.frames_after(self.position)
        if frames:
            self.position += len(frames)
            self.taken_bytes += sum(map(len, frames))
            tape._trim()
        return frames

    async def wait(self) -> None:
        """Wait for something to take or for the end; only one may wait at a time."""
        tape = self._tape
        if self.position >= tape.last and not tape.closed:
            self._news = asyncio.get_running_loop().create_future()
            tape._waiting.add(self)
            await self._news

    def wake(self) -> None:
        """Let the one who waits go on."""
        if self._news is not None and not self._news.done():
            self._news.set_result(None)
