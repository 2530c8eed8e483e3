"""Threads for the checks of callers: authentication, permissions, throttles.

A thread for each request, as Django has it, would open a connection to the
database for each one too. These last, and some of them keep their connections.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from asgiref.sync import sync_to_async
from django.db import DatabaseError, connections

from invocations_app.storage import database

T = TypeVar("T")

# A check may wait for a service elsewhere, so there may be many of them at once; their connections are not kept then.
_THREADS = 32
_KEEPING = 4

_lock = threading.Lock()
_executor: ThreadPoolExecutor | None = None
# Calls in that executor's threads: to make it takes longer than to use it.
_call_in_thread: Callable[..., Awaitable[Any]] | None = None
_local = threading.local()


async def check(function: Callable[..., T], *args: object) -> T:
    """Call a function that may use the ORM, in the context of the caller.

    Args:
        function: The function.
        *args: Its arguments.

    Returns:
        What it returns.
    """
    result: T = await (_call_in_thread or _start())(function, *args)
    return result


def close() -> None:
    """End the threads and close their connections; the next check starts new ones."""
    global _executor, _call_in_thread
    with _lock:
        executor, _executor, _call_in_thread = _executor, None, None
    if executor is None:
        return
    # Each thread meets the others here, so that each closes its own connections.
    threads = len(executor._threads)
    barrier = threading.Barrier(threads) if threads else None
    for _ in range(threads):
        executor.submit(_close_connections, barrier)
    executor.shutdown(wait=True)


def _start() -> Callable[..., Awaitable[Any]]:
    global _executor, _call_in_thread
    with _lock:
        if _call_in_thread is None:
            started = iter(range(_THREADS))
            _executor = ThreadPoolExecutor(
                _THREADS, thread_name_prefix="invocations-check", initializer=_begin, initargs=(started,)
            )
            _call_in_thread = sync_to_async(_call, thread_sensitive=False, executor=_executor)
        return _call_in_thread


def _begin(started: object) -> None:
    with _lock:
        number = next(started, _THREADS)  # type: ignore[call-overload]
    _local.keeps_connections = number < _KEEPING


def _call(function: Callable[..., T], *args: object) -> T:
    try:
        return function(*args)
    except DatabaseError:
        database.release_thread()
        raise
    finally:
        if not _local.keeps_connections:
            database.release_thread()
        else:
            _give_back()


def _give_back() -> None:
    """Close what goes back to a pool, and what is broken or older than the settings allow."""
    for connection in connections.all(initialized_only=True):
        if connection.in_atomic_block:
            continue
        if connection.settings_dict["OPTIONS"].get("pool") or connection.errors_occurred:
            connection.close()
        elif connection.settings_dict["CONN_MAX_AGE"]:
            connection.close_if_unusable_or_obsolete()


def _close_connections(barrier: threading.Barrier | None) -> None:
    if barrier is not None:
        with contextlib.suppress(threading.BrokenBarrierError):
            barrier.wait(timeout=5)
    connections.close_all()
