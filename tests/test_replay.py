"""A repeated POST: answered from the record or from the living run, and never run twice."""

from __future__ import annotations

import asyncio
import dataclasses
from typing import Any

import pytest
from agent_framework import Content, Message
from django.test import Client

from invocations_app.exceptions import InvocationRejected
from invocations_app.models import EventRecord, InvocationRecord
from invocations_app.runs.host import live_runs
from invocations_app.storage import turns
from invocations_app.storage.turns import TurnRequest
from tests import fakes
from tests.alone import replace_begin
from tests.client import INVOKE, endpoint, post, records
from tests.durable import (
    DONE,
    Reader,
    abandon,
    ask,
    body_of,
    cancel,
    on_database,
    scripted,
    until,
    until_idle,
    until_status,
)

pytestmark = pytest.mark.django_db(transaction=True)

ONE = {"message": "hi", "session_id": "s1"}
STREAM = {"stream": True}
BACKGROUND = {"background": True}
REUSED = b'{"error":"this invocation id was used for another request"}'


@pytest.fixture(autouse=True)
def _endpoint(settings: Any) -> None:
    settings.INVOCATIONS = scripted()


async def shown(response: Any) -> tuple[int, bytes]:
    """Return status and body, streamed or not."""
    return response.status_code, await body_of(response) if response.streaming else response.content


# After the end


@pytest.mark.parametrize(
    ("first", "events"),
    [
        ({}, b"data: hello\n\n"),
        (STREAM, b"data: hel\n\ndata: lo\n\n"),
        (BACKGROUND, b"data: hello\n\n"),
        (BACKGROUND | STREAM, b"data: hel\n\ndata: lo\n\n"),
    ],
    ids=["plain", "stream", "background", "streamed background"],
)
async def test_a_repeat_is_answered_in_the_kind_its_own_body_asks_for(first, events):
    fakes.script(["hel", "lo"])
    await shown(await ask("i1", ONE | first))
    await until_status("i1", "succeeded")
    assert await shown(await ask("i1", ONE)) == (200, b'{"response":"hello","session_id":"s1"}')
    assert await shown(await ask("i1", ONE | STREAM)) == (200, events + DONE)
    body = b'{"invocation_id":"i1","status":"succeeded","session_id":"s1"}'
    assert await shown(await ask("i1", ONE | BACKGROUND)) == (202, body)
    assert (len(fakes.calls), len(await records())) == (1, 1)


async def test_a_repeat_has_the_headers_of_the_first_answer():
    fakes.script(["a"])
    for body in (ONE, ONE, ONE | STREAM):
        response = await ask("i1", body)
        await shown(response)
        assert response.headers["x-agent-invocation-id"] == "i1"
        assert response.headers["x-agent-session-id"] == "s1"


async def test_a_repeated_stream_is_the_first_ones_to_the_byte():
    fakes.script(["a\r", "\nb", "[DONE]", "", "é\u2028\ud800", *["x"] * 200])
    first = await body_of(await ask("i1", ONE | STREAM))
    assert await body_of(await ask("i1", ONE | STREAM)) == first


async def test_a_repeated_stream_whose_events_are_gone_is_the_stored_text_in_one_piece():
    fakes.script(["hel", "lo"])
    await body_of(await ask("i1", ONE | STREAM))
    await on_database(EventRecord.objects.all().delete)
    assert await body_of(await ask("i1", ONE | STREAM)) == b"data: hello\n\n" + DONE


async def test_an_answer_without_text_is_repeated():
    fakes.script([])
    first = await body_of(await ask("i1", ONE | STREAM))
    assert (first, await body_of(await ask("i1", ONE | STREAM))) == (DONE, DONE)
    assert (await ask("i1", ONE)).content == b'{"response":"","session_id":"s1"}'


# What hooks make of it


def shout(result: Any, *, invocation: Any) -> Any:
    text = "".join(content.text for message in result.messages for content in message.contents)
    return type(result)(messages=[Message("assistant", [Content.from_text(text.upper())])])


def mark(update: Any, *, invocation: Any) -> Any:
    return type(update)(contents=[Content.from_text(f"<{content.text}>") for content in update.contents])


def rename(invocation: Any, *, target: Any, request: Any) -> Any:
    fakes.notes.append("hook")
    return dataclasses.replace(invocation, session_id="renamed")


