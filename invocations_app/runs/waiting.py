"""Waiting for a session: in order of arrival, over all processes, without a queue of its own.

The order stands in the records. In one process only the first of those who
wait for a session asks the database; it is woken when a turn of the session
ends here, and asks at intervals for those that end elsewhere.
"""

from __future__ import annotations

import asyncio
from collections import deque
from weakref import WeakKeyDictionary

from invocations_app.exceptions import SessionBusy
from invocations_app.runs.settle import whole
from invocations_app.storage import turns
from invocations_app.storage.turns import Turn, Waiting

_FIRST_POLL_SECONDS = 0.02
_LONGEST_POLL_SECONDS = 0.25

_lines: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[int, deque[asyncio.Event]]] = WeakKeyDictionary()


async def wait_for_claim(waiting: Waiting, limit_seconds: float | None) -> Turn:
    """Wait until the turn has come, and claim the session.

    Args:
        waiting: The turn that waits.
        limit_seconds: Longest time to wait; None for no limit.

    Raises:
        SessionBusy: If the time is over; the record is taken back.
        RunCancelled: If it was cancelled meanwhile.
        RunInterrupted: If its lease ran out.
        DatabaseError: If the database is not reachable.
    """
    lines = _lines.setdefault(asyncio.get_running_loop(), {})
    line = lines.setdefault(waiting.session_pk, deque())
    wake = asyncio.Event()
    line.append(wake)
    claimed: list[Turn] = []
    try:
        async with asyncio.timeout(limit_seconds) as limit:
            return await _poll(waiting, line, wake, claimed)
    except TimeoutError:
        if not limit.expired():
            raise
        if claimed:
            return claimed[0]
        await turns.give_up(waiting)
        raise SessionBusy from None
    finally:
        line.remove(wake)
        if line:
            line[0].set()
        else:
            lines.pop(waiting.session_pk, None)


async def _poll(waiting: Waiting, line: deque[asyncio.Event], wake: asyncio.Event, claimed: list[Turn]) -> Turn:
    def keep(turn: Turn | None) -> None:
        if turn is not None:
            claimed.append(turn)

    pause = _FIRST_POLL_SECONDS
    while True:
        if line[0] is wake:
            # Not to be cut: a claim that is made just as the waiter gives up would stay.
            await whole(turns.claim(waiting), keep)
            if claimed:
                return claimed[0]
        else:
            pause = _FIRST_POLL_SECONDS
        try:
            async with asyncio.timeout(pause if line[0] is wake else None):
                await wake.wait()
            wake.clear()
            pause = _FIRST_POLL_SECONDS
        except TimeoutError:
            pause = min(pause * 2, _LONGEST_POLL_SECONDS)


def session_is_free(session_pk: int) -> None:
    """Wake the first who waits for a session in this process.

    Args:
        session_pk: Primary key of the session's row.
    """
    line = _lines.get(asyncio.get_running_loop(), {}).get(session_pk)
    if line:
        line[0].set()
