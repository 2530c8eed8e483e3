"""Random digits for ids."""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
import uuid
from multiprocessing.connection import Connection

import pytest

from invocations_app import entropy


def test_digits_are_hexadecimal_and_as_many_as_asked_for() -> None:
    for digits in (1, 16, 20, 32):
        text = entropy.random_hex(digits)
        assert len(text) == digits
        int(text, 16)


def test_no_digits_come_twice_over_many_readings_of_the_system() -> None:
    texts = [entropy.random_hex() for _ in range(2000)]
    assert len(set(texts)) == 2000


def test_threads_never_get_the_same_digits() -> None:
    found: list[list[str]] = [[] for _ in range(4)]

    def take(into: list[str]) -> None:
        into += [entropy.random_hex() for _ in range(2000)]

    threads = [threading.Thread(target=take, args=(into,)) for into in found]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({text for texts in found for text in texts}) == 8000


def test_digits_are_the_systems(monkeypatch: pytest.MonkeyPatch) -> None:
    entropy._pool.clear()
    asked: list[int] = []

    def urandom(size: int) -> bytes:
        asked.append(size)
        return bytes(range(256)) * (size // 256)

    monkeypatch.setattr(os, "urandom", urandom)
    assert entropy.random_hex() == bytes(range(240, 256)).hex()
    assert asked == [4096]
    entropy._pool.clear()


def _tell(connection: Connection) -> None:
    connection.send([entropy.random_hex() for _ in range(3)])


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_process_gets_other_digits() -> None:
    entropy.random_hex()
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe()
    process = context.Process(target=_tell, args=(there,))
    process.start()
    its = here.recv()
    process.join()
    assert not set(its) & {entropy.random_hex() for _ in range(300)}


def test_a_uuid_begins_with_the_time_and_is_random_from_there_on() -> None:
    before = time.time_ns() // 1_000_000
    texts = [entropy.new_uuid() for _ in range(500)]
    after = time.time_ns() // 1_000_000
    assert len({text[15:18] + text[20:] for text in texts}) == 500
    for text in texts:
        read = uuid.UUID(text)
        assert str(read) == text
        assert (read.version, read.variant) == (7, uuid.RFC_4122)
        assert before <= read.int >> 80 <= after
