"""The tape between a run and those who read it: places, back pressure, and what waits for the log."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable

import pytest

from invocations_app.runs.tape import (
    CHUNK_BYTES,
    FLUSH_EVENTS,
    HIGH_WATER,
    HIGH_WATER_BYTES,
    LOG_HIGH_WATER,
    Place,
    Tape,
)


def frames(*numbers: int) -> list[bytes]:
    return [b"data: %d\n\n" % number for number in numbers]


def unlogged_tape() -> Tape:
    """Return a tape whose events never go to a log, so that only readers keep them."""
    tape = Tape()
    tape.mark_logged(None)
    return tape


async def is_waiting(waiting: asyncio.Task[None]) -> bool:
    await asyncio.sleep(0.01)
    return not waiting.done()


# Reading


def test_reader_takes_all_that_is_ready() -> None:
    tape = Tape()
    place = tape.hold()
    tape.append(frames(1, 2))
    tape.append(frames(3))
    assert place.take() == frames(1, 2, 3)
    assert place.take() == []
    assert (tape.last, place.position) == (3, 3)


def test_piece_ends_with_the_event_that_fills_it() -> None:
    tape = Tape()
    place = tape.hold()
    big = b"x" * (CHUNK_BYTES - 1)
    tape.append([big, b"y", b"z"])
    assert [place.take(), place.take(), place.take()] == [[big, b"y"], [b"z"], []]


def test_event_larger_than_a_piece_stays_whole() -> None:
    tape = Tape()
    place = tape.hold()
    tape.append([b"x" * (3 * CHUNK_BYTES), b"y"])
    assert [place.take(), place.take()] == [[b"x" * (3 * CHUNK_BYTES)], [b"y"]]


def test_readers_have_places_of_their_own() -> None:
    tape = Tape()
    first, second = tape.hold(), tape.follow(1)
    tape.append(frames(1, 2))
    assert first.take() == frames(1, 2)
    tape.append(frames(3))
    assert second.take() == frames(2, 3)
    assert first.take() == frames(3)


@pytest.mark.parametrize("after", range(4))
def test_follower_begins_after_any_event(after: int) -> None:
    tape = Tape()
    tape.append(frames(1, 2, 3))
    assert tape.follow(after).take() == frames(1, 2, 3)[after:]


def test_follower_ahead_of_the_tape_gets_what_is_new_to_it() -> None:
    tape = Tape()
    place = tape.follow(2)
    tape.append(frames(1, 2))
    assert place.take() == []
    tape.append(frames(3))
    assert place.take() == frames(3)


@pytest.mark.parametrize("attach", [lambda tape: tape.hold(), lambda tape: tape.follow(0)], ids=["holder", "follower"])
async def test_reader_waits_for_what_comes(attach: Callable[[Tape], Place]) -> None:
    tape = Tape()
    place = attach(tape)
    waiting = asyncio.create_task(place.wait())
    assert await is_waiting(waiting)
    tape.append(frames(1))
    await asyncio.wait_for(waiting, 1)
    assert place.take() == frames(1)
    assert await is_waiting(asyncio.create_task(place.wait()))


async def test_reader_who_has_not_taken_all_does_not_wait() -> None:
    tape = Tape()
    place = tape.hold()
    tape.append([b"x" * CHUNK_BYTES, b"y"])
    place.take()
    await asyncio.wait_for(place.wait(), 1)
    assert place.take() == [b"y"]


async def test_end_wakes_all_and_gives_the_last_event_to_the_holder() -> None:
    tape = Tape()
    places = [tape.hold(), tape.follow(0)]
    waiting = [asyncio.create_task(place.wait()) for place in places]
    await asyncio.sleep(0.01)
    tape.close([b"data: [DONE]\n", b"\n"])
    await asyncio.wait_for(asyncio.gather(*waiting), 1)
    assert (tape.closed, tape.final, tape.last) == (True, b"data: [DONE]\n\n", 0)
    assert [place.take() for place in places] == [[], []]
    await asyncio.wait_for(places[0].wait(), 1)


async def test_nothing_written_wakes_nobody() -> None:
    tape = Tape()
    waiting = asyncio.create_task(tape.hold().wait())
    assert await is_waiting(waiting)
    assert not tape.append([])
    assert await is_waiting(waiting)
    assert tape.last == 0


async def test_reader_whose_wait_was_cancelled_waits_again() -> None:
    tape = Tape()
    place = tape.hold()
    given_up = asyncio.create_task(place.wait())
    assert await is_waiting(given_up)
    given_up.cancel()
    waiting = asyncio.create_task(place.wait())
    assert await is_waiting(waiting)
    tape.append(frames(1))
    await asyncio.wait_for(waiting, 1)
    assert place.take() == frames(1)


async def test_news_wake_every_reader_who_waits() -> None:
    tape = Tape()
    waiting = [asyncio.create_task(place.wait()) for place in (tape.hold(), tape.hold(), tape.follow(0))]
    await asyncio.sleep(0.01)
    tape.append(frames(1))
    await asyncio.wait_for(asyncio.gather(*waiting), 1)


# What is kept


def test_events_go_when_every_holder_and_the_log_have_them() -> None:
    tape = Tape()
    first, second = tape.hold(), tape.hold()
    tape.append(frames(1, 2))
    first.take()
    second.take()
    assert (tape.dropped, tape.unlogged) == (0, 2)
    tape.mark_logged(1)
    assert (tape.dropped, tape.unlogged) == (1, 1)
    tape.mark_logged(2)
    assert (tape.dropped, tape.unlogged, tape.last) == (2, 0, 2)


def test_logged_events_stay_for_the_holder() -> None:
    tape = Tape()
    place = tape.hold()
    tape.append(frames(1, 2))
    tape.mark_logged(2)
    assert tape.dropped == 0
    assert place.take() == frames(1, 2)
    assert tape.dropped == 2


def test_events_go_with_the_last_holder_who_wanted_them() -> None:
    tape = unlogged_tape()
    place = tape.hold()
    tape.append(frames(1, 2))
    tape.release(place)
    tape.release(place)
    assert tape.dropped == 2
    tape.append(frames(3))
    assert (tape.dropped, tape.last) == (3, 3)


def test_follower_keeps_nothing_and_is_told_what_is_gone() -> None:
    tape = unlogged_tape()
    place = tape.follow(0)
    tape.append(frames(1, 2))
    assert tape.dropped == 2
    assert place.take() is None
    assert place.position == 0
    assert (tape.frames_after(1), tape.frames_after(2), tape.frames_after(9)) == (None, [], [])


def test_late_holder_begins_at_what_is_left() -> None:
    tape = Tape()
    tape.append(frames(1, 2, 3))
    tape.mark_logged(1)
    place = tape.hold()
    assert place.position == 1
    assert place.take() == frames(2, 3)


# The log


def test_log_gets_each_event_once_with_its_number() -> None:
    tape = Tape()
    assert tape.to_log() == (1, ())
    tape.append(frames(1, 2))
    assert tape.to_log() == (1, tuple(frames(1, 2)))
    tape.append(frames(3))
    tape.mark_logged(2)
    assert tape.to_log() == (3, tuple(frames(3)))
    tape.mark_logged(3)
    assert tape.to_log() == (4, ())


def test_log_gets_what_a_slow_holder_still_keeps_no_second_time() -> None:
    tape = Tape()
    tape.hold()
    tape.append(frames(1, 2))
    tape.mark_logged(2)
    tape.append(frames(3))
    assert (tape.to_log(), tape.unlogged) == ((3, tuple(frames(3))), 1)


def test_nothing_is_for_the_log_any_more_once_it_is_given_up() -> None:
    tape = Tape()
    tape.append(frames(1, 2))
    tape.mark_logged(None)
    assert (tape.to_log(), tape.unlogged, tape.dropped) == ((3, ()), 0, 2)


# Back pressure


async def test_writer_waits_for_the_slowest_holder() -> None:
    tape = unlogged_tape()
    fast, slow = tape.hold(), tape.hold()
    tape.append(frames(*range(HIGH_WATER - 1)))
    await asyncio.wait_for(tape.room(), 1)
    tape.append(frames(HIGH_WATER))
    fast.take()
    waiting = asyncio.create_task(tape.room())
    assert await is_waiting(waiting)
    slow.take()
    await asyncio.wait_for(waiting, 1)


async def test_writer_waits_for_a_holder_with_many_bytes_to_take() -> None:
    tape = unlogged_tape()
    slow = tape.hold()
    tape.append([b"x" * (HIGH_WATER_BYTES // 2)] * 2)
    waiting = asyncio.create_task(tape.room())
    assert await is_waiting(waiting)
    slow.take()
    await asyncio.wait_for(waiting, 1)
    tape.append([b"x" * (HIGH_WATER_BYTES // 2 - 1)])
    await asyncio.wait_for(tape.room(), 1)


async def test_writer_waits_no_longer_when_the_slow_holder_leaves() -> None:
    tape = unlogged_tape()
    slow = tape.hold()
    tape.append(frames(*range(HIGH_WATER)))
    waiting = asyncio.create_task(tape.room())
    assert await is_waiting(waiting)
    tape.release(slow)
    await asyncio.wait_for(waiting, 1)


async def test_writer_does_not_wait_for_followers() -> None:
    tape = Tape()
    tape.follow(0)
    tape.append(frames(*range(2 * HIGH_WATER)))
    await asyncio.wait_for(tape.room(), 1)


def test_writer_is_told_when_somebody_is_behind() -> None:
    tape = Tape()
    place = tape.hold()
    assert not tape.append(frames(*range(FLUSH_EVENTS - 1)))
    assert not tape.is_log_due
    assert tape.append(frames(FLUSH_EVENTS))
    assert (tape.is_log_due, tape.is_full) == (True, True)
    place.take()
    assert not tape.is_full
    told = [tape.append(frames(1)) for _ in range(100)]
    assert (told[0], tape.is_log_due, 3 <= sum(told) <= 5) == (True, True, True)
    place.take()
    tape.append(frames(*range(FLUSH_EVENTS)))
    tape.mark_logged(tape.last)
    assert tape.append(frames(1))
    assert (tape.is_log_due, tape.is_full) == (False, True)
    place.take()
    assert not tape.append(frames(1))
    assert tape.append([b"x" * HIGH_WATER_BYTES])
    assert tape.is_full


@pytest.mark.parametrize("seed", range(20))
def test_nobody_is_ever_behind_without_the_writer_being_told(seed: int) -> None:
    chance = random.Random(seed)
    tape = Tape()
    places = [tape.hold()]
    asked_at = 0
    for _ in range(2000):
        told = tape.append([b"x" * chance.choice([20, 20, 20, HIGH_WATER_BYTES // 20])] * chance.randrange(6))
        assert told or not tape.is_full
        asked_at = tape.last if told or not tape.is_log_due else asked_at
        assert tape.last - asked_at < 40
        deed = chance.randrange(60)
        if deed < 10 and places:
            chance.choice(places).take()
        elif deed == 10:
            places.append(tape.hold())
        elif deed == 11 and len(places) > 1:
            tape.release(places.pop())
        elif deed == 12 and tape.unlogged:
            first, unlogged = tape.to_log()
            tape.mark_logged(first + chance.randrange(len(unlogged)))
    tape.mark_logged(None)
    assert tape.append(frames(*range(HIGH_WATER)))


@pytest.mark.parametrize("logged", [1, None])
async def test_writer_waits_for_a_log_that_is_far_behind(logged: int | None) -> None:
    tape = Tape()
    tape.append(frames(*range(LOG_HIGH_WATER - 1)))
    await asyncio.wait_for(tape.room(), 1)
    tape.append(frames(LOG_HIGH_WATER))
    waiting = asyncio.create_task(tape.room())
    assert await is_waiting(waiting)
    tape.mark_logged(logged)
    await asyncio.wait_for(waiting, 1)
