"""The tape between a run and its readers, and the body that reads it."""

from __future__ import annotations

import asyncio
import gc

import pytest

from invocations_app.runs.tape import CHUNK_BYTES, HIGH_WATER, FrameStream, Tape
from invocations_app.sse import KEEPALIVE


def frames(*numbers: int) -> list[bytes]:
    return [b"data: %d\n\n" % number for number in numbers]


class Body:
    """A body that reads a tape, and how often its reader was said to have left."""

    def __init__(self, tape: Tape, *, keepalive_seconds: float = 0, stall_seconds: float = 5) -> None:
        self.left = 0
        self._place = tape.attach()
        self._tape = tape
        self.stream: FrameStream | None = FrameStream(
            tape,
            self._place,
            keepalive_seconds=keepalive_seconds,
            stall_seconds=stall_seconds,
            on_leave=self._leave,
        )

    def _leave(self) -> None:
        self.left += 1
        self._tape.detach(self._place)

    async def next(self) -> bytes:
        assert self.stream is not None
        return await anext(self.stream)


def test_reader_takes_all_that_is_ready_in_one_piece() -> None:
    tape = Tape()
    reader = tape.attach()
    tape.append(frames(1, 2))
    tape.append(frames(3))
    assert reader.take() == b"data: 1\n\ndata: 2\n\ndata: 3\n\n"
    assert reader.take() == b""
    assert (tape.last, reader.position) == (3, 3)


def test_piece_ends_with_the_event_that_fills_it() -> None:
    tape = Tape()
    reader = tape.attach()
    big = b"x" * (CHUNK_BYTES - 1)
    tape.append([big, b"y", b"z"])
    assert [reader.take(), reader.take(), reader.take()] == [big + b"y", b"z", b""]


def test_event_larger_than_a_piece_stays_whole() -> None:
    tape = Tape()
    reader = tape.attach()
    tape.append([b"x" * (3 * CHUNK_BYTES), b"y"])
    assert len(reader.take()) == 3 * CHUNK_BYTES
    assert reader.take() == b"y"


def test_readers_have_places_of_their_own() -> None:
    tape = Tape()
    first, second = tape.attach(), tape.attach()
    tape.append(frames(1, 2))
    assert first.take() == b"data: 1\n\ndata: 2\n\n"
    tape.append(frames(3))
    assert second.take() == b"data: 1\n\ndata: 2\n\ndata: 3\n\n"
    assert first.take() == b"data: 3\n\n"


def test_events_go_when_every_reader_has_taken_them() -> None:
    tape = Tape()
    first, second = tape.attach(), tape.attach()
    tape.append(frames(1, 2))
    first.take()
    assert len(tape._frames) == 2
    second.take()
    assert len(tape._frames) == 0
    assert tape.last == 2


def test_events_go_with_the_last_reader_who_wanted_them() -> None:
    tape = Tape()
    reader = tape.attach()
    tape.append(frames(1, 2))
    tape.detach(reader)
    tape.detach(reader)
    assert len(tape._frames) == 0
    assert not tape.has_readers
    tape.append(frames(3))
    assert len(tape._frames) == 0
    assert tape.attach().position == 3


async def test_writer_waits_for_the_slowest_reader() -> None:
    tape = Tape()
    fast, slow = tape.attach(), tape.attach()
    tape.append(frames(*range(HIGH_WATER - 1)))
    await asyncio.wait_for(tape.room(), 1)
    tape.append(frames(HIGH_WATER))
    fast.take()
    waiting = asyncio.create_task(tape.room())
    await asyncio.sleep(0.01)
    assert not waiting.done()
    slow.take()
    await asyncio.wait_for(waiting, 1)


async def test_writer_waits_no_longer_when_the_slow_reader_leaves() -> None:
    tape = Tape()
    slow = tape.attach()
    tape.append(frames(*range(HIGH_WATER)))
    waiting = asyncio.create_task(tape.room())
    await asyncio.sleep(0.01)
    assert not waiting.done()
    tape.detach(slow)
    await asyncio.wait_for(waiting, 1)


async def test_body_ends_with_the_tape_and_says_so_once() -> None:
    tape = Tape()
    body = Body(tape)
    tape.append(frames(1))
    assert await body.next() == b"data: 1\n\n"
    tape.append(frames(2))
    tape.close()
    assert await body.next() == b"data: 2\n\n"
    assert body.left == 0
    for _ in range(2):
        with pytest.raises(StopAsyncIteration):
            await body.next()
    assert body.left == 1


async def test_body_waits_for_what_comes() -> None:
    tape = Tape()
    body = Body(tape)
    waiting = asyncio.create_task(body.next())
    await asyncio.sleep(0.01)
    assert not waiting.done()
    tape.append(frames(1))
    assert await asyncio.wait_for(waiting, 1) == b"data: 1\n\n"


async def test_silence_gives_comments_and_loses_nothing() -> None:
    tape = Tape()
    body = Body(tape, keepalive_seconds=0.02)
    assert [await body.next(), await body.next()] == [KEEPALIVE, KEEPALIVE]
    tape.append(frames(1))
    assert await body.next() == b"data: 1\n\n"


async def test_cancelled_body_leaves() -> None:
    tape = Tape()
    body = Body(tape)
    waiting = asyncio.create_task(body.next())
    await asyncio.sleep(0.01)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert (body.left, tape.has_readers) == (1, False)


async def test_task_that_ends_between_two_pieces_leaves() -> None:
    tape = Tape()
    body = Body(tape)
    tape.append(frames(1))
    await asyncio.create_task(body.next())
    await asyncio.sleep(0)
    assert body.left == 1


async def test_sender_that_hangs_is_dropped_and_cancelled() -> None:
    tape = Tape()
    body = Body(tape, stall_seconds=0.05)
    tape.append(frames(1))

    async def send() -> None:
        assert await body.next() == b"data: 1\n\n"
        await asyncio.sleep(5)

    sending = asyncio.create_task(send())
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(sending, 2)
    assert body.left == 1


async def test_waiting_for_the_agent_is_no_stall() -> None:
    tape = Tape()
    body = Body(tape, stall_seconds=0.02)
    waiting = asyncio.create_task(body.next())
    await asyncio.sleep(0.1)
    assert (waiting.done(), body.left) == (False, 0)
    tape.append(frames(1))
    assert await waiting == b"data: 1\n\n"


async def test_body_that_is_first_asked_too_late_is_cut_and_gives_nothing_wrong() -> None:
    tape = Tape()
    body = Body(tape, stall_seconds=0.02)
    tape.append(frames(1))
    await asyncio.sleep(0.06)
    assert body.left == 1
    tape.append(frames(2))
    tape.close()
    with pytest.raises(asyncio.CancelledError):
        await body.next()


async def test_body_that_nobody_keeps_leaves() -> None:
    tape = Tape()
    body = Body(tape)
    body.stream = None
    gc.collect()
    await asyncio.sleep(0)
    assert body.left == 1