async def test_what_is_repeated_is_the_answer_after_the_response_hook(settings):
    settings.INVOCATIONS = scripted(RESPONSE_HOOK=f"{__name__}.shout", STREAM_TRANSFORM_HOOK=f"{__name__}.mark")
    fakes.script(["hel", "lo"])
    assert (await ask("i1", ONE)).json()["response"] == "HELLO"
    assert (await ask("i1", ONE)).json()["response"] == "HELLO"
    assert await body_of(await ask("i1", ONE | STREAM)) == b"data: HELLO\n\n" + DONE


async def test_what_is_repeated_is_the_answer_after_the_transform_hook(settings):
    settings.INVOCATIONS = scripted(RESPONSE_HOOK=f"{__name__}.shout", STREAM_TRANSFORM_HOOK=f"{__name__}.mark")
    fakes.script(["hel", "lo"])
    events = b"data: <hel>\n\ndata: <lo>\n\n" + DONE
    assert await body_of(await ask("i1", ONE | STREAM)) == events
    assert await body_of(await ask("i1", ONE | STREAM)) == events
    assert (await ask("i1", ONE)).json()["response"] == "<hel><lo>"


async def test_a_repeat_runs_no_hook_builds_no_target_and_names_the_recorded_session(settings):
    settings.INVOCATIONS = endpoint(CACHE_TARGET=False, RUN_HOOK=f"{__name__}.rename")
    await ask("i1", ONE)
    built = len(fakes.built)
    for _ in range(2):
        response = await ask("i1", ONE)
        assert response.content == b'{"response":"hi","session_id":"renamed"}'
        assert response.headers["x-agent-session-id"] == "renamed"
    assert (fakes.notes, len(fakes.built), len(fakes.calls)) == (["hook"], built, 1)


# Another request


@pytest.mark.parametrize(
    "other",
    [{"message": "ho"}, {"session_id": "s2"}, {"session_id": None}, {"metadata": {"a": 1}}, {"unknown": 1}],
    ids=["message", "session", "no session", "metadata", "ignored key"],
)
async def test_an_id_that_was_used_for_another_request_is_refused(other):
    fakes.script(["a"])
    await ask("i1", ONE)
    for kind in ({}, STREAM, BACKGROUND):
        assert await shown(await ask("i1", ONE | other | kind)) == (422, REUSED)
    assert len(fakes.calls) == 1


async def test_an_id_is_refused_for_another_request_while_the_first_one_runs():
    fakes.script([fakes.gate(), "a"])
    running = asyncio.create_task(ask("i1", ONE))
    await fakes.gate().wait_reached()
    refused = await ask("i1", {"message": "ho"})
    assert await shown(refused) == (422, REUSED)
    assert refused.headers["x-agent-invocation-id"] == "i1"
    fakes.gate().open()
    assert (await running).status_code == 200


async def test_the_order_of_keys_does_not_make_another_request():
    fakes.script(["a"])
    await post(b'{"message":"hi","metadata":{"a":1,"b":2}}', headers={"x-agent-invocation-id": "i1"})
    repeat = b'{ "metadata": {"b": 2, "a": 1}, "session_id": null, "message": "no", "message": "hi" }'
    assert (await post(repeat, headers={"x-agent-invocation-id": "i1"})).json()["response"] == "a"
    assert len(fakes.calls) == 1


async def test_an_id_that_is_not_well_formed_is_not_the_callers():
    fakes.script(["a"])
    for _ in range(2):
        response = await ask("not well formed", ONE)
        assert response.headers["x-agent-invocation-id"] != "not well formed"
    assert len(fakes.calls) == 2


async def test_another_callers_equal_id_is_another_invocation(settings):
    settings.INVOCATIONS = endpoint(TRUST_ISOLATION_HEADERS=True)
    callers = [
        {},
        {"x_agent_user_id": "alice"},
        {"x_agent_user_id": "bob"},
        {"x_agent_user_id": "alice", "x_agent_chat_isolation_key": "c"},
    ]
    for index, caller in enumerate(callers):
        response = await ask("i1", {"message": f"text{index}"}, **caller)
        assert response.json()["response"] == f"text{index}"
    for index, caller in enumerate(callers):
        assert (await ask("i1", {"message": f"text{index}"}, **caller)).json()["response"] == f"text{index}"
        assert (await ask("i1", {"message": "other"}, **caller)).status_code == 422
    assert (len(fakes.calls), len(await records())) == (4, 4)


# While it runs


