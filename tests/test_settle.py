"""Waiting for what must not be cut: its end is waited for, whatever becomes of the one who waits."""

from __future__ import annotations

import asyncio

import pytest

from invocations_app.runs import settle as module
from invocations_app.runs.settle import settle, whole
from invocations_app.storage import certain
from invocations_app.storage.certain import Certain


class Transaction:
    """Something that takes as long as a test wants, and notes its end."""

    def __init__(self, error: Exception | None = None) -> None:
        self.may_end = asyncio.Event()
        self.begun = asyncio.Event()
        self.ended = False
        self._error = error

    async def run(self) -> str:
        self.begun.set()
        await self.may_end.wait()
        self.ended = True
        if self._error is not None:
            raise self._error
        return "written"


async def test_result_is_kept_and_returned() -> None:
    kept: list[str] = []
    transaction = Transaction()
    transaction.may_end.set()
    assert await whole(transaction.run(), kept.append) == "written"
    assert kept == ["written"]


async def test_exception_is_raised_and_nothing_kept() -> None:
    kept: list[str] = []
    transaction = Transaction(RuntimeError("refused"))
    transaction.may_end.set()
    with pytest.raises(RuntimeError, match="refused"):
        await whole(transaction.run(), kept.append)
    assert kept == []


@pytest.mark.parametrize("times", [1, 3])
async def test_cancellation_waits_for_the_end_and_keeps_the_result(times: int) -> None:
    kept: list[str] = []
    transaction = Transaction()
    waiting = asyncio.create_task(whole(transaction.run(), kept.append))
    await transaction.begun.wait()
    for _ in range(times):
        waiting.cancel()
        await asyncio.sleep(0.01)
    assert not waiting.done()
    transaction.may_end.set()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert (transaction.ended, kept) == (True, ["written"])


async def test_cancellation_goes_on_after_what_failed() -> None:
    kept: list[str] = []
    transaction = Transaction(RuntimeError("refused"))
    waiting = asyncio.create_task(whole(transaction.run(), kept.append))
    await transaction.begun.wait()
    waiting.cancel()
    await asyncio.sleep(0)
    transaction.may_end.set()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert kept == []


async def test_what_never_ends_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_SETTLE_SECONDS", 0.05)
    kept: list[str] = []
    transaction = Transaction()
    waiting = asyncio.create_task(whole(transaction.run(), kept.append))
    await transaction.begun.wait()
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(waiting, 1)
    assert (transaction.ended, kept) == (False, [])
    transaction.may_end.set()
    await asyncio.sleep(0.01)
    assert transaction.ended


async def test_settling_leaves_the_exception_where_it_is() -> None:
    future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    waiting = asyncio.create_task(settle(future))
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.sleep(0.01)
    assert not waiting.done()
    future.set_exception(RuntimeError("refused"))
    await asyncio.wait_for(waiting, 1)
    assert str(future.exception()) == "refused"


async def test_settling_what_is_done_waits_for_nothing() -> None:
    future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    future.set_result(None)
    await asyncio.wait_for(settle(future), 1)


# Futures that cannot be called back


@pytest.mark.parametrize("times", [1, 3])
async def test_a_certain_future_is_waited_for_by_one_who_is_cancelled(times: int) -> None:
    kept: list[str] = []
    future: Certain[str] = Certain()
    waiting = asyncio.create_task(whole(future, kept.append))
    await asyncio.sleep(0)
    for _ in range(times):
        waiting.cancel()
        await asyncio.sleep(0.01)
    assert not waiting.done()
    future.set_result("written")
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert kept == ["written"]
    assert waiting.cancelling() == times


async def test_a_cancellation_goes_on_after_a_certain_future_that_failed() -> None:
    kept: list[str] = []
    future: Certain[str] = Certain()
    waiting = asyncio.create_task(whole(future, kept.append))
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.sleep(0)
    future.set_exception(RuntimeError("refused"))
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert kept == []


async def test_a_certain_future_tells_what_failed() -> None:
    future: Certain[str] = Certain()
    asyncio.get_running_loop().call_soon(future.set_exception, RuntimeError("refused"))
    with pytest.raises(RuntimeError, match="refused"):
        await whole(future, lambda _: None)


async def test_a_certain_future_that_never_ends_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(certain, "SETTLE_SECONDS", 0.05)
    future: Certain[str] = Certain()
    waiting = asyncio.create_task(whole(future, lambda _: None))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert future.cancelled()
