"""Waiting for a session: in order of arrival, over all processes, without a queue of its own.

The order stands in the records. In one process only the first of those who
wait for a session asks the database; it is woken when a turn of the session
ends here, and asks at intervals for those that end elsewhere.
"""

from __future__ import annotations

import asyncio
import contextlib
from weakref import WeakKeyDictionary

from invocations_app.exceptions import SessionBusy
from invocations_app.runs.settle import whole
from invocations_app.runs.wakeups import get_wakeups
from invocations_app.storage import turns
from invocations_app.storage.database import UNREACHABLE
from invocations_app.storage.notify import session_key
from invocations_app.storage.turns import Turn, Waiting

_FIRST_POLL_SECONDS = 0.02
_LONGEST_POLL_SECONDS = 0.25

_lines: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[int, Line]] = WeakKeyDictionary()


class Line:
    """Those who wait for one session in this process, by the primary key of their record."""

    def __init__(self) -> None:
        self._events: dict[int, asyncio.Event] = {}

    def __bool__(self) -> bool:
        return bool(self._events)

    def enter(self, record_pk: int) -> None:
        """Stand in line; the order is that of the records."""
        self._events[record_pk] = asyncio.Event()

    def leave(self, record_pk: int) -> None:
        """Leave the line, and let the next one know."""
        del self._events[record_pk]
        if self._events:
            self._events[min(self._events)].set()

    def is_first(self, record_pk: int) -> bool:
        """Return whether nobody here is before a record."""
        return min(self._events) == record_pk

    async def move(self, record_pk: int) -> None:
        """Wait until the line has moved up to a record."""
        await self._events[record_pk].wait()
        self._events[record_pk].clear()


async def wait_for_claim(waiting: Waiting, limit_seconds: float | None) -> Turn:
    """Wait until the turn has come, and claim the session.

    Args:
        waiting: The turn that waits.
        limit_seconds: Longest time to wait; None for no limit.

    Raises:
        SessionBusy: If the time is over; the record is taken back.
        RunCancelled: If it was cancelled meanwhile.
        RunInterrupted: If its lease ran out.
    """
    lines = _lines.setdefault(asyncio.get_running_loop(), {})
    line = lines.setdefault(waiting.session_pk, Line())
    line.enter(waiting.record_pk)
    claimed: list[Turn] = []
    try:
        async with asyncio.timeout(limit_seconds) as limit:
            return await _poll(waiting, line, claimed)
    except TimeoutError:
        if not limit.expired():
            raise
        if claimed:
            return claimed[0]
        await turns.give_up(waiting)
        raise SessionBusy from None
    finally:
        line.leave(waiting.record_pk)
        if not line:
            lines.pop(waiting.session_pk, None)


async def _poll(waiting: Waiting, line: Line, claimed: list[Turn]) -> Turn:
    def keep(turn: Turn | None) -> None:
        if turn is not None:
            claimed.append(turn)

    pause = _FIRST_POLL_SECONDS
    while True:
        while not line.is_first(waiting.record_pk):
            await line.move(waiting.record_pk)
            pause = _FIRST_POLL_SECONDS
        # A database that is away for a moment is asked again, for as long as the lease holds.
        with contextlib.suppress(*UNREACHABLE):
            # Not to be cut: a claim that is made just as the waiter gives up would stay.
            await whole(turns.claim(waiting), keep)
        if claimed:
            return claimed[0]
        await get_wakeups().wait(session_key(waiting.session_pk), pause)
        pause = min(pause * 2, _LONGEST_POLL_SECONDS)


def session_is_free(session_pk: int) -> None:
    """Wake the first who waits for a session in this process.

    Args:
        session_pk: Primary key of the session's row.
    """
    get_wakeups().wake(session_key(session_pk))
