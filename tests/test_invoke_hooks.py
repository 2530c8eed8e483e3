"""Hooks over HTTP: what they change of an invocation and of its answer, and what they cannot."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import math
from types import MappingProxyType
from typing import Any

import pytest
from agent_framework import AgentResponse, AgentResponseUpdate, Content, Message
from asgiref.sync import sync_to_async
from django.contrib.auth import get_user_model

from invocations_app.exceptions import InvocationRejected
from invocations_app.isolation import get_current_isolation_keys
from invocations_app.models import MessageRecord, SessionRecord
from tests import fakes
from tests.client import endpoint, post, records, rows
from tests.frames import SseEvent, read_events, read_text

pytestmark = pytest.mark.django_db(transaction=True)
FAILED = b'{"error":"Agent invocation failed."}'
seen: list[Any] = []
change: dict[str, Any] = {}


@pytest.fixture(autouse=True)
def _fresh_handles() -> None:
    seen.clear()
    change.clear()


def hooked(target: str = "build_echo", **names: str) -> dict[str, Any]:
    paths = {kind.upper(): f"{__name__}.{name}" for kind, name in names.items()}
    return endpoint(TARGET=f"tests.fakes.{target}", **paths)


async def body_of(response: Any) -> bytes:
    assert response.status_code == 200, response.content
    return b"".join([chunk async for chunk in response.streaming_content])


async def history() -> list[tuple[str, str]]:
    stored = await rows(lambda: MessageRecord.objects.order_by("position"))
    messages = [Message.from_dict(json.loads(row.payload)) for row in stored]
    return [(str(message.role), "".join(content.text or "" for content in message.contents)) for message in messages]


# Run hooks: each function does what the test has put into `change`.


def run_sync(invocation: Any, *, target: Any, request: Any) -> Any:
    seen.append((invocation, target, request))
    return dataclasses.replace(invocation, **change)


async def run_async(invocation: Any, *, target: Any, request: Any) -> Any:
    await asyncio.sleep(0)
    return run_sync(invocation, target=target, request=request)


def run_in_place(invocation: Any, **kwargs: Any) -> Any:
    invocation.input[:] = [Message("user", ["in place"])]
    invocation.options["temperature"] = 0.25
    invocation.metadata["added"] = True
    return invocation


def run_clears_input(invocation: Any, **kwargs: Any) -> Any:
    invocation.input.clear()
    return invocation


def run_refuses(invocation: Any, **kwargs: Any) -> Any:
    raise InvocationRejected(**change)


async def run_refuses_async(invocation: Any, **kwargs: Any) -> Any:
    raise InvocationRejected(**change)


def run_raises(invocation: Any, **kwargs: Any) -> Any:
    raise RuntimeError("the reason")


def run_nothing(invocation: Any, **kwargs: Any) -> Any:
    return None


def run_uses_orm(invocation: Any, **kwargs: Any) -> Any:
    return dataclasses.replace(invocation, session_id=f"users-{get_user_model().objects.count()}")


def run_notes_keys(invocation: Any, **kwargs: Any) -> Any:
    seen.append(get_current_isolation_keys())
    return invocation


BOTH = pytest.mark.parametrize("hook", ["run_sync", "run_async"])


@BOTH
async def test_a_run_hook_gets_the_invocation_the_target_and_the_request(settings, hook):
    settings.INVOCATIONS = hooked(run_hook=hook)
    body = {"message": "hi", "session_id": "s1", "metadata": {"a": [1]}, "options": {"seed": 1}, "ignored": 1}
    await post(body, headers={"x-agent-invocation-id": "i1", "x-custom": "c"})
    [(invocation, target, request)] = seen
    assert (invocation.id, invocation.endpoint, invocation.dialect) == ("i1", "default", "channel")
    assert [message.text for message in invocation.input] == ["hi"]
    assert (invocation.session_id, invocation.session_mode, invocation.stream) == ("s1", "auto", False)
    assert (invocation.options, invocation.metadata) == ({"seed": 1}, {"a": [1]})
    assert target is fakes.built[0]
    assert (request.headers["x-custom"], request.user.is_authenticated) == ("c", False)
    # The body was parsed already, and not by DRF.
    assert (json.loads(request.body), dict(request.data), dict(request.POST)) == (body, {}, {})


@BOTH
async def test_a_run_hook_changes_the_input(settings, hook):
    settings.INVOCATIONS = hooked(run_hook=hook)
    change["input"] = [Message("system", ["be brief"]), Message("user", ["changed"])]
    assert (await post({"message": "given", "session_id": "s1"})).content == b'{"response":"changed","session_id":"s1"}'
    [call] = fakes.calls
    assert call.texts == [("system", "be brief"), ("user", "changed")]
    assert all(message.message_id for message in call.messages)
    assert ["hosting" in message.additional_properties for message in call.messages] == [False, True]
    assert await history() == [("system", "be brief"), ("user", "changed"), ("assistant", "changed")]
    assert [message.message_id for message in change["input"]] == [None, None]


@BOTH
async def test_a_run_hook_changes_the_session(settings, hook):
    settings.INVOCATIONS = hooked(run_hook=hook)
    change["session_id"] = "other one"
    response = await post({"message": "a", "session_id": "s1"})
    assert response.content == b'{"response":"a","session_id":"other one"}'
    assert response.headers["x-agent-session-id"] == "other%20one"
    assert [session.session_id for session in await rows(SessionRecord.objects.all)] == ["other one"]
    [record] = await records()
    assert record.session_id == "other one"


async def test_a_run_hook_takes_the_session_away(settings):
    settings.INVOCATIONS = hooked(run_hook="run_sync")
    change["session_id"] = None
    response = await post({"message": "a", "session_id": "s1"})
    assert response.content == b'{"response":"a","session_id":null}'
    assert "x-agent-session-id" not in response.headers
    assert await rows(SessionRecord.objects.all) == []


@BOTH
async def test_a_run_hook_changes_the_session_mode(settings, hook):
    settings.INVOCATIONS = hooked(run_hook=hook)
    change["session_mode"] = "disabled"
    assert (await post({"message": "a", "session_id": "s1"})).content == b'{"response":"a","session_id":null}'
    change["session_mode"] = "required"
    refused = await post({"message": "a"})
    assert (refused.status_code, refused.content) == (409, b'{"error":"a session is required"}')
    change["session_id"] = "made up"
    assert (await post({"message": "a"})).content == b'{"response":"a","session_id":"made up"}'
    assert len(await rows(SessionRecord.objects.all)) == 1


@BOTH
async def test_a_run_hook_adds_options_that_a_caller_may_not_send(settings, hook):
    settings.INVOCATIONS = hooked(run_hook=hook)
    change["options"] = MappingProxyType({"user": "u", "temperature": 0.5})
    await post({"message": "a", "options": {"temperature": 1, "seed": 2}})
    options = fakes.calls[0].options
    assert (options["user"], options["temperature"], "seed" in options) == ("u", 0.5, False)


async def test_options_that_a_run_hook_adds_count_as_options(settings):
    settings.INVOCATIONS = hooked("build_custom", run_hook="run_sync")
    settings.INVOCATIONS["default"]["UNSUPPORTED_OPTIONS"] = "error"
    settings.INVOCATIONS = settings.INVOCATIONS
    change["options"] = {"temperature": 1}
    response = await post({"message": "a"})
    assert response.status_code == 422
    assert response.content == b'{"error":"The hosted agent does not accept caller runtime options."}'
    change["options"] = {}
    assert (await post({"message": "a", "options": {"temperature": 1}})).status_code == 200


@BOTH
async def test_a_run_hook_decides_whether_it_is_streamed(settings, hook):
    settings.INVOCATIONS = hooked(run_hook=hook)
    change["stream"] = True
    response = await post({"message": "a b"})
    assert response.headers["Content-Type"] == "text/event-stream; charset=utf-8"
    assert await body_of(response) == b"data: a \n\ndata: b\n\ndata: [DONE]\n\n"
    change["stream"] = False
    response = await post({"message": "a b", "stream": True})
    assert response.content == b'{"response":"a b","session_id":null}'
    assert [record.stream for record in await records()] == [True, False]


async def test_metadata_that_a_run_hook_changes_is_recorded(settings):
    settings.INVOCATIONS = hooked(run_hook="run_sync")
    change["metadata"] = MappingProxyType({"tenant": "t1"})
    await post({"message": "a", "metadata": {"given": 1}})
    [record] = await records()
    assert json.loads(record.metadata) == {"tenant": "t1"}


async def test_a_run_hook_may_change_the_invocations_parts_in_place(settings):
    settings.INVOCATIONS = hooked(run_hook="run_in_place")
    assert (await post({"message": "given", "metadata": {"a": 1}})).json()["response"] == "in place"
    [call] = fakes.calls
    assert (call.options["temperature"], "hosting" in call.messages[0].additional_properties) == (0.25, True)
    [record] = await records()
    assert json.loads(record.metadata) == {"a": 1, "added": True}


async def test_a_sync_run_hook_may_use_the_orm(settings):
    settings.INVOCATIONS = hooked(run_hook="run_uses_orm")
    await sync_to_async(get_user_model().objects.create_user)("ada")
    assert (await post({"message": "a"})).json()["session_id"] == "users-1"


async def test_a_run_hook_sees_the_isolation_keys(settings):
    settings.INVOCATIONS = hooked(run_hook="run_notes_keys")
    settings.INVOCATIONS["default"]["TRUST_ISOLATION_HEADERS"] = True
    settings.INVOCATIONS = settings.INVOCATIONS
    await post({"message": "a"}, headers={"x-agent-user-isolation-key": "u"})
    assert [keys.user_key for keys in seen] == ["u"]


@pytest.mark.parametrize("hook", ["run_refuses", "run_refuses_async"])
@pytest.mark.parametrize("stream", [False, True])
async def test_a_run_hook_refuses(settings, hook, stream):
    settings.INVOCATIONS = hooked(run_hook=hook)
    change["text"] = 'not "today"'
    response = await post(
        {"message": "a", "session_id": "s1", "stream": stream}, headers={"x-agent-invocation-id": "i1"}
    )
    assert (response.status_code, response.content) == (422, b'{"error":"not \\"today\\""}')
    assert (response.headers["x-agent-invocation-id"], response.headers["x-agent-session-id"]) == ("i1", "s1")
    change["status"] = 402
    assert (await post({"message": "a"})).status_code == 402
    assert await records() == []
    assert await rows(SessionRecord.objects.all) == []
    assert fakes.calls == []


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"id": "other"}, "changed 'id', which a run hook may not"),
    ({"endpoint": "other"}, "changed 'endpoint', which a run hook may not"),
    ({"dialect": "platform"}, "changed 'dialect', which a run hook may not"),
    ({"background": True}, "changed 'background', which a run hook may not"),
    ({"input": "a text"}, "set 'input' to something else than a non-empty list of Message"),
    ({"input": []}, "set 'input' to something else than a non-empty list of Message"),
    ({"input": None}, "set 'input' to something else than a non-empty list of Message"),
    ({"input": ["a text"]}, "set 'input' to something else than a non-empty list of Message"),
    ({"input": Message("user", ["a"])}, "set 'input' to something else than a non-empty list of Message"),
    ({"session_id": 5}, "set 'session_id' to something else than None or a string of at most 256 characters"),
    ({"session_id": "x" * 257}, "set 'session_id' to something else than None or a string of at most 256 characters"),
    ({"session_id": "a\0"}, "set 'session_id' to a string with control characters or lone surrogates"),
    ({"session_id": "\ud800"}, "set 'session_id' to a string with control characters or lone surrogates"),
    ({"session_mode": "never"}, "set 'session_mode' to 'never', not one of auto, required, disabled"),
    ({"stream": 1}, "set 'stream' to int, not bool"),
    ({"options": None}, "set 'options' to NoneType, not a mapping"),
    ({"metadata": []}, "set 'metadata' to list, not a mapping"),
    ({"metadata": {"a": object()}}, "set 'metadata' to something that JSON does not have"),
    ({"metadata": {"a": math.nan}}, "set 'metadata' to something that JSON does not have"),
]


@pytest.mark.parametrize(("wrong", "problem"), WRONG)
async def test_what_a_run_hook_may_not_do_fails_and_names_it_in_the_log(settings, caplog, wrong, problem):
    settings.INVOCATIONS = hooked(run_hook="run_sync")
    change.update(wrong)
    response = await post({"message": "a", "session_id": "s1"})
    assert (response.status_code, response.content) == (500, FAILED)
    assert f"run hook '{__name__}.run_sync' {problem}" in caplog.text
    assert await records() == []


@pytest.mark.parametrize(
    ("hook", "problem"),
    [
        ("run_raises", "raised RuntimeError: the reason"),
        ("run_nothing", "returned NoneType, not Invocation"),
        ("run_clears_input", "set 'input' to something else than a non-empty list of Message"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_a_run_hook_that_fails_is_500_and_named_in_the_log(settings, caplog, hook, problem, stream):
    settings.INVOCATIONS = hooked(run_hook=hook)
    response = await post({"message": "a", "stream": stream})
    assert (response.status_code, response.content) == (500, FAILED)
    assert f"run hook '{__name__}.{hook}' {problem}" in caplog.text
    assert await records() == []


async def test_a_hook_that_fails_is_named_to_the_caller_where_errors_are_exposed(settings):
    settings.INVOCATIONS = hooked(run_hook="run_raises")
    settings.DEBUG = True
    response = await post({"message": "a"})
    assert response.json() == {"error": f"run hook '{__name__}.run_raises' raised RuntimeError: the reason"}


# Response hooks.


def respond_shouts(result: AgentResponse, *, invocation: Any) -> AgentResponse:
    seen.append(invocation)
    for message in result.messages:
        for content in message.contents:
            content.text = (content.text or "").upper()
    return result


async def respond_other(result: AgentResponse, *, invocation: Any) -> AgentResponse:
    await asyncio.sleep(0)
    return AgentResponse(messages=[Message("assistant", ["an", "other"]), Message("assistant", [" one"])])


def respond_writes_into_the_input(result: AgentResponse, *, invocation: Any) -> AgentResponse:
    for message in invocation.input:
        message.contents.append(Content.from_text(" (noted)"))
        message.additional_properties["noted"] = True
    return result


def respond_wrong(result: AgentResponse, *, invocation: Any) -> str:
    return result.text


async def respond_raises(result: AgentResponse, *, invocation: Any) -> AgentResponse:
    raise RuntimeError("the reason")


@pytest.mark.parametrize(("hook", "answer"), [("respond_shouts", "HI THERE"), ("respond_other", "another one")])
async def test_a_response_hook_changes_the_answer_and_not_the_history(settings, hook, answer):
    settings.INVOCATIONS = hooked(response_hook=hook)
    assert (await post({"message": "hi there", "session_id": "s1"})).json()["response"] == answer
    [record] = await records()
    assert json.loads(record.answer)["text"] == answer
    assert await history() == [("user", "hi there"), ("assistant", "hi there")]


async def test_what_a_response_hook_writes_into_the_invocation_stays_out_of_the_history(settings):
    settings.INVOCATIONS = hooked(response_hook="respond_writes_into_the_input")
    await post({"message": "hi there", "session_id": "s1"})
    assert await history() == [("user", "hi there"), ("assistant", "hi there")]
    stored = await rows(lambda: MessageRecord.objects.order_by("position"))
    assert "noted" not in stored[0].payload


async def test_usage_is_the_targets_though_a_response_hook_makes_another_result(settings):
    settings.INVOCATIONS = hooked("build_scripted", response_hook="respond_other")
    fakes.script(["a", fakes.usage(1, 2)])
    await post({"message": "a"})
    [record] = await records()
    assert record.total_tokens == 3


async def test_a_response_hook_gets_the_invocation_after_the_run_hook(settings):
    settings.INVOCATIONS = hooked(run_hook="run_sync", response_hook="respond_shouts")
    change["metadata"] = {"from": "the run hook"}
    await post({"message": "a"}, headers={"x-agent-invocation-id": "i1"})
    assert [(invocation.id, invocation.metadata) for invocation in seen[1:]] == [("i1", {"from": "the run hook"})]


async def test_a_response_hook_is_not_called_for_a_stream(settings):
    settings.INVOCATIONS = hooked(response_hook="respond_raises")
    assert read_text(await body_of(await post({"message": "a b", "stream": True}))) == "a b"


@pytest.mark.parametrize(
    ("hook", "problem"),
    [("respond_wrong", "returned str, not AgentResponse"), ("respond_raises", "raised RuntimeError: the reason")],
)
async def test_a_response_hook_that_fails_fails_the_turn(settings, caplog, hook, problem):
    settings.INVOCATIONS = hooked(response_hook=hook)
    response = await post({"message": "a", "session_id": "s1"})
    assert (response.status_code, response.content) == (500, FAILED)
    assert f"response hook '{__name__}.{hook}' {problem}" in caplog.text
    [record] = await records()
    assert (record.status, record.answer, record.error_code) == ("failed", "", "invocation_failed")
    assert await history() == []


# Stream transform hooks.


def transform_shouts(update: AgentResponseUpdate, *, invocation: Any) -> AgentResponseUpdate:
    seen.append(invocation)
    for content in update.contents:
        content.text = (content.text or "").upper()
    return update


async def transform_drops_b(update: AgentResponseUpdate, *, invocation: Any) -> AgentResponseUpdate | None:
    await asyncio.sleep(0)
    return None if update.text.startswith("b") else update


def transform_doubles(update: AgentResponseUpdate, *, invocation: Any) -> AgentResponseUpdate:
    update.contents.append(Content.from_text(update.text))
    return update


def transform_wrong(update: AgentResponseUpdate, *, invocation: Any) -> str:
    return update.text


def transform_raises_at_b(update: AgentResponseUpdate, *, invocation: Any) -> AgentResponseUpdate:
    if update.text.startswith("b"):
        raise RuntimeError("the reason")
    return update


def transform_drops_all(update: AgentResponseUpdate, *, invocation: Any) -> None:
    return None


@pytest.mark.parametrize(
    ("hook", "wire"),
    [
        ("transform_shouts", b"data: A \n\ndata: B \n\ndata: C\n\ndata: [DONE]\n\n"),
        ("transform_drops_b", b"data: a \n\ndata: c\n\ndata: [DONE]\n\n"),
        ("transform_doubles", b"data: a a \n\ndata: b b \n\ndata: cc\n\ndata: [DONE]\n\n"),
        ("transform_drops_all", b"data: [DONE]\n\n"),
    ],
)
async def test_a_transform_hook_changes_the_stream_and_not_the_history(settings, hook, wire):
    settings.INVOCATIONS = hooked(stream_transform_hook=hook)
    body = await body_of(await post({"message": "a b c", "session_id": "s1", "stream": True}))
    assert body == wire
    [record] = await records()
    assert (record.status, json.loads(record.answer)["text"]) == ("succeeded", read_text(wire))
    assert await history() == [("user", "a b c"), ("assistant", "a b c")]


async def test_a_transform_hook_is_not_called_for_json(settings):
    settings.INVOCATIONS = hooked(stream_transform_hook="transform_drops_all")
    assert (await post({"message": "a b"})).json()["response"] == "a b"


@pytest.mark.parametrize(
    ("hook", "before", "problem"),
    [
        ("transform_wrong", [], "returned str, not AgentResponseUpdate"),
        ("transform_raises_at_b", [SseEvent("a ")], "raised RuntimeError: the reason"),
    ],
)
async def test_a_transform_hook_that_fails_ends_the_stream_with_an_error(settings, caplog, hook, before, problem):
    settings.INVOCATIONS = hooked(stream_transform_hook=hook)
    body = await body_of(await post({"message": "a b c", "session_id": "s1", "stream": True}))
    assert read_events(body) == [*before, SseEvent("Agent invocation failed.", "error")]
    assert f"stream transform hook '{__name__}.{hook}' {problem}" in caplog.text
    [record] = await records()
    assert (record.status, record.answer, record.error_code) == ("failed", "", "invocation_failed")
    assert await history() == []


async def test_a_hook_that_cannot_be_imported_is_500_and_named_in_the_log(settings, caplog):
    settings.INVOCATIONS = hooked(run_hook="no_such_hook")
    response = await post({"message": "a"})
    assert (response.status_code, response.content) == (500, FAILED)
    assert f"{__name__}.no_such_hook" in caplog.text
