"""The wire events of one run in order, between the run that writes and readers that follow.

The writer waits for the reader who started it (back pressure), so a slow client
slows the agent down instead of filling memory; other readers never slow it, and
turn to the log for what is gone here. Who counts as a reader, and what it means
that the last one leaves, is decided by the run.
"""

from __future__ import annotations

import asyncio
from collections import deque
from itertools import islice

#: Wire events that the first reader may be behind before the run waits for it.
HIGH_WATER = 256
#: Bytes of them, whichever is reached first.
HIGH_WATER_BYTES = 256 * 1024
#: Wire events that may wait for the log before the run waits for it: more only when the database is away.
LOG_HIGH_WATER = 1024
#: Bytes handed over in one write. A reader on a slow line has the stall time for each of them.
CHUNK_BYTES = 32 * 1024


class Tape:
    """Wire events, numbered from 1, kept until the readers that hold it and the log have them."""

    def __init__(self) -> None:
        self._frames: deque[bytes] = deque()
        self._holders: set[Place] = set()
        self._followers: set[Place] = set()
        self._room = asyncio.Event()
        self._logged: int | None = 0
        self.dropped = 0
        self.written_bytes = 0
        self.closed = False
        self.final = b""

    @property
    def last(self) -> int:
        """Number of the last event written; 0 for none."""
        return self.dropped + len(self._frames)

    @property
    def unlogged(self) -> int:
        """Number of events that are not in the log."""
        return 0 if self._logged is None else self.last - self._logged

    def append(self, frames: list[bytes]) -> None:
        """Write wire events and wake the readers.

        Args:
            frames: The events, each whole.
        """
        if frames:
            self._frames.extend(frames)
            self.written_bytes += sum(map(len, frames))
            if self._logged is None and not self._holders:
                # Nobody needs them.
                self._trim()
            self._wake()

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
            self._room.clear()
            await self._room.wait()

    @property
    def is_full(self) -> bool:
        """Whether a reader that holds the tape, or the log, is too far behind."""
        last = self.dropped + len(self._frames)
        if self._logged is not None and last - self._logged >= LOG_HIGH_WATER:
            return True
        for place in self._holders:
            behind = last - place.position
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
        taken: list[bytes] = []
        for frame in islice(self._frames, after - self.dropped, None):
            taken.append(frame)
            size -= len(frame)
            if size <= 0:
                break
        return taken

    def to_log(self) -> tuple[int, tuple[bytes, ...]]:
        """Return the number of the first event that is not in the log, and all from it on."""
        if self._logged is None:
            return self.last + 1, ()
        return self._logged + 1, tuple(islice(self._frames, self._logged - self.dropped, None))

    def mark_logged(self, number: int | None) -> None:
        """Say up to which event the log is written.

        Args:
            number: The last event's number; None where nothing more will be logged.
        """
        self._logged = number
        self._trim()

    def _trim(self) -> None:
        needed = min((place.position for place in self._holders), default=self.last)
        if self._logged is not None:
            needed = min(needed, self._logged)
        while self.dropped < needed:
            self._frames.popleft()
            self.dropped += 1
        self._room.set()

    def _wake(self) -> None:
        for place in self._holders:
            place.news.set()
        for place in self._followers:
            place.news.set()


class Place:
    """One reader's place on a tape.

    Attributes:
        position: Number of the last event taken.
        taken_bytes: Bytes of the events up to it, on a tape that is held from its start.
        news: Set when something was written, or the tape was closed.
    """

    __slots__ = ("_tape", "news", "position", "taken_bytes")

    def __init__(self, tape: Tape, position: int) -> None:
        self._tape = tape
        self.news = asyncio.Event()
        self.position = position
        self.taken_bytes = 0

    def take(self) -> list[bytes] | None:
        """Return what is ready, up to about `CHUNK_BYTES`; None where it is gone from here."""
        self.news.clear()
        frames = self._tape.frames_after(self.position)
        if frames:
            self.position += len(frames)
            for frame in frames:
                self.taken_bytes += len(frame)
            self._tape._trim()
        return frames

    async def wait(self) -> None:
        """Wait for something to take or for the end."""
        if self.position >= self._tape.last and not self._tape.closed:
            await self.news.wait()
