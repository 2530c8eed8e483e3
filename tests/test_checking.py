"""The threads in which callers are checked: lasting ones, and few connections."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from django.contrib.auth import get_user_model
from django.db import OperationalError, connection

from invocations_app.views import checking

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(autouse=True)
def _fresh_threads() -> Iterator[None]:
    checking.close()
    yield
    checking.close()


def look() -> tuple[threading.Thread, object]:
    """Use the database, and return the thread and its open connection."""
    get_user_model().objects.count()
    return threading.current_thread(), connection.connection


async def settled(threads: int) -> None:
    """Wait until so many threads have nothing to do: one that is not quite done is joined by another one."""
    pool: Any = checking._executor
    while pool._idle_semaphore._value < threads:
        await asyncio.sleep(0.001)


async def test_checks_one_after_the_other_use_one_thread_with_one_connection() -> None:
    seen = set()
    for _ in range(12):
        seen.add(await checking.check(look))
        await settled(1)
    [(thread, used)] = seen
    assert thread.is_alive()
    assert used is not None


async def test_checks_at_once_use_threads_of_their_own_but_few_connections_are_kept() -> None:
    barrier = threading.Barrier(10)

    def meet() -> tuple[threading.Thread, object]:
        seen = look()
        barrier.wait(15)
        return seen

    def is_open() -> bool:
        barrier.wait(15)
        return connection.connection is not None

    seen = await asyncio.gather(*(checking.check(meet) for _ in range(10)))
    assert len({thread for thread, _ in seen}) == 10
    await settled(10)
    assert sum(await asyncio.gather(*(checking.check(is_open) for _ in range(10)))) == 4


async def test_connection_that_broke_is_replaced() -> None:
    def break_it() -> None:
        get_user_model().objects.count()
        connection.connection.close()
        raise OperationalError("away")

    with pytest.raises(OperationalError):
        await checking.check(break_it)
    assert (await checking.check(look))[1] is not None


async def test_check_sees_the_callers_context() -> None:
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable")
    variable.set("mine")
    assert await checking.check(variable.get) == "mine"


async def test_close_ends_the_threads_and_their_connections() -> None:
    thread, used = await checking.check(look)
    await asyncio.to_thread(checking.close)
    assert not thread.is_alive()
    with pytest.raises(connection.Database.ProgrammingError):
        used.execute("SELECT 1")  # type: ignore[attr-defined]
    other, _ = await checking.check(look)
    assert other is not thread
