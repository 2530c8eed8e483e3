"""``POST {path}`` at the view: answers, sessions, headers, replay and events, to the byte."""

from __future__ import annotations

import asyncio
import contextvars
import dataclasses
import json
import logging
import sys
import types
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
from agent_framework import Content
from django.test import AsyncClient, Client
from django.urls import resolve, reverse

from invocations_app.isolation import get_current_call_id
from invocations_app.models import MessageRecord, SessionRecord
from invocations_app.runs import foundry
from tests import fakes
from tests.client import endpoint, post, post_raw, records, rows
from tests.durable import body_of, until_idle, until_status

PATH = "/invocations"
S1 = "/invocations?agent_session_id=s1"
DONE = b'event: done\ndata: {"session_id": "s1"}\n\n'
NO_STORE = b'{"error":"prepare_options cannot set host-controlled fields: store."}'

in_database = pytest.mark.django_db(transaction=True)


@pytest.fixture(autouse=True)
def _endpoint(settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    settings.INVOCATIONS = endpoint(TARGET="tests.fakes.build_scripted")
    monkeypatch.delenv("FOUNDRY_AGENT_SESSION_ID", raising=False)


async def shown(response: Any) -> tuple[int, bytes]:
    """Return status and body, streamed or not."""
    return response.status_code, await body_of(response) if response.streaming else response.content


async def ask(invocation_id: str, body: Any, path: str = S1) -> Any:
    return await post(body, path, headers={"x-agent-invocation-id": invocation_id})


# Answers.


@in_database
@pytest.mark.parametrize("path", [S1, "/invocations/?agent_session_id=s1"])
async def test_json_answer_with_and_without_slash(path):
    fakes.script(["hel", "lo \u00fc"])
    response = await post({"message": "x"}, path)
    assert (response.status_code, response.content) == (200, '{"response":"hello \u00fc"}'.encode())
    assert dict(response.headers) == {
        "Content-Type": "application/json",
        "x-agent-invocation-id": response.headers["x-agent-invocation-id"],
        "x-agent-session-id": "s1",
    }


@in_database
@pytest.mark.parametrize("path", [S1, "/invocations/?agent_session_id=s1"])
async def test_stream_with_its_headers(path):
    fakes.script(["hel", "", "lo"])
    response = await post({"message": "x", "stream": True}, path)
    delta = b'event: delta\ndata: {"text": "%b"}\n\n'
    assert await shown(response) == (200, delta % b"hel" + delta % b"lo" + DONE)
    assert dict(response.headers) == {
        "Content-Type": "text/event-stream; charset=utf-8",
        "Cache-Control": "no-cache, no-transform",
        "X-Accel-Buffering": "no",
        "x-agent-invocation-id": response.headers["x-agent-invocation-id"],
        "x-agent-session-id": "s1",
    }


@in_database
async def test_empty_message_reaches_the_agent():
    fakes.script(["a"])
    assert await shown(await post({"message": ""}, S1)) == (200, b'{"response":"a"}')
    assert fakes.calls[0].texts == [("user", "")]


@in_database
async def test_pending_requests_are_a_second_key_and_events(settings):
    call = Content.from_function_call(call_id="c1", name="send", arguments='{"to": "\u00e4"}')
    fakes.script([Content.from_function_approval_request("r1", call)])
    pending = {"request_id": "r1", "type": "approval", "tool": "send", "arguments": {"to": "\u00e4"}}
    response = await post({"message": "x"}, S1)
    body = {"response": "", "pending": [pending]}
    assert await shown(response) == (200, json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode())
    response = await post({"message": "x", "stream": True}, "/invocations?agent_session_id=s2")
    events = f'event: request_info\ndata: {json.dumps(pending)}\n\nevent: done\ndata: {{"session_id": "s2"}}\n\n'
    assert await shown(response) == (200, events.encode())
    refused = b'{"error":"This workflow is awaiting replies; do not replace them with new input."}'
    assert await shown(await post({"message": "y"}, S1)) == (400, refused)
    mismatch = b'{"error":"Workflow replies must answer exactly the complete pending request batch."}'
    assert await shown(await post({"responses": {"other": True}}, S1)) == (400, mismatch)


@in_database
async def test_responses_when_nothing_is_pending_are_400():
    expected = b'{"error":"Workflow replies must answer exactly the complete pending request batch."}'
    assert await shown(await post({"responses": {"r1": True}}, S1)) == (400, expected)


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "PATCH", "DELETE", "OPTIONS"])
@pytest.mark.parametrize("path", [PATH, PATH + "/"])
async def test_any_other_method_is_refused(method, path):
    response = await AsyncClient().generic(method, path)
    assert (response.status_code, response.headers["Allow"]) == (405, "POST")
    assert response.content == (b"" if method == "HEAD" else b'{"error":"method not allowed"}')


