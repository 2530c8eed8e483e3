"""The body of a streamed response: what it hands over, silence, and who counts as having left."""

from __future__ import annotations

import asyncio
import gc
import weakref

import pytest

from invocations_app.runs.body import StreamBody
from invocations_app.sse import KEEPALIVE


class Source:
    """A source that a test fills; notes how often its reader left."""

    def __init__(self, *chunks: bytes) -> None:
        self.chunks: asyncio.Queue[bytes | BaseException] = asyncio.Queue()
        for chunk in chunks:
            self.chunks.put_nowait(chunk)
        self.left = 0

    def ready(self) -> bytes | None:
        return None

    async def next(self) -> bytes:
        chunk = await self.chunks.get()
        if isinstance(chunk, BaseException):
            raise chunk
        return chunk

    def leave(self) -> None:
        self.left += 1


def body_of(source: Source, *, keepalive_seconds: float = 0, stall_seconds: float = 5) -> StreamBody:
    return StreamBody(source, keepalive_seconds=keepalive_seconds, stall_seconds=stall_seconds)


async def is_waiting(task: asyncio.Future[bytes]) -> bool:
    await asyncio.sleep(0.01)
    return not task.done()


async def test_body_hands_over_what_the_source_has_and_leaves_it_once() -> None:
    source = Source(b"a", b"b", b"")
    body = body_of(source)
    assert aiter(body) is body
    assert [await anext(body), await anext(body)] == [b"a", b"b"]
    assert source.left == 0
    for _ in range(2):
        with pytest.raises(StopAsyncIteration):
            await anext(body)
    assert source.left == 1


async def test_body_waits_for_what_comes() -> None:
    source = Source()
    waiting = asyncio.ensure_future(anext(body_of(source)))
    assert await is_waiting(waiting)
    source.chunks.put_nowait(b"a")
    assert await asyncio.wait_for(waiting, 1) == b"a"


async def test_silence_gives_comments_and_loses_nothing() -> None:
    source = Source()
    body = body_of(source, keepalive_seconds=0.02)
    assert [await anext(body), await anext(body)] == [KEEPALIVE, KEEPALIVE]
    source.chunks.put_nowait(b"a")
    assert await anext(body) == b"a"
    assert source.left == 0


async def test_silence_is_silent_where_comments_are_off() -> None:
    body = body_of(Source())
    assert await is_waiting(asyncio.ensure_future(anext(body)))


async def test_a_time_out_of_the_sources_own_is_no_silence() -> None:
    source = Source()
    source.chunks.put_nowait(TimeoutError("its own"))
    body = body_of(source, keepalive_seconds=5)
    with pytest.raises(TimeoutError, match="its own"):
        await anext(body)
    assert source.left == 1


async def test_a_source_that_fails_is_left() -> None:
    source = Source()
    source.chunks.put_nowait(RuntimeError("broken"))
    body = body_of(source)
    with pytest.raises(RuntimeError, match="broken"):
        await anext(body)
    assert source.left == 1


async def test_cancelled_body_leaves() -> None:
    source = Source()
    body = body_of(source)
    waiting = asyncio.ensure_future(anext(body))
    assert await is_waiting(waiting)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert source.left == 1


async def test_task_that_ends_between_two_pieces_leaves() -> None:
    source = Source(b"a", b"b")
    body = body_of(source)

    async def send() -> None:
        await anext(body)

    await asyncio.create_task(send())
    await asyncio.sleep(0)
    assert source.left == 1


async def test_sender_that_hangs_is_dropped_and_cancelled() -> None:
    source = Source(b"a")
    body = body_of(source, stall_seconds=0.05)

    async def send() -> None:
        assert await anext(body) == b"a"
        await asyncio.sleep(5)

    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(asyncio.create_task(send()), 2)
    assert source.left == 1


async def test_sender_that_takes_now_and_then_is_kept() -> None:
    source = Source(*[b"a"] * 6)
    body = body_of(source, stall_seconds=0.1)
    for _ in range(6):
        assert await anext(body) == b"a"
        await asyncio.sleep(0.03)
    assert source.left == 0


async def test_waiting_for_the_agent_is_no_stall() -> None:
    source = Source()
    body = body_of(source, stall_seconds=0.02)
    waiting = asyncio.ensure_future(anext(body))
    await asyncio.sleep(0.1)
    assert (waiting.done(), source.left) == (False, 0)
    source.chunks.put_nowait(b"a")
    assert await waiting == b"a"


async def test_body_that_is_first_asked_too_late_is_cut_and_does_not_end_well() -> None:
    source = Source(b"a", b"")
    body = body_of(source, stall_seconds=0.02)
    await asyncio.sleep(0.06)
    assert source.left == 1
    with pytest.raises(asyncio.CancelledError):
        await anext(body)


async def test_leaving_twice_is_leaving_once() -> None:
    source = Source()
    body = body_of(source, stall_seconds=0.02)
    body.leave()
    body.leave()
    await asyncio.sleep(0.05)
    assert source.left == 1
    with pytest.raises(StopAsyncIteration):
        await anext(body)


async def test_body_that_nobody_keeps_leaves() -> None:
    source = Source()
    gone = weakref.ref(body_of(source))
    gc.collect()
    assert gone() is None
    await asyncio.sleep(0)
    assert source.left == 1
