"""Readers who read slowly, or not at all: over uvicorn and over raw ASGI."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from typing import Any

import django
import pytest
from django.http import HttpResponse
from django.utils.decorators import async_only_middleware
from pytest_django import Settings

from invocations_app.models import InvocationRecord, SessionRecord
from invocations_app.runs.host import live_runs
from invocations_app.runs.tape import CHUNK_BYTES, HIGH_WATER_BYTES
from tests import fakes
from tests.server import AsgiCall, Call, Wire, every_handler, every_loop, wait_until

STREAMED = {"message": "hi", "stream": True, "session_id": "s1"}
PIECE = "x" * 8192
MANY = 300
# What lies between agent and reader: uvicorn's and the kernel's buffers, and the write that waits.
ON_THE_WAY = (64 * 1024 + 2 * CHUNK_BYTES + 64 * 1024) // len(PIECE)
WHOLE = b"data: " + PIECE.encode() + b"\n\n"
BEHIND = HIGH_WATER_BYTES // len(WHOLE)


@pytest.fixture
def start(wire: Wire, settings: Settings) -> Callable[..., Call]:
    """Start a long answer to a reader who stops reading after the first piece."""

    def start(**keys: Any) -> Call:
        settings.INVOCATIONS = {"default": {"TARGET": "tests.fakes.build_scripted", **keys}}
        long: list[fakes.Step] = []
        for number in range(MANY):
            long += [PIECE, lambda number=number: fakes.notes.append(number)]  # type: ignore[misc]
        fakes.script(["first", fakes.gate("held"), *long])
        call = wire.post(STREAMED)
        assert call.event() == b"data: first\n\n"
        call.hold()
        fakes.gate("held").open()
        return call

    return start


@every_loop
def test_reader_who_does_not_read_slows_the_agent_down(wire: Wire, start: Callable[..., Call]) -> None:
    call = start()
    wire.server.wait_blocked(0.15)
    produced = len(fakes.notes)
    assert BEHIND <= produced <= BEHIND + 1 + ON_THE_WAY
    (run,) = live_runs()
    # What was taken may still wait for the log.
    assert len(run.tape._frames) <= BEHIND + 1 + ON_THE_WAY
    time.sleep(0.1)
    assert len(fakes.notes) == produced
    if isinstance(call, AsgiCall):
        call.release()
    assert call.rest() == WHOLE * MANY + b"data: [DONE]\n\n"
    assert InvocationRecord.objects.get().status == "succeeded"


@every_handler
def test_reader_who_reads_slowly_gets_everything(wire: Wire, start: Callable[..., Call]) -> None:
    call = start(READER_STALL_SECONDS=0.7)
    if isinstance(call, AsgiCall):
        # Each message is taken, but late.
        for _ in range(4):
            time.sleep(0.2)
            call.release()
            call.hold()
        call.release()
    else:
        for _ in range(12):
            time.sleep(0.06)
            assert [call.event(), call.event()] == [WHOLE, WHOLE]
    assert call.rest().endswith(WHOLE * (MANY - 24) + b"data: [DONE]\n\n")
    assert call.complete


@every_loop
@pytest.mark.parametrize(("mode", "status"), [("continue", "succeeded"), ("cancel", "cancelled")])
def test_reader_who_takes_nothing_counts_as_having_left(
    wire: Wire, start: Callable[..., Call], mode: str, status: str
) -> None:
    call = start(READER_STALL_SECONDS=0.25, ON_DISCONNECT=mode)
    wire.server.wait_blocked()
    assert all(run._readers == 1 for run in live_runs())
    wire.server.wait_unread()
    wire.server.wait_idle()
    assert InvocationRecord.objects.get().status == status
    session = SessionRecord.objects.get()
    assert (session.message_count, session.claimed_by) == ({"continue": 2, "cancel": 0}[mode], None)
    if isinstance(call, AsgiCall):
        # The site has returned, so the server closes the connection.
        assert call.ended.done()
    body = call.rest()
    assert not call.complete
    assert b"[DONE]" not in body
    assert b"event:" not in body


@every_handler
def test_stalled_reader_is_no_error_in_the_log(
    wire: Wire, start: Callable[..., Call], caplog: pytest.LogCaptureFixture
) -> None:
    start(READER_STALL_SECONDS=0.25)
    wire.server.wait_unread()
    wire.server.wait_idle()
    # uvicorn's own word for an answer that was cut off.
    expected = [] if wire.is_raw else ["ASGI callable returned without completing response."]
    if django.VERSION >= (6, 0) and not wire.is_raw and not wire.server.is_own:
        # Its handler runs in the server's own task, whose end by a cut is told so.
        expected = ["Exception in ASGI application\n"]
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == expected


@every_handler
def test_silent_agent_is_no_stalled_reader(wire: Wire, settings: Settings) -> None:
    settings.INVOCATIONS = {
        "default": {"TARGET": "tests.fakes.build_scripted", "READER_STALL_SECONDS": 0.1, "ON_DISCONNECT": "cancel"}
    }
    fakes.script(["a", fakes.gate(), "b"])
    call = wire.post(STREAMED)
    assert call.event() == b"data: a\n\n"
    assert call.is_silent(0.3)
    fakes.gate().open()
    assert call.rest() == b"data: b\n\ndata: [DONE]\n\n"


def test_one_slow_reader_does_not_slow_the_others(wire: Wire, start: Callable[..., Call]) -> None:
    start()
    wire.server.wait_blocked()
    fakes.script(["pong"])
    assert wire.post({"message": "hi", "stream": True}).rest() == b"data: pong\n\ndata: [DONE]\n\n"


# Responses that nobody reads


@async_only_middleware
def replacing(get_response: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Answer something else than the view did."""

    async def middleware(request: Any) -> Any:
        await get_response(request)
        return HttpResponse(b"replaced")

    return middleware