def test_urls_have_their_names(settings):
    assert reverse("invocations:default-platform") == "/invocations"
    assert resolve("/invocations/").func is not resolve("/invocations/invoke").func


# What is refused.


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b"{", b"Expecting property name enclosed in double quotes: line 1 column 2 (char 1)"),
        (b"[]", b"The invocation must be a JSON object."),
        ({}, b"message must be a string."),
        ({"message": "a", "stream": None}, b"stream must be a boolean."),
        ({"message": "a", "options": None, "stream": True}, b"options must be an object."),
        ({"message": "a", "metadata": 1}, b"'metadata' must be an object"),
    ],
)
async def test_a_malformed_body_is_400_without_ids_and_without_touching_the_database(body, text):
    response = await ask("i1", body)
    assert await shown(response) == (400, b'{"error":"' + text + b'"}')
    assert list(response.headers) == ["Content-Type"]
    assert fakes.calls == []


async def test_a_body_over_the_limit_is_413(settings):
    settings.INVOCATIONS = endpoint(MAX_BODY_BYTES=20)
    assert await shown(await post(b" " * 21, PATH)) == (413, b'{"error":"request body too large"}')


@in_database
@pytest.mark.parametrize("stream", [False, True])
async def test_reserved_options_are_400_with_ids_and_leave_nothing(stream):
    response = await ask("i1", {"message": "a", "options": {"store": True, "tools": 1}, "stream": stream})
    assert await shown(response) == (400, NO_STORE)
    assert (response.headers["x-agent-invocation-id"], response.headers["x-agent-session-id"]) == ("i1", "s1")
    assert (fakes.calls, await records()) == ([], [])


def set_store(invocation, **kwargs):
    return dataclasses.replace(invocation, options={"store": True})


def drop_options(invocation, **kwargs):
    return dataclasses.replace(invocation, options={})


@in_database
async def test_reserved_options_are_looked_for_after_the_hook(settings):
    hooked = {"TARGET": "tests.fakes.build_scripted"}
    fakes.script(["a"])
    settings.INVOCATIONS = endpoint(**hooked, RUN_HOOK="tests.test_platform_view.set_store")
    assert await shown(await post({"message": "a"}, S1)) == (400, NO_STORE)
    settings.INVOCATIONS = endpoint(**hooked, RUN_HOOK="tests.test_platform_view.drop_options")
    assert await shown(await post({"message": "a", "options": {"store": True}}, S1)) == (200, b'{"response":"a"}')


@in_database
async def test_caller_may_send_options_that_the_channel_refuses():
    fakes.script(["a"])
    body = {"message": "a", "options": {"x_unknown": 1, "temperature": 0.5}}
    assert (await post(body, "/invocations/invoke")).status_code == 422
    assert (await post(body, S1)).status_code == 200
    options = fakes.calls[-1].options
    assert (options["x_unknown"], options["temperature"]) == (1, 0.5)


