"""The app's own way to the database: a few threads, each with one lasting connection.

A run lives in an event loop and outlives its request, so neither the request's
thread nor its connection is there for it; and a connection for each run would
be one for each open stream. What is done in a call is left to the callers.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

from django.db import DatabaseError, InterfaceError, OperationalError, connections, router

from invocations_app.models import SessionRecord

T = TypeVar("T")

# SQLite lets one connection write at a time: a second thread would only wait for its lock.
_THREADS = {"sqlite": 1}
_THREADS_ELSEWHERE = 4

#: What a database that is away raises; a statement that is wrong raises another DatabaseError.
UNREACHABLE = (OperationalError, InterfaceError)

_lock = threading.Lock()
_executor: ThreadPoolExecutor | None = None
_calls = 0
_closers: list[Callable[[], None]] = []


def alias() -> str:
    """Return the alias of the database that holds the app's tables."""
    return router.db_for_write(SessionRecord)


def _get_executor() -> ThreadPoolExecutor:
    global _executor
    with _lock:
        if _executor is None:
            threads = _THREADS.get(connections[alias()].vendor, _THREADS_ELSEWHERE)
            _executor = ThreadPoolExecutor(threads, thread_name_prefix="invocations-db")
        return _executor


async def run(function: Callable[..., T], *args: Any) -> T:
    """Call a function that uses the ORM, on a database thread.

    Args:
        function: The function; it opens and ends its own transaction.
        *args: Its arguments.

    Returns:
        What it returns.
    """
    result: T = await asyncio.wrap_future(_submit(_call, (function, args)))
    return result


def send(function: Callable[[], Callable[[], None]]) -> None:
    """Call a function on a database thread, without waiting for it.

    Args:
        function: The function, which raises nothing; it returns another one that tells those who wait,
            called when the thread counts as idle again.
    """
    _submit(_call_and_tell, (function,))


def call(function: Callable[..., T], *args: Any) -> T:
    """Call a function that uses the ORM on a database thread, and wait for it.

    Args:
        function: The function; it opens and ends its own transaction.
        *args: Its arguments.

    Returns:
        What it returns.
    """
    result: T = _submit(_call, (function, args)).result()
    return result


def is_idle() -> bool:
    """Return whether the threads have nothing to do."""
    return _calls == 0


def _submit(function: Callable[..., Any], args: tuple[Any, ...]) -> Future[Any]:
    _count(1)
    try:
        future = _get_executor().submit(function, *args)
    except BaseException:
        _count(-1)
        raise
    future.add_done_callback(_count_if_cancelled)
    return future


def _count_if_cancelled(future: Future[Any]) -> None:
    # Cancelled before it began, so it is never made.
    if future.cancelled():
        _count(-1)


def _count(by: int) -> None:
    global _calls
    with _lock:
        _calls += by


def _call(function: Callable[..., T], args: tuple[Any, ...]) -> T:
    try:
        connection = connections[alias()]
        try:
            return function(*args)
        except DatabaseError:
            mend(connection)
            raise
        finally:
            if connection.settings_dict["OPTIONS"].get("pool") and not connection.in_atomic_block:
                # Closing gives it back. Kept by these threads, a small pool would be empty for everybody else.
                with contextlib.suppress(DatabaseError):
                    connection.close()
    finally:
        # Before anybody hears of the result: whoever goes on from it meets an idle thread.
        _count(-1)


def _call_and_tell(function: Callable[[], Callable[[], None]]) -> None:
    _call(function, ())()


def mend(connection: Any) -> None:
    """Close a connection that broke, so that the next call gets a new one; one that is well is kept.

    Args:
        connection: The database thread's connection.
    """
    if not connection.in_atomic_block and not _is_usable(connection):
        with contextlib.suppress(DatabaseError):
            connection.close()


def release_thread() -> None:
    """Close the calling thread's connections, but for those in a transaction.

    For the thread of a request that goes on for long: Django closes its
    connections at the end of the response only, so each open stream would hold one.
    """
    for connection in connections.all(initialized_only=True):
        if not connection.in_atomic_block:
            connection.close()


def _is_usable(connection: Any) -> bool:
    try:
        return connection.connection is not None and bool(connection.is_usable())
    except DatabaseError:
        return False


def at_close(function: Callable[[], None]) -> None:
    """Have something closed together with the connections.

    Args:
        function: Closes it; may be called more than once.
    """
    _closers.append(function)


def close() -> None:
    """Close the connections and end the threads; the next call starts new ones."""
    global _executor
    with _lock:
        executor, _executor = _executor, None
    if executor is not None:
        barrier = threading.Barrier(executor._max_workers)
        for _ in range(executor._max_workers):
            executor.submit(_close_connection, barrier)
        executor.shutdown(wait=True)
    # Last: what these threads were still opening is closed too.
    for closer in _closers:
        closer()


def _close_connection(barrier: threading.Barrier) -> None:
    # Each thread meets the others here, so that each closes its own connection.
    with contextlib.suppress(threading.BrokenBarrierError):
        barrier.wait(timeout=5)
    connections[alias()].close()
