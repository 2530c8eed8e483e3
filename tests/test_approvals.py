"""An agent that asks: approvals and calls for the caller to carry out, answered exactly once, in both dialects."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import Any

import pytest
from agent_framework import Content, Message

from invocations_app.isolation import Scope
from invocations_app.models import InvocationRecord, MessageRecord, PendingRecord, SessionRecord
from invocations_app.pending import OUTCOME_UNKNOWN
from invocations_app.runs.sessions import get_store
from invocations_app.storage import records as stored_records
from invocations_app.storage import reset_session, snapshots
from tests import approval_fakes, fakes
from tests.client import endpoint, post, records, rows
from tests.durable import (
    abandon,
    ask,
    body_of,
    cancel,
    events_of,
    get,
    on_database,
    status,
    until_idle,
    until_status,
)
from tests.session_fakes import failing_statements

pytestmark = pytest.mark.django_db(transaction=True)

CHANNEL = "/invocations/invoke"
PLATFORM = "/invocations?agent_session_id=s1"
BOTH = pytest.mark.parametrize("path", [CHANNEL, PLATFORM])
MISMATCH = {
    CHANNEL: (422, b'{"error":"\'responses\' must answer exactly the pending requests"}'),
    PLATFORM: (400, b'{"error":"Workflow replies must answer exactly the complete pending request batch."}'),
}
ARGUMENTS = {"pay": {"to": "Ada"}, "shred": {"name": "will"}, "look": {"name": "sky"}, "ring": {"times": 2}}
STORE = "tests.approval_fakes.Store"


@pytest.fixture(autouse=True)
def _asking(settings: Any) -> None:
    use(settings)


def use(settings: Any, **keys: Any) -> None:
    settings.INVOCATIONS = endpoint(TARGET=approval_fakes.TARGET, **keys)


def calling(*names: str, turn: int = 1) -> list[fakes.Step]:
    """Return the steps in which the model says a word and calls tools."""
    return ["so ", *(fakes.call(name, ARGUMENTS[name], call_id=f"{name}-{turn}") for name in names)]


def play(*names: str, then: Sequence[Sequence[fakes.Step]] = (("done",),)) -> None:
    """Let the model call tools, and then play on."""
    fakes.script(calling(*names), *then)


def turn(path: str = CHANNEL, **body: Any) -> Any:
    return post({"session_id": "s1", **body}, path)


async def pending(path: str = CHANNEL, **body: Any) -> list[dict[str, Any]]:
    """Return what a turn leaves pending."""
    response = await turn(path, **({"message": "go"} | body))
    assert response.status_code == 200, response.content
    found: list[dict[str, Any]] = response.json()["pending"]
    return found


def yes(asked: Sequence[dict[str, Any]], result: Any = "rung") -> dict[str, Any]:
    """Return replies that approve all, and give a result for what the caller carries out."""
    return {item["request_id"]: True if item["type"] == "approval" else result for item in asked}


async def statuses() -> list[str]:
    return [record.status for record in await records()]


async def asked_rows() -> list[PendingRecord]:
    return await rows(lambda: PendingRecord.objects.order_by("pk"))


async def the_session() -> SessionRecord:
    [session] = await rows(SessionRecord.objects.all)
    return session


def told(call: fakes.ModelCall) -> list[tuple[str, list[Any]]]:
    """Return what the model got: of each message role and texts, names of calls, and results."""
    return [
        (str(message.role), [content.text or content.name or content.result for content in message.contents])
        for message in call.messages
    ]


def check_order(messages: Sequence[Message]) -> None:
    """Check that every call has one result right behind it, as models want it."""
    open_calls: list[str] = []
    for message in messages:
        results = [content.call_id for content in message.contents if content.type == "function_result"]
        assert {content.type for content in message.contents} <= {"text", "function_call", "function_result"}
        if open_calls:
            assert (bool(results), message.role) == (True, "tool")
        for call_id in results:
            open_calls.remove(call_id)
        open_calls += [content.call_id for content in message.contents if content.type == "function_call"]
    assert open_calls == []


async def check_rows() -> None:
    """Check that the stored session is whole: its counts, its places, nothing twice."""
    session = await the_session()
    stored = await rows(lambda: MessageRecord.objects.filter(session=session).order_by("position"))
    assert [row.position for row in stored] == list(range(len(stored)))
    assert session.message_count == len(stored)
    loaded, history = await on_database(
        lambda: snapshots.load(session.state, stored_records.load_message_rows("default", session.pk))
    )
    assert history.count == len(stored)
    check_order_of_stored(loaded.state["in_memory"]["messages"])


def check_order_of_stored(messages: Sequence[Message]) -> None:
    ids = [content.call_id for message in messages for content in message.contents if content.type == "function_call"]
    results = [
        content.call_id for message in messages for content in message.contents if content.type == "function_result"
    ]
    assert sorted(ids) == sorted(results)


async def goes_on(result: str | None = OUTCOME_UNKNOWN) -> None:
    """Check that the session takes a new text, and what the model reads there of the one call before."""
    fakes.script(["on"])
    response = await turn(message="and now?")
    assert (response.status_code, response.json()) == (200, {"response": "on", "session_id": "s1"})
    messages = fakes.calls[-1].messages
    check_order(messages)
    assert messages[-1].text == "and now?"
    results = [content.result for message in messages for content in message.contents if content.call_id == "pay-1"]
    assert results[1:] == ([] if result is None else [result])
    await check_rows()


# The exchange.


async def test_a_turn_that_asks_tells_what_is_pending():
    play("pay")
    response = await turn(message="go")
    [item] = response.json()["pending"]
    request_id = item["request_id"]
    assert response.content == (
        b'{"response":"so ","session_id":"s1","pending":[{"request_id":"%s","type":"approval","tool":"pay",'
        b'"arguments":{"to":"Ada"}}]}' % request_id.encode()
    )
    assert fakes.notes == []
    response = await turn(responses={request_id: True})
    assert (response.status_code, response.content) == (200, b'{"response":"done","session_id":"s1"}')
    assert fakes.notes == [("pay", "Ada")]
    assert told(fakes.calls[1]) == [("user", ["go"]), ("assistant", ["so ", "pay"]), ("tool", ["paid Ada"])]
    await goes_on("paid Ada")


async def test_a_stream_has_an_event_before_its_end():
    play("pay", "ring")
    content = await body_of(await turn(message="go", stream=True))
    asked = [json.loads(row.data) for row in await asked_rows()]
    ids = {item["tool"]: item["request_id"].encode() for item in asked}
    # A call that somebody else carries out is told as the model makes it, an approval when all are there.
    assert content == (
        b"data: so \n\n"
        b'event: request_info\ndata: {"request_id":"%s","type":"tool_call","tool":"ring","arguments":{"times":2}}\n\n'
        b'event: request_info\ndata: {"request_id":"%s","type":"approval","tool":"pay","arguments":{"to":"Ada"}}\n\n'
        b"data: [DONE]\n\n" % (ids["ring"], ids["pay"])
    )
    content = await body_of(await turn(responses=yes(asked), stream=True))
    assert content == b"data: done\n\ndata: [DONE]\n\n"
    assert fakes.notes == [("pay", "Ada")]
    await check_rows()


async def test_the_platform_answers_json_with_a_second_key():
    play("pay")
    response = await turn(PLATFORM, message="go")
    [item] = response.json()["pending"]
    assert response.content == (
        b'{"response":"so ","pending":[{"request_id":"%s","type":"approval","tool":"pay","arguments":{"to":"Ada"}}]}'
        % item["request_id"].encode()
    )
    response = await turn(PLATFORM, responses=yes([item]))
    assert response.content == b'{"response":"done"}'
    assert fakes.notes == [("pay", "Ada")]


async def test_the_platform_streams_the_object_as_its_event_data():
    play("pay")
    content = await body_of(await turn(PLATFORM, message="go", stream=True))
    [item] = [json.loads(row.data) for row in await asked_rows()]
    assert content == (
        b'event: delta\ndata: {"text": "so "}\n\n'
        b'event: request_info\ndata: {"request_id": "%s", "type": "approval", "tool": "pay", '
        b'"arguments": {"to": "Ada"}}\n\n'
        b'event: done\ndata: {"session_id": "s1"}\n\n' % item["request_id"].encode()
    )
    content = await body_of(await turn(PLATFORM, responses=yes([item]), stream=True))
    assert content == b'event: delta\ndata: {"text": "done"}\n\nevent: done\ndata: {"session_id": "s1"}\n\n'


@pytest.mark.parametrize("stream", [False, True])
async def test_a_refused_tool_does_not_run_and_the_model_is_told(stream):
    play("pay")
    [item] = await pending()
    assert (await turn(responses={item["request_id"]: False}, stream=stream)).status_code == 200
    await until_idle()
    assert fakes.notes == []
    [result] = fakes.calls[1].messages[-1].contents
    assert (result.type, result.call_id) == ("function_result", "pay-1")
    assert "not approve" in str(result.result) or "reject" in str(result.result)
    check_order(fakes.calls[1].messages)
    await check_rows()


@pytest.mark.parametrize("approved", [True, False])
async def test_a_reason_is_recorded_and_not_shown_to_the_model(approved):
    play("pay")
    [item] = await pending()
    reply = {"approved": approved, "reason": "because of the budget"}
    assert (await ask("i2", {"responses": {item["request_id"]: reply}, "session_id": "s1"})).status_code == 200
    assert fakes.notes == ([("pay", "Ada")] if approved else [])
    [row] = await asked_rows()
    assert json.loads(row.reply) == reply
    [answering] = await rows(lambda: InvocationRecord.objects.filter(invocation_id="i2"))
    assert (row.answered_by_id, row.closed_at is None, row.invocation_id) == (answering.pk, False, answering.pk - 1)
    assert "budget" not in repr([message.to_dict() for message in fakes.calls[1].messages])


@pytest.mark.parametrize("result", [None, True, 7, "", "rang", [], ["a"], {"times": [2]}], ids=repr)
async def test_a_declared_tool_is_answered_by_any_json_value(result):
    play("ring")
    response = await turn(message="go")
    [item] = response.json()["pending"]
    assert {**item, "request_id": "-"} == {
        "request_id": "-",
        "type": "tool_call",
        "tool": "ring",
        "arguments": {"times": 2},
    }
    assert (await turn(responses={item["request_id"]: result})).json()["response"] == "done"
    [content] = fakes.calls[1].messages[-1].contents
    assert (content.type, content.call_id) == ("function_result", "ring-1")
    assert content.result == ("" if result is None else result if isinstance(result, str) else json.dumps(result))
    await check_rows()


async def test_of_several_calls_nothing_runs_before_the_answer():
    play("look", "pay", "ring", "shred")
    asked = await pending()
    assert [(item["type"], item["tool"]) for item in asked] == [
        ("approval", "pay"),
        ("tool_call", "ring"),
        ("approval", "shred"),
    ]
    assert fakes.notes == []
    replies = yes(asked, {"rung": 2})
    replies[asked[2]["request_id"]] = False
    assert (await turn(responses=replies)).json() == {"response": "done", "session_id": "s1"}
    assert sorted(fakes.notes) == [("look", "sky"), ("pay", "Ada")]
    check_order(fakes.calls[1].messages)
    fakes.script(["on"])
    assert (await turn(message="more")).status_code == 200
    check_order(fakes.calls[2].messages)
    await check_rows()


async def test_an_answer_may_lead_to_another_question():
    fakes.script(calling("pay"), calling("pay", "shred", turn=2), calling("ring", turn=3), ["done"])
    asked = await pending()
    for names in (["pay", "shred"], ["ring"]):
        response = await turn(responses=yes(asked))
        asked = response.json()["pending"]
        assert [item["tool"] for item in asked] == names
        assert (await the_session()).pending_count == len(names)
    assert (await turn(responses=yes(asked))).json() == {"response": "done", "session_id": "s1"}
    assert fakes.notes == [("pay", "Ada"), ("pay", "Ada"), ("shred", "will")]
    assert await statuses() == ["succeeded"] * 4
    check_order(fakes.calls[-1].messages)
    await check_rows()


async def test_a_model_that_uses_its_call_ids_again_is_asked_about_again():
    for _ in range(2):
        play("pay")
        assert (await turn(responses=yes(await pending()))).json()["response"] == "done"
    play("pay", then=[[RuntimeError("away")]])
    assert (await turn(responses=yes(await pending()))).status_code == 500
    fakes.script(["on"])
    assert (await turn(message="and now?")).status_code == 200
    check_order(fakes.calls[-1].messages)
    assert fakes.notes == [("pay", "Ada")] * 3


async def test_calls_that_share_an_id_each_get_their_own_result():
    names = ["ring", "pay", "look", "ring"]
    fakes.script([fakes.call(name, ARGUMENTS[name], call_id="same") for name in names], ["done"])
    first, approval, second = await pending()
    replies = {second["request_id"]: "second", approval["request_id"]: True, first["request_id"]: "first"}
    assert (await turn(responses=replies)).json()["response"] == "done"
    [results] = [message for message in fakes.calls[1].messages if message.role == "tool"]
    assert [content.result for content in results.contents] == ["first", "paid Ada", "saw sky", "second"]
    called = fakes.calls[1].messages[1].contents
    assert [content.id for content in results.contents] == [content.id for content in called]


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        ('{"to": ', b'{"raw":"{\\"to\\": "}'),
        ("[1]", b'{"raw":"[1]"}'),
        ('{"to": NaN}', b'{"raw":"{\\"to\\": NaN}"}'),
        ('{"to": 1e999}', b'{"raw":"{\\"to\\": 1e999}"}'),
        ('{"to": "\\ud800"}', b'{"to":"\xef\xbf\xbd"}'),
        ("", b"null"),
        (None, b"null"),
    ],
)
async def test_arguments_that_are_no_object_come_raw_or_null(arguments, shown):
    called = Content.from_function_call(call_id="pay-1", name="pay", arguments=arguments)
    fakes.script([called], ["done"])
    response = await turn(message="go")
    assert response.status_code == 200, response.content
    [item] = response.json()["pending"]
    assert response.content.endswith(b'"tool":"pay","arguments":' + shown + b"}]}")
    assert (await turn(responses={item["request_id"]: False})).status_code == 200


async def empty(response: Any, *, invocation: Any) -> Any:
    response.messages.clear()
    return response


def keep_nothing(update: Any, *, invocation: Any) -> None:
    return None


async def test_hooks_cannot_take_back_what_is_asked(settings):
    use(settings, RESPONSE_HOOK=f"{__name__}.empty", STREAM_TRANSFORM_HOOK=f"{__name__}.keep_nothing")
    play("pay")
    response = await turn(message="go")
    assert [item["tool"] for item in response.json()["pending"]] == ["pay"]
    assert response.json()["response"] == ""
    play("shred")
    content = await body_of(await post({"message": "go", "session_id": "s2", "stream": True}))
    assert content.startswith(b"event: request_info\n")
    assert content.endswith(b'"tool":"shred","arguments":{"name":"will"}}\n\ndata: [DONE]\n\n')


# Asking again for an invocation.


async def test_the_status_awaits_input_until_it_is_answered():
    play("pay")
    response = await ask("i1", {"message": "go", "session_id": "s1"})
    asked = response.json()["pending"]
    body = await status("i1")
    assert (body["status"], body["response"], body["pending"], body["error"]) == ("awaiting_input", "so ", asked, None)
    await ask("i2", {"responses": yes(asked), "session_id": "s1"})
    first, second = await status("i1"), await status("i2")
    assert first == body | {"status": "succeeded", "pending": []}
    assert (second["status"], second["response"], second["pending"]) == ("succeeded", "done", [])


@pytest.mark.parametrize("stream", [False, True])
async def test_asking_and_answering_invocations_are_replayed(stream):
    play("pay")

    async def said(invocation_id: str, **body: Any) -> bytes:
        response = await ask(invocation_id, {"session_id": "s1", "stream": stream, **body})
        return await body_of(response) if stream else response.content

    question = await said("i1", message="go")
    assert await said("i1", message="go") == question
    [row] = await asked_rows()
    replies = {row.request_id: True}
    answer = await said("i2", responses=replies)
    assert await said("i2", responses=replies) == answer
    # What was asked is told again even when it was answered.
    assert await said("i1", message="go") == question
    assert fakes.notes == [("pay", "Ada")]
    assert len(fakes.calls) == 2
    changed = await ask("i2", {"session_id": "s1", "stream": stream, "responses": {row.request_id: False}})
    assert changed.status_code == 422
    assert changed.json() == {"error": "this invocation id was used for another request"}


async def test_the_events_of_a_plain_run_tell_what_it_asked():
    play("pay")
    asked = (await ask("i1", {"message": "go", "session_id": "s1"})).json()["pending"]
    compact = json.dumps(asked[0], separators=(",", ":")).encode()
    expected = b"id: 1\ndata: so \n\nid: 2\nevent: request_info\ndata: " + compact + b"\n\nid: 3\ndata: [DONE]\n\n"
    assert await events_of("i1") == expected
    await turn(responses=yes(asked))
    assert await events_of("i1") == expected
    assert await events_of("i1", 1) == expected.partition(b"\n\n")[2]


# What does not answer.


async def unchanged(path: str, body: dict[str, Any]) -> None:
    """Check that a turn is refused as no answer, and leaves no trace."""
    before = [vars(row) | {"_state": None} for row in await asked_rows()]
    session = await the_session()
    count = len(fakes.calls)
    response = await turn(path, **body)
    assert (response.status_code, response.content) == MISMATCH[path]
    assert [vars(row) | {"_state": None} for row in await asked_rows()] == before
    after = await the_session()
    assert (after.version, after.state, after.pending_count) == (session.version, session.state, session.pending_count)
    assert after.claimed_by is None
    assert (len(fakes.calls), fakes.notes) == (count, [])


@BOTH
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    "change",
    [
        lambda first, second: {},
        lambda first, second: {first: True},
        lambda first, second: {second: 5},
        lambda first, second: {first: True, second: 5, "af-call-0": True},
        lambda first, second: {first: True, "af-call-0": 5},
        lambda first, second: {first: "yes", second: 5},
        lambda first, second: {first: 1, second: 5},
        lambda first, second: {first: None, second: 5},
        lambda first, second: {first: {"approved": True, "arguments": {"to": "Eve"}}, second: 5},
        lambda first, second: {first: {"approved": "true"}, second: 5},
        lambda first, second: {"pay-1": True, "ring-1": 5},
    ],
)
async def test_replies_that_do_not_fit_change_nothing(path, stream, change):
    play("pay", "ring")
    asked = await pending(path)
    ids = [item["request_id"] for item in asked]
    await unchanged(path, {"responses": change(*ids), "stream": stream})
    assert await statuses() == ["awaiting_input"]
    good = yes(asked)
    assert (await turn(path, responses=good)).status_code == 200
    assert fakes.notes == [("pay", "Ada")]
    fakes.notes.clear()
    await unchanged(path, {"responses": good, "stream": stream})


async def test_altered_arguments_are_not_taken():
    play("pay")
    [item] = await pending()
    forged = {**item, "approved": True, "arguments": {"to": "Eve"}}
    assert (await turn(responses={item["request_id"]: forged})).status_code == 422
    assert (await turn(responses=yes([item]))).status_code == 200
    assert fakes.notes == [("pay", "Ada")]


async def test_new_input_while_something_is_pending_is_refused():
    play("pay")
    asked = (await ask("i1", {"message": "go", "session_id": "s1"})).json()["pending"]
    expected = {"error": "the session awaits responses", "invocation_id": "i1", "pending": asked}
    for body in ({"message": "x"}, {"message": "x", "stream": True}, {"input": "x"}):
        response = await turn(**body)
        assert (response.status_code, response.content) == (409, json.dumps(expected, separators=(",", ":")).encode())
        response = await turn(PLATFORM, **body)
        assert (response.status_code, response.content) == (
            400,
            b'{"error":"This workflow is awaiting replies; do not replace them with new input."}',
        )
    assert len(fakes.calls) == 1
    assert await statuses() == ["awaiting_input"]
    # Other sessions and other callers have nothing pending.
    assert (await post({"message": "x", "session_id": "s2"})).json()["response"] == "done"


@BOTH
async def test_replies_where_nothing_is_pending_are_refused(path):
    fakes.script(["hi"])
    response = await turn(path, responses={"af-call-0": True})
    assert (response.status_code, response.content) == MISMATCH[path]
    assert await rows(InvocationRecord.objects.all) == []
    assert (await turn(path, message="x")).status_code == 200
    await unchanged(path, {"responses": {"af-call-0": True}})


async def test_replies_without_a_session_are_refused(settings):
    response = await post({"responses": {"af-call-0": True}})
    assert (response.status_code, response.content) == MISMATCH[CHANNEL]
    use(settings, SESSION_MODE="disabled")
    for path in (CHANNEL, PLATFORM):
        response = await turn(path, responses={"af-call-0": True})
        assert (response.status_code, response.content) == MISMATCH[path]
    assert await records() == []
    assert fakes.calls == []


@pytest.mark.parametrize("invocation_id", ["i1", None])
@pytest.mark.parametrize("stream", [False, True])
async def test_without_a_session_nothing_can_be_asked(stream, invocation_id):
    play("pay")
    body = {"message": "go", "stream": stream}
    response = await (post(body) if invocation_id is None else ask(invocation_id, body))
    if stream:
        content = await body_of(response)
        assert content.endswith(b"event: error\ndata: a session is required\n\n")
    else:
        assert (response.status_code, response.content) == (409, b'{"error":"a session is required"}')
    [record] = await records()
    assert (record.status, record.error_code, record.error_status) == ("failed", "session_required", 409)
    assert await asked_rows() == []
    if invocation_id is not None:
        assert (await status("i1"))["error"] == {
            "message": "a session is required",
            "code": "session_required",
            "status": 409,
        }


async def test_without_a_session_the_platform_ends_its_stream_with_the_error(settings):
    use(settings, SESSION_MODE="disabled")
    play("pay")
    content = await body_of(await turn(PLATFORM, message="go", stream=True))
    error = b'{"message": "a session is required", "code": "session_required", "status": 409}'
    assert content.endswith(b"event: error\ndata: " + error + b"\n\n")


async def test_one_whose_session_it_is_not_cannot_answer(settings):
    use(settings, TRUST_ISOLATION_HEADERS=True)
    play("pay")
    asked = (await ask("i1", {"message": "go", "session_id": "s1"}, x_agent_user_isolation_key="ann")).json()["pending"]
    body = {"responses": yes(asked), "session_id": "s1"}
    for caller in ({"x_agent_user_isolation_key": "bob"}, {}):
        response = await ask("i2", body, **caller)
        assert (response.status_code, response.content) == MISMATCH[CHANNEL]
    assert fakes.notes == []
    assert (await ask("i2", body, x_agent_user_isolation_key="ann")).json()["response"] == "done"


# Exactly once.


async def consumed(asked: Sequence[dict[str, Any]]) -> None:
    """Check that replies stay consumed, and that the tool does not run again for them."""
    assert [row.closed_at is None or row.reply == "" for row in await asked_rows()] == [False] * len(asked)
    count = len(fakes.notes)
    again = await turn(responses=yes(asked))
    assert (again.status_code, again.content) == MISMATCH[CHANNEL]
    assert len(fakes.notes) == count
    session = await the_session()
    assert (session.pending_count, session.claimed_by) == (0, None)


@pytest.mark.parametrize("stream", [False, True])
async def test_a_model_that_fails_after_the_tool_does_not_let_it_run_again(stream):
    play("pay", then=[[RuntimeError("away")]])
    asked = await pending()
    response = await turn(responses=yes(asked), stream=stream)
    if stream:
        assert await body_of(response) == b"event: error\ndata: Agent invocation failed.\n\n"
    else:
        assert (response.status_code, response.content) == (500, b'{"error":"Agent invocation failed."}')
    assert fakes.notes == [("pay", "Ada")]
    assert await statuses() == ["succeeded", "failed"]
    await consumed(asked)
    await goes_on()
    assert fakes.notes == [("pay", "Ada")]


async def test_a_failed_answer_to_several_calls_closes_them_all():
    play("look", "pay", "ring", then=[[RuntimeError("away")]])
    asked = await pending()
    assert (await turn(responses=yes(asked))).status_code == 500
    await consumed(asked)
    await goes_on()
    closing = fakes.calls[-1].messages[2]
    assert [(content.call_id, content.result) for content in closing.contents] == [
        (call_id, OUTCOME_UNKNOWN) for call_id in ("look-1", "pay-1", "ring-1")
    ]


async def test_a_run_that_times_out_stays_consumed(settings):
    play("pay", then=[[fakes.gate()]])
    asked = await pending()
    use(settings, RUN_TIMEOUT_SECONDS=0.3)
    response = await turn(responses=yes(asked))
    assert (response.status_code, response.content) == (504, b'{"error":"the run timed out"}')
    assert fakes.notes == [("pay", "Ada")]
    await consumed(asked)
    await goes_on()


@pytest.mark.parametrize("stream", [False, True])
async def test_a_run_that_is_cancelled_stays_consumed(stream):
    play("pay", then=[[fakes.gate()]])
    asked = await pending()
    body = {"responses": yes(asked), "session_id": "s1", "stream": stream}
    answering = asyncio.ensure_future(ask("i2", body))
    await fakes.gate().wait_reached()
    assert (await status("i2"))["status"] == "running"
    assert (await cancel("i2")).json()["status"] == "cancelled"
    response = await answering
    content = await body_of(response) if stream else response.content
    assert b"this invocation was cancelled" in content
    await consumed(asked)
    await goes_on()


async def test_a_run_whose_process_dies_stays_consumed():
    play("pay", then=[[fakes.gate()]])
    asked = await pending()
    answering = asyncio.ensure_future(ask("i2", {"responses": yes(asked), "session_id": "s1"}))
    await fakes.gate().wait_reached()
    await on_database(lambda: abandon(invocation_id="i2"))
    body = await status("i2")
    assert (body["status"], body["error"]["code"]) == ("interrupted", "interrupted")
    await consumed(asked)
    await goes_on()
    # The process was only asleep: what it has done by then is not written any more.
    fakes.gate().open()
    assert (await answering).status_code == 409
    assert fakes.notes == [("pay", "Ada")]
    await check_rows()


async def test_a_new_text_takes_the_session_over_from_a_dead_process():
    play("pay", then=[[fakes.gate()], ["on"]])
    asked = await pending()
    answering = asyncio.ensure_future(ask("i2", {"responses": yes(asked), "session_id": "s1"}))
    await fakes.gate().wait_reached()
    await on_database(lambda: abandon(invocation_id="i2"))
    await goes_on()
    assert await statuses() == ["succeeded", "interrupted", "succeeded"]
    fakes.gate().open()
    assert (await answering).status_code == 409
    await check_rows()


@pytest.mark.parametrize("stream", [False, True])
async def test_an_answer_that_cannot_be_committed_stays_consumed(monkeypatch, stream):
    monkeypatch.setattr("invocations_app.runs.run._PATIENCE_SECONDS", 0.05)
    play("pay")
    asked = await pending()

    def writes_messages_of_a_turn(sql: str) -> bool:
        return sql.startswith("INSERT") and "messagerecord" in sql and bool(fakes.notes)

    with failing_statements(writes_messages_of_a_turn):
        response = await turn(responses=yes(asked), stream=stream)
        content = await body_of(response) if stream else response.content
    assert b"Agent invocation failed." in content
    assert fakes.notes == [("pay", "Ada")]
    await consumed(asked)
    await goes_on()


async def test_a_turn_that_answers_leaves_nothing_of_what_closed_its_calls():
    play("pay")
    await turn(responses=yes(await pending()))
    payloads = [row.payload for row in await rows(lambda: MessageRecord.objects.order_by("position"))]
    assert len(payloads) == 5
    assert OUTCOME_UNKNOWN not in "".join(payloads)
    first, second = await records()
    written_by = [row.invocation_id for row in await rows(lambda: MessageRecord.objects.order_by("position"))]
    assert written_by == [first.pk] * 2 + [second.pk] * 3
    await check_rows()


@pytest.mark.parametrize("fails", [False, True])
async def test_a_call_that_was_open_before_does_not_shift_what_is_stored(fails):
    fakes.script(["hello"])
    await turn(message="hi")

    def leave_a_call_open() -> None:
        row = MessageRecord.objects.get(position=1)
        payload = json.loads(row.payload)
        payload["contents"].append(fakes.call("look", ARGUMENTS["look"], call_id="old").to_dict())
        row.payload = json.dumps(payload)
        row.save()

    await on_database(leave_a_call_open)
    play("pay", then=[[RuntimeError("away")] if fails else ["done"]])
    response = await turn(responses=yes(await pending()))
    assert response.status_code == (500 if fails else 200)
    stored = await rows(lambda: MessageRecord.objects.order_by("position"))
    assert [row.position for row in stored] == list(range(len(stored)))
    texts = [json.loads(row.payload) for row in stored]
    roles = [payload["role"] for payload in texts]
    asking = ["user", "assistant", "tool", "user", "assistant", "tool"]
    assert roles == (asking if fails else ["user", "assistant", "user", "assistant", "user", "tool", "assistant"])
    assert [row.role for row in stored] == roles
    if fails:
        await goes_on()


async def test_of_two_answers_at_once_one_wins():
    play("pay", then=[[fakes.gate(), "done"]])
    replies = yes(await pending())
    answering = [
        asyncio.ensure_future(ask(name, {"responses": replies, "session_id": "s1"})) for name in ("i2", "i3", "i4")
    ]
    await fakes.gate().wait_reached()
    await asyncio.sleep(0.05)
    fakes.gate().open()
    answers = [await answer for answer in answering]
    assert sorted(answer.status_code for answer in answers) == [200, 422, 422]
    for answer in answers:
        if answer.status_code == 422:
            assert (answer.status_code, answer.content) == MISMATCH[CHANNEL]
    assert fakes.notes == [("pay", "Ada")]
    # Those that waited and did not answer are not remembered.
    assert await statuses() == ["succeeded", "succeeded"]
    await goes_on("paid Ada")


async def test_an_answer_that_waits_for_a_running_turn_is_checked_when_its_turn_has_come():
    fakes.script([fakes.gate(), *calling("pay")], ["done"])
    asking = asyncio.ensure_future(ask("i1", {"message": "go", "session_id": "s1"}))
    await fakes.gate().wait_reached()
    early = asyncio.ensure_future(ask("i2", {"responses": {"af-call-0": True}, "session_id": "s1"}))
    await until_status("i2", "queued")
    text = asyncio.ensure_future(ask("i3", {"message": "more", "session_id": "s1"}))
    await until_status("i3", "queued")
    fakes.gate().open()
    asked = (await asking).json()["pending"]
    response = await early
    assert (response.status_code, response.content) == MISMATCH[CHANNEL]
    response = await text
    assert (response.status_code, response.json()) == (
        409,
        {"error": "the session awaits responses", "invocation_id": "i1", "pending": asked},
    )
    assert await statuses() == ["awaiting_input"]
    assert (await get("i2")).status_code == 404
    assert (await turn(responses=yes(asked))).json()["response"] == "done"


async def test_an_answer_in_the_background():
    play("pay")
    response = await ask("i1", {"message": "go", "session_id": "s1", "background": True})
    assert response.status_code == 202
    await until_status("i1", "awaiting_input")
    asked = (await status("i1"))["pending"]
    response = await ask("i2", {"responses": yes(asked), "session_id": "s1", "background": True})
    assert response.status_code == 202
    await until_status("i2", "succeeded")
    assert (await status("i2"))["response"] == "done"
    assert fakes.notes == [("pay", "Ada")]
    refused = await ask("i3", {"responses": yes(asked), "session_id": "s1", "background": True})
    assert (refused.status_code, refused.content) == MISMATCH[CHANNEL]
    assert (await get("i3")).status_code == 404


# Neither yes nor no.


async def test_cancelling_what_awaits_input_drops_it():
    play("pay", "ring")
    asked = (await ask("i1", {"message": "go", "session_id": "s1"})).json()["pending"]
    body = (await cancel("i1")).json()
    assert (body["status"], body["response"], body["pending"]) == ("cancelled", None, [])
    assert body["error"] == {"message": "this invocation was cancelled", "code": "cancelled", "status": 409}
    assert (await cancel("i1")).json() == body
    assert [(row.closed_at is None, row.reply) for row in await asked_rows()] == [(False, ""), (False, "")]
    response = await turn(responses=yes(asked))
    assert (response.status_code, response.content) == MISMATCH[CHANNEL]
    await goes_on()
    assert fakes.notes == []


async def test_cancelling_what_was_answered_changes_nothing():
    play("pay")
    asked = (await ask("i1", {"message": "go", "session_id": "s1"})).json()["pending"]
    await turn(responses=yes(asked))
    version = (await the_session()).version
    assert (await cancel("i1")).json()["status"] == "succeeded"
    assert (await the_session()).version == version
    await goes_on("paid Ada")


async def test_resetting_the_session_drops_what_is_pending():
    play("pay")
    asked = (await ask("i1", {"message": "go", "session_id": "s1"})).json()["pending"]
    assert await reset_session(Scope("default"), "s1") is True
    assert (await status("i1"))["status"] == "cancelled"
    response = await turn(responses=yes(asked))
    assert (response.status_code, response.content) == MISMATCH[CHANNEL]
    fakes.script(["afresh"])
    assert (await turn(message="hi")).json()["response"] == "afresh"
    assert fakes.calls[-1].texts == [("user", "hi")]


@pytest.mark.parametrize("stream", [False, True])
async def test_a_tool_that_is_gone_at_the_answer_fails_the_turn(settings, stream):
    play("pay")
    asked = await pending()
    fakes.switches["tools"] = [approval_fakes.look]
    use(settings, RUN_TIMEOUT_SECONDS=60)
    response = await turn(responses=yes(asked), stream=stream)
    content = await body_of(response) if stream else response.content
    assert b"Agent invocation failed." in content
    assert len(fakes.calls) == 1
    await consumed(asked)
    await goes_on()


# A store of one's own.


@pytest.fixture
def _elsewhere(settings: Any) -> None:
    get_store.cache_clear()
    use(settings, SESSION_STORE=STORE)


@pytest.mark.usefixtures("_elsewhere")
async def test_another_store_holds_what_is_asked_and_answered():
    play("look", "pay")
    asked = await pending()
    assert (await turn(responses=yes(asked))).json() == {"response": "done", "session_id": "s1"}
    assert fakes.notes == [("look", "sky"), ("pay", "Ada")]
    again = await turn(responses=yes(asked))
    assert (again.status_code, again.content) == MISMATCH[CHANNEL]
    fakes.script(["on"])
    await turn(message="and now?")
    check_order(fakes.calls[-1].messages)
    assert OUTCOME_UNKNOWN not in str(told(fakes.calls[-1]))


@pytest.mark.usefixtures("_elsewhere")
async def test_another_store_is_closed_when_the_answer_fails():
    play("look", "pay", then=[[RuntimeError("away")], ["on"]])
    asked = await pending()
    assert (await turn(responses=yes(asked))).status_code == 500
    [kept] = get_store(STORE)._sessions.values()
    check_order_of_stored(kept.state["in_memory"]["messages"])
    assert "tool_approval" not in kept.state
    response = await turn(message="and now?")
    assert response.json() == {"response": "on", "session_id": "s1"}
    check_order(fakes.calls[-1].messages)
    assert str(told(fakes.calls[-1])).count(OUTCOME_UNKNOWN) == 2
    assert fakes.notes == [("look", "sky"), ("pay", "Ada")]


@pytest.mark.usefixtures("_elsewhere")
async def test_another_store_takes_new_text_after_what_was_asked_is_dropped():
    play("pay", then=[["on"]])
    await ask("i1", {"message": "go", "session_id": "s1"})
    assert (await cancel("i1")).json()["status"] == "cancelled"
    response = await turn(message="and now?")
    assert response.json() == {"response": "on", "session_id": "s1"}
    check_order(fakes.calls[-1].messages)


@pytest.mark.usefixtures("_elsewhere")
async def test_another_store_that_lost_the_session_is_not_answered():
    play("pay")
    asked = await pending()
    get_store(STORE)._sessions.clear()
    response = await turn(responses=yes(asked))
    assert (response.status_code, response.content) == (500, b'{"error":"the stored session cannot be read"}')
    assert (len(fakes.calls), fakes.notes) == (1, [])