@in_database
@pytest.mark.parametrize("stream", [False, True])
async def test_options_that_the_target_cannot_take(settings, caplog, stream):
    body = {"message": "a", "options": {"temperature": 1}, "stream": stream}
    settings.INVOCATIONS = endpoint(TARGET="tests.parity.target.build_plain")
    status, content = await shown(await post(body, S1))
    plain = b'event: delta\ndata: {"text": "plain"}\n\n' + DONE if stream else b'{"response":"plain"}'
    assert (status, content) == (200, plain)
    assert "takes no run options; they are dropped" in caplog.text
    settings.INVOCATIONS = endpoint(TARGET="tests.parity.target.build_plain", UNSUPPORTED_OPTIONS="error")
    refused = b'{"error":"The hosted agent does not accept caller runtime options."}'
    assert await shown(await post(body, S1)) == (400, refused)


@in_database
async def test_failure_is_500_or_an_error_event():
    error = b'{"message": "Agent invocation failed.", "code": "invocation_failed", "status": 500}'
    fakes.script(["hel", RuntimeError("secret")])
    assert await shown(await post({"message": "a"}, S1)) == (500, b'{"error":"Agent invocation failed."}')
    status, content = await shown(await post({"message": "a", "stream": True}, S1))
    assert (status, content) == (200, b'event: delta\ndata: {"text": "hel"}\n\nevent: error\ndata: ' + error + b"\n\n")
    assert await rows(lambda: MessageRecord.objects.all()) == []


@in_database
async def test_timeout_is_504_or_an_error_event(settings):
    settings.INVOCATIONS = endpoint(TARGET="tests.fakes.build_scripted", RUN_TIMEOUT_SECONDS=0.05)
    fakes.script([fakes.gate()])
    assert await shown(await post({"message": "a"}, S1)) == (504, b'{"error":"the run timed out"}')
    error = b'event: error\ndata: {"message": "the run timed out", "code": "timeout", "status": 504}\n\n'
    assert await shown(await post({"message": "a", "stream": True}, S1)) == (200, error)


@in_database
async def test_exposed_text_is_in_body_and_event(settings):
    settings.INVOCATIONS = endpoint(TARGET="tests.fakes.build_scripted", EXPOSE_ERRORS=True)
    fakes.script([RuntimeError("gr\u00fc\u00df")])
    assert await shown(await post({"message": "a"}, S1)) == (500, '{"error":"gr\u00fc\u00df"}'.encode())
    error = rb'{"message": "gr\u00fc\u00df", "code": "invocation_failed", "status": 500}'
    assert await shown(await post({"message": "a", "stream": True}, S1)) == (
        200,
        b"event: error\ndata: " + error + b"\n\n",
    )


@in_database
def test_stream_and_background_need_asgi():
    client = Client()
    fakes.script(["a"])
    answer = client.post(S1, {"message": "a"}, content_type="application/json")
    assert (answer.status_code, answer.content) == (200, b'{"response":"a"}')
    for field in ("stream", "background"):
        answer = client.post(S1, {"message": "a", field: True}, content_type="application/json")
        assert (answer.status_code, answer.content) == (
            501,
            b'{"error":"streams and background need an ASGI server"}',
        )


# The session.


@in_database
async def test_session_goes_on_under_its_id(settings):
    settings.INVOCATIONS = endpoint()
    for message in ("one", "two"):
        await post({"message": message, "session_id": "other"}, S1)
    assert fakes.calls[-1].texts == [("user", "one"), ("assistant", "one"), ("user", "two")]
    assert [row.session_id for row in await rows(SessionRecord.objects.all)] == ["s1"]
    # The same endpoint: the channel dialect speaks to the same session.
    await post({"message": "three", "session_id": "s1"}, "/invocations/invoke")
    assert fakes.calls[-1].texts[-3:] == [("user", "two"), ("assistant", "two"), ("user", "three")]


