"""The time that a run may take."""

from __future__ import annotations

import asyncio


class Limit:
    """Cancels the current task when its time is over: ``asyncio.timeout`` at a third of its cost.

    Args:
        seconds: The time, from now on.
        loop: The running event loop.
    """

    __slots__ = ("_before", "_is_over", "_task", "_timer")

    def __init__(self, seconds: float, loop: asyncio.AbstractEventLoop) -> None:
        task = asyncio.current_task(loop)
        assert task is not None, "A limit is set within a task."  # noqa: S101 - for the type checker
        self._task = task
        self._before = task.cancelling()
        self._is_over = False
        self._timer = loop.call_later(seconds, self._expire)

    def _expire(self) -> None:
        self._is_over = True
        self._task.cancel()

    def end(self) -> bool:
        """Stop counting; return whether the time was over, and nobody else has cancelled the task meanwhile."""
        self._timer.cancel()
        return self._is_over and self._task.uncancel() <= self._before