@pytest.mark.parametrize(("mode", "status"), [("continue", "succeeded"), ("cancel", "cancelled")])
def test_response_that_a_middleware_throws_away_counts_as_left(
    wire: Wire, settings: Settings, mode: str, status: str
) -> None:
    settings.MIDDLEWARE = ["tests.test_backpressure.replacing", *settings.MIDDLEWARE]
    settings.INVOCATIONS = {
        "default": {"TARGET": "tests.fakes.build_scripted", "READER_STALL_SECONDS": 0.3, "ON_DISCONNECT": mode}
    }
    fakes.script([fakes.gate(), "pong"])
    assert wire.post(STREAMED).rest() == b"replaced"
    wire.server.wait_unread()
    if mode == "continue":
        fakes.gate().open()
    # Whether somebody waits elsewhere is looked up first; then it ends although the gate stays shut.
    wire.server.wait_idle()
    assert InvocationRecord.objects.get().status == status


@async_only_middleware
def dawdling(get_response: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Keep a response back for longer than a reader may stall."""

    async def middleware(request: Any) -> Any:
        response = await get_response(request)
        await fakes.gate("middleware").pass_through()
        return response

    return middleware


def test_response_that_was_kept_back_too_long_is_cut_and_never_wrong(wire: Wire, settings: Settings) -> None:
    settings.MIDDLEWARE = ["tests.test_backpressure.dawdling", *settings.MIDDLEWARE]
    settings.INVOCATIONS = {"default": {"TARGET": "tests.fakes.build_scripted", "READER_STALL_SECONDS": 0.1}}
    fakes.script(["a", fakes.gate(), "b"])
    call = wire.post(STREAMED)
    assert fakes.gate().reached.wait(2)
    wire.server.wait_unread()
    fakes.gate().open()
    wait_until(lambda: not live_runs(), "the run's end")
    fakes.gate("middleware").open()
    assert call.rest() == b""
    assert not call.complete
    assert json.loads(InvocationRecord.objects.get().answer)["text"] == "ab"