@in_database
async def test_generated_session_id_is_told_and_can_be_gone_on_with():
    fakes.script(["a"])
    response = await post({"message": "x"}, PATH)
    session_id = response.headers["x-agent-session-id"]
    assert str(uuid.UUID(session_id)) == session_id
    await post({"message": "y"}, f"{PATH}?agent_session_id={session_id}")
    assert fakes.calls[-1].texts == [("user", "x"), ("assistant", "a"), ("user", "y")]
    response = await post({"message": "x", "stream": True}, PATH)
    _, content = await shown(response)
    other = response.headers["x-agent-session-id"]
    assert content.endswith(f'event: done\ndata: {{"session_id": "{other}"}}\n\n'.encode())
    assert other != session_id


@in_database
@pytest.mark.parametrize("given", ["a%20b", "docs", "x" * 257, "a%0A"])
async def test_ill_formed_session_id_is_replaced(given, monkeypatch):
    monkeypatch.setenv("FOUNDRY_AGENT_SESSION_ID", "env-1")
    fakes.script(["a"])
    response = await post({"message": "x"}, f"{PATH}?agent_session_id={given}")
    uuid.UUID(response.headers["x-agent-session-id"])


@in_database
async def test_session_id_of_the_environment(monkeypatch):
    monkeypatch.setenv("FOUNDRY_AGENT_SESSION_ID", "env-1")
    fakes.script(["a"])
    assert (await post({"message": "x"}, PATH)).headers["x-agent-session-id"] == "env-1"
    assert (await post({"message": "x"}, S1)).headers["x-agent-session-id"] == "s1"


def set_session(invocation, **kwargs):
    return dataclasses.replace(invocation, session_id="hook's")


@in_database
async def test_generated_session_id_does_not_satisfy_the_mode_that_requires_one(settings, monkeypatch):
    required = {"TARGET": "tests.fakes.build_scripted", "SESSION_MODE": "required"}
    settings.INVOCATIONS = endpoint(**required)
    fakes.script(["a"])
    refused = (409, b'{"error":"a session is required"}')
    assert await shown(await post({"message": "x"}, PATH)) == refused
    assert await shown(await post({"message": "x", "stream": True}, f"{PATH}?agent_session_id=docs")) == refused
    assert (await post({"message": "x"}, S1)).status_code == 200
    settings.INVOCATIONS = endpoint(**required, RUN_HOOK="tests.test_platform_view.set_session")
    assert (await post({"message": "x"}, PATH)).headers["x-agent-session-id"] == "hook%27s"
    settings.INVOCATIONS = endpoint(**required)
    monkeypatch.setenv("FOUNDRY_AGENT_SESSION_ID", "env-1")
    assert (await post({"message": "x"}, PATH)).status_code == 200


@in_database
async def test_no_session_where_the_mode_disables_it(settings):
    settings.INVOCATIONS = endpoint(TARGET="tests.fakes.build_scripted", SESSION_MODE="disabled")
    fakes.script(["a"])
    response = await post({"message": "x", "stream": True}, S1)
    delta = b'event: delta\ndata: {"text": "a"}\n\n'
    assert await shown(response) == (200, delta + b'event: done\ndata: {"session_id": null}\n\n')
    assert "x-agent-session-id" not in response.headers
    assert await rows(SessionRecord.objects.all) == []


# Replay, status, events, cancellation.


@in_database
@pytest.mark.parametrize("path", [S1, PATH])
async def test_repeat_is_answered_from_the_record_under_the_recorded_session(path):
    fakes.script(["hel", "lo"])
    first = await ask("i1", {"message": "x"}, path)
    session_id = first.headers["x-agent-session-id"]
    again = await ask("i1", {"message": "x"}, path)
    assert (again.content, again.headers["x-agent-session-id"]) == (b'{"response":"hello"}', session_id)
    streamed = await ask("i1", {"message": "x", "stream": True}, path)
    done = f'event: done\ndata: {{"session_id": "{session_id}"}}\n\n'
    expected = b'event: delta\ndata: {"text": "hello"}\n\n' + done.encode()
    assert await shown(streamed) == (200, expected)
    assert (len(fakes.calls), len(await records())) == (1, 1)


