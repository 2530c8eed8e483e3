"""Transactions that were sent off and cannot be called back."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from invocations_app.storage.certain import SETTLE_SECONDS as _SETTLE_SECONDS
from invocations_app.storage.certain import Certain

T = TypeVar("T")


async def whole(sent_off: Coroutine[Any, Any, T] | asyncio.Future[T], keep: Callable[[T], None]) -> T:
    """Wait for something to its end, even when the one who waits is cancelled.

    Args:
        sent_off: What is waited for; a coroutine runs in a task of its own.
        keep: Called with what it returned, before a cancellation goes on.

    Returns:
        What it returned.

    Raises:
        asyncio.CancelledError: If the caller was cancelled meanwhile; after the end.
    """
    task = sent_off if isinstance(sent_off, Certain) else asyncio.ensure_future(sent_off)
    try:
        result = await (task if isinstance(task, Certain) else asyncio.shield(task))
    except asyncio.CancelledError:
        await settle(task)
        if task.done() and not task.cancelled() and task.exception() is None:
            keep(task.result())
        raise
    keep(result)
    return result


async def settle(future: asyncio.Future[Any]) -> None:
    """Wait until something is done, for 30 seconds at most, whatever becomes of the one who waits.

    Args:
        future: What is waited for; its exception is left in it.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + _SETTLE_SECONDS
    while not future.done() and loop.time() < deadline:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.wait([future], timeout=deadline - loop.time())
