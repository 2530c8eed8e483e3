"""Streamed answers on the wire, to the byte: over uvicorn on a socket and over raw ASGI."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator
from typing import Any

import django
import pytest
from agent_framework import AgentResponse, AgentResponseUpdate, Content, ResponseStream
from django.db import DatabaseError
from pytest_django import Settings

from invocations_app.models import InvocationRecord, SessionRecord
from invocations_app.storage import endings
from tests import fakes
from tests.alone import replace_commit
from tests.frames import read_events, read_text
from tests.server import SocketCall, Wire, every_loop, server_process

ONE = {"message": "hi", "stream": True}
PLAIN = {"message": "hi"}
IN_SESSION = {"message": "hi", "stream": True, "session_id": "s1"}
FAILED = b"event: error\ndata: Agent invocation failed.\n\n"


def endpoint(target: str = "tests.fakes.build_scripted", **keys: Any) -> dict[str, Any]:
    return {"default": {"TARGET": target, **keys}}


@pytest.fixture(autouse=True)
def _endpoint(settings: Settings) -> None:
    settings.INVOCATIONS = endpoint()


def the_record() -> InvocationRecord:
    return InvocationRecord.objects.get()


# What a stream is


@every_loop
def test_stream_is_one_event_a_piece_and_the_terminator(wire: Wire) -> None:
    fakes.script(["hel", "lo"])
    call = wire.post(ONE).head()
    assert call.status == 200
    assert call.rest() == b"data: hel\n\ndata: lo\n\ndata: [DONE]\n\n"
    assert call.complete


def test_stream_headers_are_the_contracts_and_no_more(wire: Wire) -> None:
    fakes.script(["hel", "lo"])
    call = wire.post(IN_SESSION, {"x-agent-invocation-id": "i-1"}).head()
    ours = {name: value for name, value in call.headers if name not in {"date", "server", "transfer-encoding"}}
    assert ours == {
        "content-type": "text/event-stream; charset=utf-8",
        "cache-control": "no-cache, no-transform",
        "x-accel-buffering": "no",
        "x-agent-invocation-id": "i-1",
        "x-agent-session-id": "s1",
        "vary": "Cookie",  # the site's session middleware, as DRF's session authentication has asked for the user
    }
    call.rest()


def test_gzip_middleware_does_not_hold_events_back(wire: Wire, settings: Settings) -> None:
    settings.MIDDLEWARE = ["django.middleware.gzip.GZipMiddleware", *settings.MIDDLEWARE]
    fakes.script(["first", fakes.gate(), "second"])
    call = wire.post(ONE, {"accept-encoding": "gzip"}).head()
    if django.VERSION < (6, 0):
        assert call.header("content-encoding") == "identity"
        assert call.event() == b"data: first\n\n"
    fakes.gate().open()
    call.rest()
    assert call.complete


@every_loop
def test_first_piece_arrives_before_the_second_is_produced(wire: Wire) -> None:
    fakes.script(["first", fakes.gate(), lambda: fakes.notes.append("second"), "second"])
    call = wire.post(ONE)
    assert call.event() == b"data: first\n\n"
    assert fakes.notes == []
    fakes.gate().open()
    assert call.rest() == b"data: second\n\ndata: [DONE]\n\n"


def test_headers_arrive_before_the_first_piece_is_produced(wire: Wire) -> None:
    fakes.script([fakes.gate(), "late"])
    call = wire.post(ONE).head()
    assert call.status == 200
    assert call.is_silent(0.05)
    fakes.gate().open()
    assert call.rest() == b"data: late\n\ndata: [DONE]\n\n"


def test_stream_read_byte_by_byte_is_the_same(wire: Wire) -> None:
    fakes.script(["a\r", "\nb", "\u2028é\n", "[DONE]", ""])
    options: dict[str, Any] = {} if wire.is_raw else {"bite": 1}
    body = wire.post(ONE, **options).rest()
    assert (
        body
        == "data: a\ndata: \n\ndata: b\n\ndata: \u2028é\ndata: \n\ndata: [\n\ndata: DONE]\n\ndata: [DONE]\n\n".encode()
    )
    assert read_text([body[index : index + 1] for index in range(len(body))]) == "a\nb\u2028é\n[DONE]"


@pytest.mark.parametrize(
    "pieces",
    [
        ["[DONE]"],
        ["[", "DONE]"],
        [" leading", "  blanks", ": not a comment", "event: no field"],
        ["日本語 ", "🐟", "\u0085\x0b\x0c\u2029"],
        ["half \ud83d", "\udc1f"],
        ["\n\n", "\r\r\n", "\r", "\n", "x"],
    ],
    ids=["terminator", "terminator cut", "fields", "unicode", "surrogates", "line ends"],
)
def test_every_text_comes_back_whole(wire: Wire, pieces: list[str]) -> None:
    fakes.script(pieces)
    text = "".join(pieces).replace("\r\n", "\n").replace("\r", "\n")
    text = "".join("\ufffd" if 0xD800 <= ord(character) < 0xE000 else character for character in text)
    assert read_text(wire.post(ONE).rest()) == text


def test_plain_answer_equals_the_stream(wire: Wire) -> None:
    fakes.script(["hel", "lo ", "日本"])
    call = wire.post({"message": "hi", "session_id": "s1"}).head()
    assert call.rest() == '{"response":"hello 日本","session_id":"s1"}'.encode()
    assert (call.status, call.header("content-type")) == (200, "application/json")
    assert call.complete


def test_empty_pieces_send_nothing(wire: Wire) -> None:
    fakes.script(["", "a", "", fakes.usage(1, 2), "b", ""])
    assert wire.post(ONE).rest() == b"data: a\n\ndata: b\n\ndata: [DONE]\n\n"


def test_answer_without_text_is_the_terminator_alone(wire: Wire) -> None:
    fakes.script([])
    assert wire.post(ONE).rest() == b"data: [DONE]\n\n"


def test_many_pieces_in_few_writes_stay_many_events(wire: Wire) -> None:
    fakes.script([f"{number} " for number in range(500)])
    body = wire.post(ONE).rest()
    assert [event.data for event in read_events(body)] == [*[f"{number} " for number in range(500)], "[DONE]"]


def test_plain_generator_of_a_custom_agent_streams_and_is_closed(wire: Wire, settings: Settings) -> None:
    settings.INVOCATIONS = endpoint("tests.fakes.build_custom_scripted")
    fakes.script(["hel", "lo"])
    assert wire.post(ONE).rest() == b"data: hel\n\ndata: lo\n\ndata: [DONE]\n\n"
    assert fakes.notes == ["custom stream closed"]


@pytest.mark.slow
@pytest.mark.timeout(60)
@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
def test_uvicorn_in_a_process_of_its_own_streams(loop: str) -> None:
    with server_process({"INVOCATIONS": endpoint("tests.fakes.build_pieces")}, loop=loop) as port:
        call = SocketCall(port, "/invocations/invoke", json.dumps(ONE).encode(), seconds=30)
        assert call.rest() == b"data: hel\n\ndata: lo\n\ndata: [DONE]\n\n"
        call.close()
    assert the_record().status == "succeeded"


# The end


@every_loop
def test_terminator_comes_after_the_commit(wire: Wire) -> None:
    fakes.script(["pong"])
    call = wire.post(IN_SESSION)
    assert call.event() == b"data: pong\n\n"
    assert call.event() == b"data: [DONE]\n\n"
    assert the_record().status == "succeeded"
    assert SessionRecord.objects.get().message_count == 2
    assert call.rest() == b""


@pytest.fixture
def held_commit(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Commits wait for this event."""
    may_commit = threading.Event()
    commit = endings.commit_now

    def hold(*args: Any) -> None:
        assert may_commit.wait(4)
        commit(*args)

    replace_commit(monkeypatch, hold)
    return may_commit