async def test_a_repeat_of_a_running_invocation_joins_it():
    fakes.script(["hel", fakes.gate(), "lo"])
    first = Reader(await ask("i1", ONE | STREAM))
    await first.until(b"data: hel\n\n")
    plain = asyncio.create_task(ask("i1", ONE))
    joined = Reader(await ask("i1", ONE | STREAM))
    assert await joined.until(b"data: hel\n\n") == b"data: hel\n\n"
    body = b'{"invocation_id":"i1","status":"running","session_id":"s1"}'
    assert await shown(await ask("i1", ONE | BACKGROUND)) == (202, body)
    assert not plain.done()
    fakes.gate().open()
    assert (await plain).content == b'{"response":"hello","session_id":"s1"}'
    assert await joined.rest() == await first.rest() == b"data: hel\n\ndata: lo\n\n" + DONE
    assert len(fakes.calls) == 1


async def test_a_stream_that_joins_a_plain_run_gets_its_text_at_the_end():
    fakes.script(["hel", fakes.gate(), "lo"])
    first = asyncio.create_task(ask("i1", ONE))
    await fakes.gate().wait_reached()
    joined = Reader(await ask("i1", ONE | STREAM))
    await asyncio.sleep(0.02)
    assert joined.body == b""
    fakes.gate().open()
    assert await joined.rest() == b"data: hello\n\n" + DONE
    assert (await first).json()["response"] == "hello"


async def test_a_repeat_of_a_queued_invocation_joins_it():
    fakes.script([fakes.gate(), "first"], ["sec", "ond"])
    holder = asyncio.create_task(ask("i0", ONE))
    await fakes.gate().wait_reached()
    waiting = asyncio.create_task(ask("i1", ONE | STREAM))
    await until_status("i1", "queued")
    plain = asyncio.create_task(ask("i1", ONE))
    joined = Reader(await ask("i1", ONE | STREAM))
    body = b'{"invocation_id":"i1","status":"queued","session_id":"s1"}'
    assert await shown(await ask("i1", ONE | BACKGROUND)) == (202, body)
    assert not waiting.done()
    assert joined.body == b""
    fakes.gate().open()
    await holder
    assert await joined.rest() == await body_of(await waiting) == b"data: sec\n\ndata: ond\n\n" + DONE
    assert (await plain).json()["response"] == "second"
    assert len(fakes.calls) == 2


async def test_who_joined_a_turn_that_waited_in_vain_is_told_so(settings):
    settings.INVOCATIONS = scripted(SESSION_WAIT_SECONDS=0.3)
    fakes.script([fakes.gate(), "first"])
    holder = asyncio.create_task(ask("i0", ONE))
    await fakes.gate().wait_reached()
    waiting = asyncio.create_task(ask("i1", ONE))
    await until_status("i1", "queued")
    plain = asyncio.create_task(ask("i1", ONE))
    joined = Reader(await ask("i1", ONE | STREAM))
    busy = b'{"error":"the session is busy"}'
    assert await shown(await waiting) == await shown(await plain) == (409, busy)
    assert await joined.rest() == b"event: error\ndata: the session is busy\n\n"
    fakes.gate().open()
    await holder


async def test_twenty_equal_requests_at_once_are_run_once():
    fakes.script(["hel", lambda: asyncio.sleep(0.05), "lo"])
    answers = await asyncio.gather(*[ask("i1", ONE | (STREAM if number % 2 else {})) for number in range(20)])
    bodies = await asyncio.gather(*[shown(answer) for answer in answers])
    # The run is streamed or not as the first of them asked for it; who joins gets the same text in its own kind.
    [record] = await records()
    events = b"data: hel\n\ndata: lo\n\n" if record.stream else b"data: hello\n\n"
    assert set(bodies[0::2]) == {(200, b'{"response":"hello","session_id":"s1"}')}
    assert set(bodies[1::2]) == {(200, events + DONE)}
    assert (len(fakes.calls), record.status) == (1, "succeeded")
    await until_idle()


async def test_requests_that_met_behind_the_look_up_are_run_once(monkeypatch):
    fakes.script(["a"])
    begin = turns.begin_now
    begun: list[Any] = []

    def note(request: TurnRequest) -> Any:
        begun.append(begin(request))
        return begun[-1]

    async def nothing(*args: Any) -> None:
        return None

    replace_begin(monkeypatch, note)
    monkeypatch.setattr("invocations_app.storage.invocations.look_up", nothing)
    answers = await asyncio.gather(*[ask("i1", ONE) for _ in range(4)])
    assert {answer.content for answer in answers} == {b'{"response":"a","session_id":"s1"}'}
    assert (await ask("i1", {"message": "ho"})).content == REUSED
    assert [type(each).__name__ for each in begun] == ["Turn", *["StoredInvocation"] * 4]
    assert len(fakes.calls) == 1


# What ended badly

