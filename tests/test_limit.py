"""The time that a run may take."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from invocations_app.runs.limit import Limit


async def test_work_in_time_is_left_alone() -> None:
    limit = Limit(0.05, asyncio.get_running_loop())
    await asyncio.sleep(0)
    assert limit.end() is False
    await asyncio.sleep(0.1)


async def test_work_that_takes_longer_is_cancelled_by_the_limit_alone() -> None:
    limit = Limit(0.01, asyncio.get_running_loop())
    with pytest.raises(asyncio.CancelledError):
        await asyncio.sleep(5)
    assert limit.end() is True
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0


async def test_a_cancellation_by_others_is_not_the_limits() -> None:
    ended: list[bool] = []

    async def work() -> None:
        limit = Limit(5, asyncio.get_running_loop())
        try:
            await asyncio.sleep(5)
        finally:
            ended.append(limit.end())

    task = asyncio.create_task(work())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended == [False]


async def test_a_cancellation_by_others_beside_the_limits_goes_on() -> None:
    ended: list[bool] = []

    async def work() -> None:
        limit = Limit(0.01, asyncio.get_running_loop())
        try:
            try:
                await asyncio.sleep(5)
            except asyncio.CancelledError:
                # It does not stop at once, and is cancelled from outside meanwhile.
                await asyncio.sleep(5)
        finally:
            ended.append(limit.end())

    task = asyncio.create_task(work())
    await asyncio.sleep(0.05)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended == [False]
    assert task.cancelling() == 1


async def test_work_that_ends_well_in_spite_of_the_limit_leaves_no_cancellation_behind() -> None:
    limit = Limit(0.01, asyncio.get_running_loop())
    with contextlib.suppress(asyncio.CancelledError):
        await asyncio.sleep(5)
    limit.end()
    await asyncio.sleep(0)