def test_no_terminator_while_the_commit_waits(wire: Wire, held_commit: threading.Event) -> None:
    fakes.script(["pong"])
    call = wire.post(IN_SESSION)
    assert call.event() == b"data: pong\n\n"
    assert call.is_silent(0.1)
    held_commit.set()
    assert call.rest() == b"data: [DONE]\n\n"


def test_no_plain_answer_while_the_commit_waits(wire: Wire, held_commit: threading.Event) -> None:
    fakes.script(["pong"])
    call = wire.post(PLAIN)
    assert call.is_silent(0.1)
    held_commit.set()
    assert call.rest() == b'{"response":"pong","session_id":null}'


@every_loop
def test_failure_midway_is_an_error_event_and_no_terminator(wire: Wire) -> None:
    fakes.script(["par", RuntimeError("the model's secret"), "never"])
    call = wire.post(IN_SESSION)
    assert call.rest() == b"data: par\n\n" + FAILED
    assert (call.status, call.complete) == (200, True)
    assert (the_record().status, the_record().error_code) == ("failed", "invocation_failed")
    assert SessionRecord.objects.get().message_count == 0
    assert SessionRecord.objects.get().claimed_by is None


def test_failure_before_the_first_piece_is_an_error_event(wire: Wire) -> None:
    fakes.script([RuntimeError("no")])
    call = wire.post(ONE)
    assert call.rest() == FAILED
    assert call.status == 200