FIXED = b'{"error":"Agent invocation failed."}'


async def test_a_failure_is_repeated_with_its_status_and_its_fixed_text(settings):
    settings.INVOCATIONS = scripted(EXPOSE_ERRORS=True)
    fakes.script([RuntimeError("the reason")])
    assert await shown(await ask("i1", ONE)) == (500, b'{"error":"the reason"}')
    assert await shown(await ask("i1", ONE)) == (500, FIXED)
    assert await shown(await ask("i1", ONE | STREAM)) == (500, FIXED)
    assert len(fakes.calls) == 1


async def test_a_streamed_failure_is_repeated_with_its_status(settings):
    settings.INVOCATIONS = scripted(EXPOSE_ERRORS=True)
    fakes.script(["par", RuntimeError("the reason")])
    assert await body_of(await ask("i1", ONE | STREAM)) == b"data: par\n\nevent: error\ndata: the reason\n\n"
    assert await shown(await ask("i1", ONE | STREAM)) == (500, FIXED)
    assert await shown(await ask("i1", ONE)) == (500, FIXED)


async def test_who_joined_a_run_that_fails_gets_the_fixed_text(settings):
    settings.INVOCATIONS = scripted(EXPOSE_ERRORS=True)
    fakes.script(["par", fakes.gate(), RuntimeError("the reason")])
    first = Reader(await ask("i1", ONE | STREAM))
    await fakes.gate().wait_reached()
    plain = asyncio.create_task(ask("i1", ONE))
    joined = Reader(await ask("i1", ONE | STREAM))
    await joined.until(b"data: par\n\n")
    fakes.gate().open()
    assert await joined.rest() == b"data: par\n\nevent: error\ndata: Agent invocation failed.\n\n"
    assert await shown(await plain) == (500, FIXED)
    assert await first.rest() == b"data: par\n\nevent: error\ndata: the reason\n\n"


async def test_a_time_out_is_repeated(settings):
    settings.INVOCATIONS = scripted(RUN_TIMEOUT_SECONDS=0.05)
    fakes.script([fakes.gate()])
    for body in (ONE, ONE, ONE | STREAM):
        assert await shown(await ask("i1", body)) == (504, b'{"error":"the run timed out"}')
    assert len(fakes.calls) == 1


async def test_a_cancellation_is_repeated():
    fakes.script([fakes.gate()])
    first = asyncio.create_task(ask("i1", ONE))
    await fakes.gate().wait_reached()
    await cancel("i1")
    for answer in (await first, await ask("i1", ONE), await ask("i1", ONE | STREAM)):
        assert await shown(answer) == (409, b'{"error":"this invocation was cancelled"}')
    assert len(fakes.calls) == 1


async def test_a_repeat_after_a_crash_is_told_so_and_not_run_again():
    fakes.script(["a"])
    await ask("i1", ONE)
    await on_database(lambda: InvocationRecord.objects.update(status="running", answer="", finished_at=None))
    await on_database(abandon)
    for body in (ONE, ONE | STREAM):
        assert await shown(await ask("i1", body)) == (409, b'{"error":"this invocation was interrupted"}')
    [record] = await records()
    assert (record.status, record.error_code, record.error_status) == ("interrupted", "interrupted", 409)
    assert len(fakes.calls) == 1


async def test_who_waits_for_a_run_elsewhere_is_told_when_that_process_dies():
    fakes.script(["a"])
    await ask("i1", ONE)
    await on_database(
        lambda: InvocationRecord.objects.update(status="running", answer="", finished_at=None, owner="elsewhere")
    )
    plain = asyncio.create_task(ask("i1", ONE))
    joined = Reader(await ask("i1", ONE | STREAM))
    await asyncio.sleep(0.05)
    assert not plain.done()
    await on_database(abandon)
    assert await shown(await plain) == (409, b'{"error":"this invocation was interrupted"}')
    assert await joined.rest() == b"event: error\ndata: this invocation was interrupted\n\n"


# What was refused before it began


def refuse(invocation: Any, *, target: Any, request: Any) -> Any:
    if fakes.switches.get("refuse"):
        raise InvocationRejected("not now", 403)
    return invocation


@pytest.mark.parametrize("kind", [{}, STREAM, BACKGROUND], ids=["plain", "stream", "background"])
async def test_an_id_that_was_refused_may_be_used_again(settings, kind):
    settings.INVOCATIONS = scripted(RUN_HOOK=f"{__name__}.refuse")
    fakes.script(["a"])
    fakes.switches["refuse"] = True
    for _ in range(2):
        assert await shown(await ask("i1", ONE | kind)) == (403, b'{"error":"not now"}')
    assert await records() == []
    fakes.switches.clear()
    assert (await shown(await ask("i1", {"message": "another body"} | kind)))[0] in {200, 202}
    await until_status("i1", "succeeded")


