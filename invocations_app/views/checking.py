"""The checks of callers: authentication, permissions, throttles.

They are sync, and may wait, so they are made in threads. A thread for each
request, as Django has it, would open a connection to the database for each one
too. These last, and some of them keep their connections. Where nothing is done
but to look up DRF's token, in a database that can be read without waiting, that
is done where the request is, without a thread.
"""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Awaitable, Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from asgiref.sync import sync_to_async
from django.contrib.auth import get_user_model
from django.db import DatabaseError, connections, router
from django.db.models.query_utils import DeferredAttribute
from django.db.models.signals import post_init, pre_init
from rest_framework.permissions import IsAdminUser, IsAuthenticated, IsAuthenticatedOrReadOnly

from invocations_app.storage import database
from invocations_app.storage.loop_reader import LoopReader, NotHere
from invocations_app.views import tokens

T = TypeVar("T")

# A check may wait for a service elsewhere, so there may be many of them at once; their connections are not kept then.
_THREADS = 32
_KEEPING = 4

_lock = threading.Lock()
_executor: ThreadPoolExecutor | None = None
# Calls in that executor's threads: to make it takes longer than to use it.
_call_in_thread: Callable[..., Awaitable[Any]] | None = None
_local = threading.local()


# What these ask of the user was read with it. Exactly these: a subclass may do anything.
_ASKS_THE_USER = frozenset({IsAuthenticated, IsAdminUser, IsAuthenticatedOrReadOnly})
# What makes a user of a row, and what is asked of one: columns and Django's own, or else the site's code.
_USED_OF_A_USER = ("__init__", "__getattribute__", "from_db", "is_active", "is_authenticated", "is_staff")


async def check(function: Callable[..., T], *args: object, is_lookup: bool = False) -> T:
    """Call a function that may use the ORM, in the context of the caller.

    Args:
        function: The function.
        *args: Its arguments.
        is_lookup: Whether it does nothing that waits but to look up a token, as `only_looks_up` says.

    Returns:
        What it returns.
    """
    if is_lookup:
        with contextlib.suppress(NotHere):
            return _tokens.read(function, *args)
    result: T = await (_call_in_thread or _start())(function, *args)
    return result


def only_looks_up(
    authenticators: Collection[object], permissions: Collection[object], throttles: Collection[object]
) -> bool:
    """Return whether nothing of all this waits but to look up DRF's token and its user.

    Args:
        authenticators: What DRF's request asks who it is.
        permissions: What is asked for permission, but for `AllowAny`.
        throttles: What counts the caller's requests.
    """
    return (
        {type(each) for each in authenticators} == {tokens.QuickTokenAuthentication}
        and _ASKS_THE_USER.issuperset(type(each) for each in permissions)
        and not throttles
        and not _runs_code_of_the_site()
    )


def _runs_code_of_the_site() -> bool:
    """Return whether a user is read, or asked, by more than Django's own code."""
    user = get_user_model()
    heard = any(signal.has_listeners(model) for signal in (pre_init, post_init) for model in (user, tokens.model()))
    return heard or not _is_plain(user)


@functools.cache
def _is_plain(model: type) -> bool:
    for name in _USED_OF_A_USER:
        owner = next((kind for kind in model.__mro__ if name in vars(kind)), object)
        is_own = owner is object or owner.__module__.startswith("django.")
        if not is_own and not isinstance(vars(owner)[name], (DeferredAttribute, bool)):
            return False
    return True


def _database_of_tokens() -> str:
    return router.db_for_read(tokens.model())


_tokens = LoopReader(_database_of_tokens)


def close() -> None:
    """End the threads and close their connections; the next check starts new ones."""
    global _executor, _call_in_thread
    with _lock:
        executor, _executor, _call_in_thread = _executor, None, None
    if executor is None:
        return
    # Each thread meets the others here, so that each closes its own connections; one that is not quite done is not to
    # be joined by another one, which would do so in its place.
    executor._max_workers = threads = len(executor._threads)
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