class FailingAtTheEnd(fakes.CustomAgent):
    """An agent whose stream cannot be finalized."""

    def run(self, messages: Any = None, *, stream: bool = False, session: Any = None) -> Any:
        def fail(updates: Any) -> AgentResponse:
            fakes.notes.append("finalized")
            raise RuntimeError("no final response")

        return ResponseStream(super()._stream(messages), finalizer=fail)


def build_failing_at_the_end() -> FailingAtTheEnd:
    return FailingAtTheEnd(fakes.scripted)


def test_failure_while_finalizing_is_an_error_event(wire: Wire, settings: Settings) -> None:
    settings.INVOCATIONS = endpoint("tests.test_streaming.build_failing_at_the_end")
    fakes.script(["all of it"])
    assert wire.post(IN_SESSION).rest() == b"data: all of it\n\n" + FAILED
    assert fakes.notes.count("finalized") == 1
    assert the_record().status == "failed"


@pytest.mark.parametrize("error", [DatabaseError("gone"), TypeError("not JSON")])
def test_failure_of_the_commit_is_an_error_event(wire: Wire, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def refuse(*args: Any) -> None:
        raise error

    replace_commit(monkeypatch, refuse)
    fakes.script(["all of it"])
    assert wire.post(IN_SESSION).rest() == b"data: all of it\n\n" + FAILED
    assert the_record().status == "failed"
    assert SessionRecord.objects.get().claimed_by is None


def test_failure_of_the_commit_is_a_500_without_stream(wire: Wire, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any) -> None:
        raise DatabaseError("gone")

    replace_commit(monkeypatch, refuse)
    fakes.script(["all of it"])
    call = wire.post(PLAIN)
    assert call.rest() == b'{"error":"Agent invocation failed."}'
    assert call.status == 500


# Silence


@every_loop
def test_silence_sends_comments_and_text_none(wire: Wire, settings: Settings) -> None:
    settings.INVOCATIONS = endpoint(KEEPALIVE_SECONDS=0.05)
    fakes.script(["a", fakes.gate(), "b"])
    call = wire.post(ONE)
    assert [call.event() for _ in range(3)] == [b"data: a\n\n", b": keep-alive\n\n", b": keep-alive\n\n"]
    fakes.gate().open()
    rest = call.rest().replace(b": keep-alive\n\n", b"")
    assert rest == b"data: b\n\ndata: [DONE]\n\n"


def test_silence_before_the_first_piece_sends_comments(wire: Wire, settings: Settings) -> None:
    settings.INVOCATIONS = endpoint(KEEPALIVE_SECONDS=0.05)
    fakes.script([fakes.gate(), "b"])
    call = wire.post(ONE)
    assert call.event() == b": keep-alive\n\n"
    fakes.gate().open()
    assert call.rest().endswith(b"data: b\n\ndata: [DONE]\n\n")


@pytest.mark.parametrize("seconds", [0, 15])
def test_no_comments_before_their_time(wire: Wire, settings: Settings, seconds: float) -> None:
    settings.INVOCATIONS = endpoint(KEEPALIVE_SECONDS=seconds)
    fakes.script([fakes.gate(), "b"])
    call = wire.post(ONE).head()
    assert call.is_silent(0.15)
    fakes.gate().open()
    assert call.rest() == b"data: b\n\ndata: [DONE]\n\n"


# The time limit


@every_loop
def test_streamed_run_that_takes_too_long_ends_with_an_error_event(wire: Wire, settings: Settings) -> None:
    settings.INVOCATIONS = endpoint(RUN_TIMEOUT_SECONDS=0.1)
    fakes.script(["a", fakes.gate(), "never"])
    call = wire.post(IN_SESSION)
    assert call.rest() == b"data: a\n\nevent: error\ndata: the run timed out\n\n"
    assert isinstance(fakes.gate().left, asyncio.CancelledError)
    assert (the_record().status, the_record().error_code, the_record().error_status) == ("failed", "timeout", 504)
    assert SessionRecord.objects.get().message_count == 0
    assert SessionRecord.objects.get().claimed_by is None


def test_plain_run_that_takes_too_long_is_a_504(wire: Wire, settings: Settings) -> None:
    settings.INVOCATIONS = endpoint(RUN_TIMEOUT_SECONDS=0.1)
    fakes.script(["a", fakes.gate(), "never"])
    call = wire.post(PLAIN)
    assert call.rest() == b'{"error":"the run timed out"}'
    assert call.status == 504
    assert isinstance(fakes.gate().left, asyncio.CancelledError)


def test_time_out_of_the_agents_own_is_not_the_runs(wire: Wire) -> None:
    fakes.script(["a", TimeoutError("upstream")])
    assert wire.post(ONE).rest() == b"data: a\n\n" + FAILED
    assert the_record().error_code == "invocation_failed"


# The loop


class Unresting(fakes.CustomAgent):
    """An agent whose stream never really awaits, until it is told to end."""

    def run(self, messages: Any = None, *, stream: bool = False, session: Any = None) -> Any:
        if messages[-1].text != "spin":
            return super().run(messages, stream=stream, session=session)
        return self._spin()

    async def _spin(self) -> AsyncIterator[AgentResponseUpdate]:
        fakes.gate().reached.set()
        while not fakes.gate().opened.is_set():
            yield AgentResponseUpdate(contents=[Content.from_text("")], role="assistant")
        yield AgentResponseUpdate(contents=[Content.from_text("dizzy")], role="assistant")


def build_unresting() -> Unresting:
    return Unresting()


def test_agent_that_never_awaits_leaves_the_loop_to_others(wire: Wire, settings: Settings) -> None:
    settings.INVOCATIONS = endpoint("tests.test_streaming.build_unresting")
    spinning = wire.post({"message": "spin", "stream": True}).head()
    assert fakes.gate().reached.wait(2)
    assert wire.post({"message": "meanwhile"}).rest() == b'{"response":"meanwhile","session_id":null}'
    fakes.gate().open()
    assert spinning.rest() == b"data: dizzy\n\ndata: [DONE]\n\n"


def test_agent_that_never_awaits_can_be_timed_out(wire: Wire, settings: Settings) -> None:
    settings.INVOCATIONS = endpoint("tests.test_streaming.build_unresting", RUN_TIMEOUT_SECONDS=0.1)
    call = wire.post({"message": "spin", "stream": True})
    assert call.rest() == b"event: error\ndata: the run timed out\n\n"


@every_loop
def test_streams_at_the_same_time_do_not_mix(wire: Wire, settings: Settings) -> None:
    settings.INVOCATIONS = endpoint("tests.fakes.build_echo")
    texts = [f"{number} " * 20 for number in range(12)]
    calls = [wire.post({"message": text, "stream": True}) for text in texts]
    assert [read_text(call.rest()) for call in calls] == texts


def test_connection_is_used_again_after_a_stream(wire: Wire) -> None:
    if wire.is_raw:
        pytest.skip("ASGI knows no connections")
    fakes.script(["a"])
    call = wire.post(ONE)
    assert isinstance(call, SocketCall)
    assert call.rest() == b"data: a\n\ndata: [DONE]\n\n"
    call.again("/invocations/invoke", json.dumps(PLAIN).encode())
    assert call.rest() == b'{"response":"a","session_id":null}'