async def test_an_id_whose_target_was_broken_may_be_used_again(settings):
    settings.INVOCATIONS = endpoint(TARGET="tests.fakes.build_flaky")
    fakes.switches["broken"] = "no model today"
    assert await shown(await ask("i1", ONE)) == (500, b'{"error":"The agent is not available."}')
    fakes.switches.clear()
    assert await shown(await ask("i1", ONE)) == (200, b'{"response":"hi","session_id":"s1"}')


# Leaving


async def test_the_first_caller_may_leave_while_another_one_joined(settings):
    settings.INVOCATIONS = scripted(ON_DISCONNECT="cancel")
    fakes.script(["hel", fakes.gate(), "lo"])
    first = Reader(await ask("i1", ONE | STREAM))
    await fakes.gate().wait_reached()
    joined = Reader(await ask("i1", ONE | STREAM))
    await joined.until(b"data: hel\n\n")
    await first.leave()
    await asyncio.sleep(0.03)
    fakes.gate().open()
    assert await joined.rest() == b"data: hel\n\ndata: lo\n\n" + DONE


async def test_the_last_reader_that_leaves_cancels_the_run_where_that_is_wanted(settings):
    settings.INVOCATIONS = scripted(ON_DISCONNECT="cancel")
    fakes.script(["hel", fakes.gate(), "lo"])
    first = Reader(await ask("i1", ONE | STREAM))
    await fakes.gate().wait_reached()
    joined = Reader(await ask("i1", ONE | STREAM))
    await joined.until(b"data: hel\n\n")
    await first.leave()
    await joined.leave()
    await fakes.gate().wait_left()
    assert (await until_status("i1", "cancelled")).error_code == "cancelled"


async def test_a_joiner_in_another_process_keeps_the_run_alive(settings):
    settings.INVOCATIONS = scripted(ON_DISCONNECT="cancel")
    fakes.script(["hel", fakes.gate(), "lo"])
    first = Reader(await ask("i1", ONE | STREAM))
    await fakes.gate().wait_reached()
    [run] = live_runs()
    assert run.record_pk is not None
    pk = run.record_pk
    await on_database(lambda: turns.InvocationRecord.objects.filter(pk=pk).update(joined_until="2100-01-01T00:00:00Z"))
    await first.leave()
    await asyncio.sleep(0.05)
    assert fakes.gate().left is None
    fakes.gate().open()
    await until_status("i1", "succeeded")


async def test_a_joiner_says_that_it_is_there_to_the_process_that_runs(settings):
    settings.INVOCATIONS = scripted(ON_DISCONNECT="cancel")
    fakes.script(["a"])
    await ask("i1", ONE)
    elsewhere = {"status": "running", "answer": "", "finished_at": None, "owner": "elsewhere"}
    await on_database(lambda: InvocationRecord.objects.update(**elsewhere))
    joined = Reader(await ask("i1", ONE | STREAM))
    while (await records())[0].joined_until is None:
        await asyncio.sleep(0.01)
    await joined.leave()


# WSGI


def test_over_wsgi_a_plain_repeat_is_answered_and_others_are_not():
    fakes.script(["a"])
    headers = {"x-agent-invocation-id": "i1"}
    answers = [
        Client().post(INVOKE, ONE | kind, content_type="application/json", headers=headers)
        for kind in ({}, {}, STREAM, BACKGROUND)
    ]
    assert [answer.status_code for answer in answers] == [200, 200, 501, 501]
    assert answers[1].content == answers[0].content == b'{"response":"a","session_id":"s1"}'
    assert {answer.content for answer in answers[2:]} == {b'{"error":"streams and background need an ASGI server"}'}
    assert len(fakes.calls) == 1


async def test_nothing_is_left_of_a_repeat():
    fakes.script([fakes.gate(), "a"])
    first = asyncio.create_task(ask("i1", ONE))
    await fakes.gate().wait_reached()
    joiners = [asyncio.create_task(ask("i1", ONE)) for _ in range(3)]
    await until(lambda: sum(run._readers for run in live_runs()) == 4, "four readers")
    [left, *_] = joiners
    left.cancel()
    await until(lambda: sum(run._readers for run in live_runs()) == 3, "three readers")
    fakes.gate().open()
    await asyncio.gather(first, *joiners[1:])
    await until_idle()