@in_database
@pytest.mark.parametrize(
    ("body", "path"),
    [
        ({"message": "y"}, S1),
        ({"message": "x"}, PATH),
        ({"message": "x"}, "/invocations?agent_session_id=s2"),
        ({"message": "x", "session_id": "s1"}, "/invocations/invoke"),
    ],
)
async def test_another_request_of_the_same_id_is_422(body, path):
    fakes.script(["a"])
    await ask("i1", {"message": "x"})
    expected = b'{"error":"this invocation id was used for another request"}'
    assert await shown(await ask("i1", body, path)) == (422, expected)


@in_database
async def test_events_are_told_in_the_dialect_of_the_invocation():
    fakes.script(["hel", "lo"])
    await shown(await ask("i1", {"message": "x", "stream": True}))
    await until_idle()
    response = await AsyncClient().get("/invocations/i1/events")
    first = b'id: 1\nevent: delta\ndata: {"text": "hel"}\n\n'
    rest = b'id: 2\nevent: delta\ndata: {"text": "lo"}\n\nid: 3\n' + DONE
    assert await shown(response) == (200, first + rest)
    assert await shown(await AsyncClient().get("/invocations/i1/events?after=1")) == (200, rest)
    assert (await AsyncClient().get("/invocations/i1/events?after=3")).status_code == 204
    [record] = await records()
    assert (record.dialect, record.status) == ("platform", "succeeded")


@in_database
async def test_events_of_a_plain_run_are_its_text_as_one():
    fakes.script(["hel", "lo"])
    await ask("i1", {"message": "x"})
    response = await AsyncClient().get("/invocations/i1/events")
    assert await shown(response) == (200, b'id: 1\nevent: delta\ndata: {"text": "hello"}\n\nid: 2\n' + DONE)


@in_database
async def test_background_is_202_and_can_be_cancelled():
    fakes.script(["a", fakes.gate(), "b"])
    response = await ask("i1", {"message": "x", "background": True, "stream": True})
    assert await shown(response) == (202, b'{"invocation_id":"i1","status":"running","session_id":"s1"}')
    assert response.headers["Location"] == "/invocations/i1"
    await fakes.gate().wait_reached()
    response = await AsyncClient().post("/invocations/i1/cancel")
    assert (response.status_code, response.json()["status"]) == (200, "cancelled")
    error = b'event: error\ndata: {"message": "this invocation was cancelled", "code": "cancelled", "status": 409}\n\n'
    response = await AsyncClient().get("/invocations/i1/events")
    assert await shown(response) == (200, b'id: 1\nevent: delta\ndata: {"text": "a"}\n\nid: 2\n' + error)
    assert await shown(await ask("i1", {"message": "x"})) == (409, b'{"error":"this invocation was cancelled"}')


@in_database
async def test_background_of_a_plain_run_is_answered_later():
    fakes.script(["a"])
    response = await ask("i1", {"message": "x", "background": True})
    assert response.status_code == 202
    await until_status("i1", "succeeded")
    assert await shown(await ask("i1", {"message": "x"})) == (200, b'{"response":"a"}')


# Who calls.

USER = ("x-agent-user-id", "ada")
CALL = ("x-agent-foundry-call-id", "call-secret")


@in_database
async def test_user_id_and_call_id_are_believed_where_headers_are_trusted(settings, caplog):
    caplog.set_level(logging.DEBUG)
    settings.INVOCATIONS = endpoint(TARGET="tests.fakes.build_scripted", TRUST_ISOLATION_HEADERS=True)
    for path in (PATH, "/invocations/invoke"):
        fakes.script(["a", lambda: fakes.notes.append(get_current_call_id()), RuntimeError("broken")])
        await post_raw(b'{"message":"x"}', [USER, CALL], path)
        await until_idle()
    assert fakes.notes == ["call-secret", "call-secret"]
    assert [record.user_key for record in await records()] == ["platform:ada", "platform:ada"]
    assert "call-secret" not in caplog.text
    assert "call-secret" not in repr([vars(record) for record in await records()])


