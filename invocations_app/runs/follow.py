"""Following an invocation from any event on, in whichever process it runs.

In the same process straight from the run's tape; elsewhere, and for what is
gone from there, from the log. The last event follows from the record. A
follower never slows a run.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from invocations_app.dialects import get_dialect
from invocations_app.events import Done, Failed
from invocations_app.exceptions import ShuttingDown
from invocations_app.runs.host import get_host
from invocations_app.runs.run import Run
from invocations_app.runs.wakeups import get_wakeups
from invocations_app.storage import event_log, invocations
from invocations_app.storage.invocations import StoredInvocation
from invocations_app.storage.notify import invocation_key

_FIRST_POLL_SECONDS = 0.05
_LONGEST_POLL_SECONDS = 0.5


class Poll:
    """Pauses between two looks at the database: short after news, longer in silence.

    Args:
        pk: Primary key of the record that is looked at.
    """

    def __init__(self, pk: int) -> None:
        self._key = invocation_key(pk)
        self._seconds = _FIRST_POLL_SECONDS

    def reset(self) -> None:
        """Look again soon."""
        self._seconds = _FIRST_POLL_SECONDS

    async def pause(self) -> None:
        """Wait until the next look."""
        await get_wakeups().wait(self._key, self._seconds)
        self._seconds = min(self._seconds * 1.5, _LONGEST_POLL_SECONDS)


def final_frames(stored: StoredInvocation) -> list[bytes]:
    """Return the wire events with which a stream ends that is told from the record alone.

    Args:
        stored: An invocation that has ended.
    """
    encoder = get_dialect(stored.dialect).invocations_from_streaming_run()
    if stored.answer is not None:
        return encoder.encode(Done(stored.answer))
    assert stored.error is not None  # noqa: S101 - it has ended, well or badly
    return encoder.encode(Failed(stored.error))


def whole_frames(stored: StoredInvocation) -> list[bytes]:
    """Return the wire events of a stored answer, but for the last: its text is one piece.

    Args:
        stored: An invocation that has ended.
    """
    return [] if stored.answer is None else get_dialect(stored.dialect).invocations_from_answer(stored.answer)


def event_count(stored: StoredInvocation) -> int:
    """Return the number of an ended invocation's last event.

    Args:
        stored: An invocation that has ended.
    """
    before_last = stored.event_count if stored.stream else len(whole_frames(stored))
    return before_last + len(final_frames(stored))


async def wait_for_end(pk: int) -> StoredInvocation | None:
    """Wait until an invocation has ended, wherever it runs.

    Args:
        pk: Primary key of its record.

    Returns:
        The ended invocation; None where its record is gone.

    Raises:
        ShuttingDown: If it runs elsewhere, and this process is to end.
    """
    poll = Poll(pk)
    while True:
        run = get_host().runs.get(pk)
        if run is not None:
            await asyncio.shield(run.ended)
        stored = await invocations.read(pk)
        if stored is None or stored.has_ended:
            return stored
        if run is None and get_host().closing:
            raise ShuttingDown
        await poll.pause()


class Follower:
    """Yields the wire events of an invocation from a number on, to its end or to that of this process.

    Args:
        pk: Primary key of the invocation's record.
        after: Number of the last event that the reader has.
        trimmed: Makes what a reader gets whose next event is gone from the log, or never was.

    Attributes:
        is_gone: Whether the record went while it was followed: the turn waited in vain.
    """

    def __init__(self, pk: int, after: int, trimmed: Callable[[StoredInvocation], list[bytes]]) -> None:
        self._pk = pk
        self._position = after
        self._trimmed = trimmed
        self._poll = Poll(pk)
        self._over = False
        self.is_gone = False

    async def next(self) -> list[tuple[int, bytes]]:
        """Wait for events; return those that are ready with their numbers, empty at the end.

        May be cancelled while it waits, and called again.
        """
        while not self._over:
            run = get_host().runs.get(self._pk)
            if run is not None and run.invocation.stream:
                ready = await self._from_tape(run)
            else:
                ready = await self._from_log()
            if ready:
                self._poll.reset()
                return ready
        return []

    async def _from_tape(self, run: Run) -> list[tuple[int, bytes]]:
        """Return what the tape has, once it has something; what it has no more comes from the log."""
        tape = run.tape
        frames = tape.frames_after(self._position)
        if frames:
            return self._numbered(frames)
        if frames is None or tape.closed:
            # The last event too is told from the record: there errors have their fixed text.
            return await self._from_log()
        place = tape.follow(self._position)
        try:
            await place.wait()
        finally:
            tape.release(place)
        return []

    async def _from_log(self) -> list[tuple[int, bytes]]:
        # The record first: when it says that the run has ended, the log is complete.
        stored = await invocations.read(self._pk)
        if stored is None:
            self._over = self.is_gone = True
            return []
        if not stored.has_ended:
            logged = await event_log.read(self._pk, self._position)
            return self._advance(logged) if logged else await self._wait()
        if not stored.stream:
            return self._end(whole_frames(stored)[self._position :], stored)
        logged = await event_log.read(self._pk, self._position)
        if logged and logged[0][0] == self._position + 1:
            return self._advance(logged)
        if self._position < stored.event_count:
            return self._reset(stored)
        return self._end([], stored)

    async def _wait(self) -> list[tuple[int, bytes]]:
        host = get_host()
        run = host.runs.get(self._pk)
        if run is None and host.closing:
            # It ends without an end: a client that comes back is served by another process.
            self._over = True
        elif run is not None and not run.invocation.stream:
            await asyncio.shield(run.ended)
        else:
            await self._poll.pause()
        return []

    def _advance(self, numbered: list[tuple[int, bytes]]) -> list[tuple[int, bytes]]:
        self._position = numbered[-1][0]
        return numbered

    def _numbered(self, frames: list[bytes]) -> list[tuple[int, bytes]]:
        return self._advance(list(enumerate(frames, start=self._position + 1)))

    def _end(self, frames: list[bytes], stored: StoredInvocation) -> list[tuple[int, bytes]]:
        self._over = True
        last = event_count(stored)
        if self._position < last:
            return self._numbered(frames + final_frames(stored))
        return [] if self._position == last else self._reset(stored)

    def _reset(self, stored: StoredInvocation) -> list[tuple[int, bytes]]:
        self._over = True
        return [(event_count(stored), frame) for frame in self._trimmed(stored)]