@in_database
async def test_isolation_key_goes_before_the_user_id(settings):
    settings.INVOCATIONS = endpoint(TARGET="tests.fakes.build_scripted", TRUST_ISOLATION_HEADERS=True)
    fakes.script(["a"])
    await post_raw(b'{"message":"x"}', [USER, ("x-agent-user-isolation-key", "grace")], PATH)
    assert [record.user_key for record in await records()] == ["platform:grace"]


@in_database
async def test_untrusted_headers_are_not_believed():
    fakes.script(["a", lambda: fakes.notes.append(get_current_call_id())])
    await post_raw(b'{"message":"x"}', [USER, CALL], PATH)
    assert [record.user_key for record in await records()] == [""]
    assert fakes.notes == [None]


@pytest.mark.parametrize("name", [USER[0], CALL[0]])
async def test_a_trusted_header_that_comes_twice_is_400(settings, name):
    settings.INVOCATIONS = endpoint(TRUST_ISOLATION_HEADERS=True)
    response = await post_raw(b'{"message":"x"}', [(name, "a"), (name, "b")], PATH)
    assert (response.status, response.content) == (400, b'{"error":"invalid isolation header"}')


# The request context of Foundry's agent server.


class FakeCore(types.ModuleType):
    """What ``azure.ai.agentserver.core`` has of it."""

    def __init__(self) -> None:
        super().__init__("azure.ai.agentserver.core")
        self.current: contextvars.ContextVar[Any] = contextvars.ContextVar("current", default=None)
        self.set_request_context = self.current.set

    @staticmethod
    def FoundryAgentRequestContext(*, call_id: Any, user_id: Any, session_id: Any) -> Any:
        return (call_id, user_id, session_id)


@pytest.fixture
def core(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeCore]:
    module = FakeCore()
    for name in ("azure", "azure.ai", "azure.ai.agentserver"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    foundry._core.cache_clear()
    yield module
    foundry._core.cache_clear()


@in_database
@pytest.mark.parametrize("stream", [False, True])
async def test_request_context_is_bound_for_the_run_and_nowhere_else(settings, core, stream):
    settings.INVOCATIONS = endpoint(TARGET="tests.fakes.build_scripted", TRUST_ISOLATION_HEADERS=True)

    async def note_in_thread() -> None:
        fakes.notes.append(await asyncio.to_thread(core.current.get))

    fakes.script(["a", lambda: fakes.notes.append(core.current.get()), note_in_thread])
    body = json.dumps({"message": "x", "stream": stream}).encode()
    await post_raw(body, [USER, CALL], PATH)
    await post_raw(body.replace(b"}", b',"session_id":"s1"}'), [], "/invocations/invoke")
    [generated] = [row.session_id for row in await rows(SessionRecord.objects.order_by("pk").all)][:1]
    bound = [("call-secret", "ada", generated)] * 2 + [(None, None, "s1")] * 2
    assert fakes.notes == bound
    assert core.current.get() is None


@in_database
async def test_request_context_has_the_session_id_that_the_hook_set(settings, core):
    settings.INVOCATIONS = endpoint(
        TARGET="tests.fakes.build_scripted", RUN_HOOK="tests.test_platform_view.set_session"
    )
    fakes.script(["a", lambda: fakes.notes.append(core.current.get())])
    await post({"message": "x"}, S1)
    assert fakes.notes == [(None, None, "hook's")]


@in_database
async def test_package_that_cannot_be_imported_is_no_matter(monkeypatch, caplog):
    def broken(name: str) -> Any:
        raise RuntimeError("broken")

    monkeypatch.setattr(foundry.importlib, "import_module", broken)
    foundry._core.cache_clear()
    try:
        fakes.script(["a"])
        assert await shown(await post({"message": "x"}, S1)) == (200, b'{"response":"a"}')
        assert "cannot be imported; its context is not bound" in caplog.text
    finally:
        foundry._core.cache_clear()
