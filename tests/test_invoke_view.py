"""``POST {path}/invoke`` at the view: answers, errors, headers and records, to the byte."""

from __future__ import annotations

import asyncio
import json
import re
import uuid
from typing import Any

import pytest
from django.db import OperationalError
from django.test import AsyncClient, Client
from django.utils import timezone

from invocations_app.conf import DEFAULT_OPTIONS
from invocations_app.models import InvocationRecord, MessageRecord, SessionRecord
from invocations_app.storage import database, invocations, turns
from tests import fakes
from tests.alone import go_alone
from tests.client import INVOKE, endpoint, post, post_raw, records, rows
from tests.frames import SseEvent, read_events, read_text

MIB = 1024 * 1024
in_database = pytest.mark.django_db(transaction=True)


# Answers.


@in_database
@pytest.mark.parametrize(
    ("body", "content"),
    [
        ({"message": "pong", "session_id": "s1"}, b'{"response":"pong","session_id":"s1"}'),
        ({"message": "pong"}, b'{"response":"pong","session_id":null}'),
        ({"message": "pong", "session_id": None}, b'{"response":"pong","session_id":null}'),
        ({"message": "pong", "session_id": ""}, b'{"response":"pong","session_id":""}'),
        ({"message": " ", "session_id": "a b/\u00fc"}, '{"response":" ","session_id":"a b/\u00fc"}'.encode()),
        (
            {"message": "gr\u00fc\u00df \U0001f600 \u2028"},
            '{"response":"gr\u00fc\u00df \U0001f600 \u2028","session_id":null}'.encode(),
        ),
        (
            {"message": "p", "stream": False, "options": {}, "metadata": {}, "background": False, "other": [1]},
            b'{"response":"p","session_id":null}',
        ),
        (
            {
                "message": "p",
                "stream": None,
                "options": None,
                "metadata": None,
                "background": None,
                "input": None,
                "responses": None,
            },
            b'{"response":"p","session_id":null}',
        ),
        (b'\xef\xbb\xbf{"message":"a","message":"last wins"}', b'{"response":"last wins","session_id":null}'),
    ],
)
async def test_json_answer_is_compact_and_raw(body, content):
    response = await post(body)
    assert (response.status_code, response.content) == (200, content)
    assert response.headers["Content-Type"] == "application/json"


@in_database
async def test_the_same_target_answers_with_and_without_slash():
    for path in (INVOKE, INVOKE + "/"):
        response = await post({"message": "pong"}, path)
        assert response.content == b'{"response":"pong","session_id":null}'


@in_database
async def test_contents_of_an_answer_are_joined_with_nothing(settings):
    settings.INVOCATIONS = endpoint(TARGET="tests.fakes.build_pieces")
    assert (await post({"message": "x"})).content == b'{"response":"hello","session_id":null}'


@in_database
async def test_stream_says_the_same_with_its_headers(settings):
    settings.INVOCATIONS = endpoint(TARGET="tests.fakes.build_pieces")
    response = await post({"message": "x", "stream": True, "session_id": "s1"}, headers={"accept": "text/event-stream"})
    body = b"".join([chunk async for chunk in response.streaming_content])
    assert body == b"data: hel\n\ndata: lo\n\ndata: [DONE]\n\n"
    assert read_text(body) == "hello"
    assert response.status_code == 200
    assert dict(response.headers) == {
        "Content-Type": "text/event-stream; charset=utf-8",
        "Cache-Control": "no-cache, no-transform",
        "X-Accel-Buffering": "no",
        "x-agent-invocation-id": response.headers["x-agent-invocation-id"],
        "x-agent-session-id": "s1",
    }


@in_database
@pytest.mark.parametrize("accept", ["text/html", "text/event-stream", "image/png", "application/xml;q=1, */*;q=0", ""])
async def test_no_accept_header_is_refused_or_changes_the_answer(accept):
    response = await post({"message": "pong"}, headers={"accept": accept})
    assert (response.status_code, response.content) == (200, b'{"response":"pong","session_id":null}')


@in_database
@pytest.mark.parametrize(
    "content_type",
    [
        "text/plain",
        "application/x-www-form-urlencoded",
        "multipart/form-data",
        "multipart/form-data; boundary=x",
        "application/json; charset=latin-1",
        "application/json; charset=no-such-charset",
        "nonsense",
        "",
    ],
)
async def test_content_type_does_not_matter(content_type):
    response = await post({"message": "gr\u00fc\u00df"}, content_type=content_type)
    assert (response.status_code, response.json()["response"]) == (200, "gr\u00fc\u00df")


@pytest.mark.parametrize(
    ("content_type", "content"),
    [
        ("application/x-www-form-urlencoded", b"a=b&" * 50_000),
        ("application/x-www-form-urlencoded", b"message=" + b"x" * 3_000_000),
        (
            "multipart/form-data; boundary=x",
            b'--x\r\nContent-Disposition: form-data; name="a"\r\n\r\nb\r\n--x--\r\n' * 9,
        ),
        ("multipart/form-data; boundary=x", b"--x\r\nbroken"),
        ("multipart/form-data; boundary=" + "y" * 500, b"--x"),
    ],
)
async def test_a_form_is_answered_in_json(settings, content_type, content):
    settings.DATA_UPLOAD_MAX_NUMBER_FIELDS = 10
    response = await post(content, content_type=content_type)
    expected = (
        (413, b'{"error":"request body too large"}') if len(content) > 2 * MIB else (400, b'{"error":"invalid json"}')
    )
    assert (response.status_code, response.content) == expected
    assert response.headers["Content-Type"] == "application/json"


# Methods.


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "PROPFIND"])
@pytest.mark.parametrize("path", [INVOKE, INVOKE + "/"])
async def test_any_other_method_is_refused(settings, method, path):
    settings.INVOCATIONS = endpoint(PERMISSION_CLASSES=["tests.auth_fakes.Nobody"], MAX_BODY_BYTES=1)
    response = await AsyncClient().generic(method, path, b"more than one byte")
    assert response.status_code == 405
    assert response.headers["Allow"] == "POST"
    assert response.headers["Content-Type"] == "application/json"
    assert response.content == (b"" if method == "HEAD" else b'{"error":"method not allowed"}')


# What is refused before a run.

PNG = "data:image/png;base64,iVBORw0KGgo="
MALFORMED: list[tuple[Any, int, bytes]] = [
    (b"", 400, b"invalid json"),
    (b"{", 400, b"invalid json"),
    (b"\xff", 400, b"invalid json"),
    (b'{"message":"\xed\xa0\x80"}', 400, b"invalid json"),
    (b'{"message":"a","n":NaN}', 400, b"invalid json"),
    (b'{"message":"a","n":1e999}', 400, b"invalid json"),
    (b'{"message":"a","n":' + b"1" * 4301 + b"}", 400, b"invalid json"),
    (b'{"message":"a","n":' + b"[" * 100 + b"]" * 100 + b"}", 400, b"invalid json"),
    (b"[]", 422, b"request body must be an object"),
    (b"null", 422, b"request body must be an object"),
    (b'"text"', 422, b"request body must be an object"),
    ({}, 422, b"missing or empty 'message'"),
    ({"message": None}, 422, b"missing or empty 'message'"),
    ({"message": ""}, 422, b"missing or empty 'message'"),
    ({"message": 5}, 422, b"missing or empty 'message'"),
    ({"message": ["a"], "session_id": 5}, 422, b"missing or empty 'message'"),
    ({"message": "a", "input": "b"}, 422, b"'message' and 'input' must not be given together"),
    ({"message": "", "responses": {}}, 422, b"'message' and 'responses' must not be given together"),
    (
        {"message": 1, "input": 2, "responses": 3, "session_id": 4},
        422,
        b"'message', 'input' and 'responses' must not be given together",
    ),
    ({"message": "a", "session_id": 5}, 422, b"'session_id' must be a string"),
    ({"input": [], "session_id": 5}, 422, b"'session_id' must be a string"),
    ({"message": "a", "session_id": "x" * 257}, 422, b"'session_id' must have at most 256 characters"),
    ({"message": "a", "session_id": "a\nb"}, 422, b"'session_id' must not contain control characters"),
    ({"message": "a", "session_id": "a\x85b"}, 422, b"'session_id' must not contain control characters"),
    ({"message": "\ud800"}, 422, b"'message' must not contain lone surrogates"),
    ({"message": "a", "metadata": {"\udfff": 1}}, 422, b"'metadata' must not contain lone surrogates"),
    ({"message": "a", "stream": 1}, 422, b"'stream' must be a boolean"),
    ({"message": "a", "stream": "true"}, 422, b"'stream' must be a boolean"),
    ({"message": "a", "options": []}, 422, b"'options' must be an object"),
    (
        {"message": "a", "options": {"temperature": 1, "store": True, "model": "m"}},
        422,
        b"'options' must not set model, store",
    ),
    ({"message": "a", "metadata": "x"}, 422, b"'metadata' must be an object"),
    ({"message": "a", "background": 1}, 422, b"'background' must be a boolean"),
    ({"message": "a", "stream": 1, "options": 2, "metadata": 3, "background": 4}, 422, b"'stream' must be a boolean"),
    ({"message": "a", "options": 2, "metadata": 3}, 422, b"'options' must be an object"),
    ({"responses": []}, 422, b"'responses' must be an object"),
]


@pytest.mark.parametrize(("body", "status", "text"), MALFORMED)
async def test_a_malformed_body_is_refused_without_touching_the_database(body, status, text):
    response = await post(body, headers={"x-agent-invocation-id": "given"})
    assert (response.status_code, response.content) == (status, b'{"error":"' + text + b'"}')
    assert response.headers["Content-Type"] == "application/json"
    assert "x-agent-invocation-id" not in response.headers
    assert fakes.calls == []


async def test_a_malformed_body_is_refused_with_a_status_though_a_stream_was_asked_for():
    response = await post({"message": "", "stream": True}, headers={"accept": "text/event-stream"})
    assert (response.status_code, response.content) == (422, b'{"error":"missing or empty \'message\'"}')


async def test_a_body_over_the_limit_is_refused(settings):
    settings.INVOCATIONS = endpoint(MAX_BODY_BYTES=20)
    response = await post(b" " * 21)
    assert (response.status_code, response.content) == (413, b'{"error":"request body too large"}')
    assert (await post(b" " * 20)).content == b'{"error":"invalid json"}'


async def test_the_default_limit_is_two_mebibytes():
    assert (await post(b" " * (2 * MIB + 1))).status_code == 413
    assert (await post(b" " * (2 * MIB))).status_code == 400


@in_database
async def test_the_sites_limit_of_uploads_does_not_matter(settings):
    settings.DATA_UPLOAD_MAX_MEMORY_SIZE = 10
    response = await post({"message": "x" * 5000})
    assert (response.status_code, response.json()["response"]) == (200, "x" * 5000)


# Headers of the answer.


@in_database
@pytest.mark.parametrize("given", ["a", "x" * 256, "A-z.0_9:~"[:-1], "invoked", "..."])
async def test_a_well_formed_invocation_id_is_taken(given):
    response = await post({"message": "a"}, headers={"x-agent-invocation-id": given})
    assert response.headers["x-agent-invocation-id"] == given
    [record] = await records()
    assert record.invocation_id == given


@in_database
@pytest.mark.parametrize(
    "given", ["", "x" * 257, "a b", "a/b", "a,b", "\u00fc", "invoke", "docs", "sessions", ".", ".."]
)
async def test_any_other_invocation_id_is_replaced(given):
    response = await post({"message": "a"}, headers={"x-agent-invocation-id": given})
    made = response.headers["x-agent-invocation-id"]
    assert str(uuid.UUID(made)) == made
    [record] = await records()
    assert record.invocation_id == made


@in_database
async def test_an_invocation_id_that_comes_twice_is_replaced():
    lines = [("x-agent-invocation-id", "a"), ("x-agent-invocation-id", "b")]
    response = await post_raw(b'{"message":"a"}', lines)
    assert response.status == 200
    uuid.UUID(response.headers["x-agent-invocation-id"])


@in_database
@pytest.mark.parametrize(
    ("session_id", "header"),
    [
        ("s1", "s1"),
        ("a.b_c:d-e", "a.b_c:d-e"),
        ("a b/c%~", "a%20b%2Fc%25%7E"),
        ("gr\u00fc\u00df\U0001f600", "gr%C3%BC%C3%9F%F0%9F%98%80"),
        ("", None),
        (None, None),
    ],
)
async def test_the_session_id_is_named_in_a_header(session_id, header):
    response = await post({"message": "a", "session_id": session_id})
    assert response.headers.get("x-agent-session-id") == header
    assert response.json()["session_id"] == session_id


@in_database
async def test_a_failure_after_parsing_has_the_headers_too(settings):
    settings.INVOCATIONS = endpoint(TARGET="tests.fakes.build_broken")
    response = await post({"message": "a", "session_id": "s 1"}, headers={"x-agent-invocation-id": "i1"})
    assert response.status_code == 500
    assert response.headers["x-agent-invocation-id"] == "i1"
    assert response.headers["x-agent-session-id"] == "s%201"
    assert "session_id" not in response.json()


# Failures of both dialects' table.


async def test_a_target_that_cannot_be_built_is_500_and_leaves_nothing(settings, caplog):
    settings.INVOCATIONS = endpoint(TARGET="tests.fakes.build_broken")
    for stream in (False, True):
        # No database is allowed here: there is no record.
        response = await post({"message": "a", "session_id": "s1", "stream": stream})
        assert (response.status_code, response.content) == (500, b'{"error":"The agent is not available."}')
    assert "no model today" in caplog.text


@in_database
@pytest.mark.parametrize("expose", [False, True, None])
async def test_a_target_that_fails_is_500_with_its_own_text_only_where_exposed(settings, expose):
    settings.INVOCATIONS = endpoint(TARGET="tests.fakes.build_scripted", EXPOSE_ERRORS=expose)
    fakes.script([RuntimeError('the "secret" reason')])
    response = await post({"message": "a", "session_id": "s1"})
    text = b'the \\"secret\\" reason' if expose else b"Agent invocation failed."
    assert (response.status_code, response.content) == (500, b'{"error":"' + text + b'"}')
    [record] = await records()
    assert (record.status, record.error_code, record.error_status) == ("failed", "invocation_failed", 500)
    assert "secret" not in repr(vars(record))


@in_database
async def test_errors_are_exposed_in_debug(settings):
    settings.INVOCATIONS = endpoint(TARGET="tests.fakes.build_scripted")
    settings.DEBUG = True
    fakes.script([RuntimeError("the reason")])
    assert (await post({"message": "a"})).content == b'{"error":"the reason"}'


@in_database
async def test_a_busy_session_is_refused_and_the_refused_id_may_be_used_again(settings):
    settings.INVOCATIONS = endpoint(TARGET="tests.fakes.build_scripted", ON_BUSY_SESSION="reject")
    fakes.script([fakes.gate(), "first"], ["again"])
    first = asyncio.create_task(post({"message": "a", "session_id": "s1"}))
    await fakes.gate().wait_reached()
    for stream in (False, True):
        refused = await post(
            {"message": "b", "session_id": "s1", "stream": stream}, headers={"x-agent-invocation-id": "i2"}
        )
        assert (refused.status_code, refused.content) == (409, b'{"error":"the session is busy"}')
        assert refused.headers["x-agent-invocation-id"] == "i2"
        assert refused.headers["x-agent-session-id"] == "s1"
    fakes.gate().open()
    assert (await first).content == b'{"response":"first","session_id":"s1"}'
    again = await post({"message": "b", "session_id": "s1"}, headers={"x-agent-invocation-id": "i2"})
    assert again.content == b'{"response":"again","session_id":"s1"}'
    assert [record.status for record in await records()] == ["succeeded", "succeeded"]


@in_database
async def test_two_turns_without_a_session_do_not_meet(settings):
    settings.INVOCATIONS = endpoint(TARGET="tests.fakes.build_scripted")
    fakes.script([fakes.gate(), "first"], ["second"])
    first = asyncio.create_task(post({"message": "a"}))
    await fakes.gate().wait_reached()
    assert (await post({"message": "b", "session_id": ""})).json()["response"] == "second"
    fakes.gate().open()
    assert (await first).json()["response"] == "first"
    assert await rows(SessionRecord.objects.all) == []
    assert await rows(MessageRecord.objects.all) == []


@pytest.mark.parametrize("session_id", [None, ""])
async def test_a_required_session_that_is_missing_is_refused(settings, session_id):
    settings.INVOCATIONS = endpoint(SESSION_MODE="required")
    response = await post({"message": "a", "session_id": session_id, "stream": True})
    assert (response.status_code, response.content) == (409, b'{"error":"a session is required"}')
    assert "x-agent-session-id" not in response.headers


@in_database
async def test_a_required_session_that_is_given_is_used(settings):
    settings.INVOCATIONS = endpoint(SESSION_MODE="required")
    assert (await post({"message": "a", "session_id": "s1"})).json() == {"response": "a", "session_id": "s1"}


@in_database
async def test_a_disabled_session_is_neither_stored_nor_named(settings):
    settings.INVOCATIONS = endpoint(SESSION_MODE="disabled")
    response = await post({"message": "a", "session_id": "s1"})
    assert response.content == b'{"response":"a","session_id":null}'
    assert "x-agent-session-id" not in response.headers
    assert await rows(SessionRecord.objects.all) == []
    [record] = await records()
    assert (record.session_id, record.status) == (None, "succeeded")


@in_database
async def test_a_run_that_outlasts_its_time_is_504(settings):
    settings.INVOCATIONS = endpoint(TARGET="tests.fakes.build_scripted", RUN_TIMEOUT_SECONDS=0.05)
    fakes.script([fakes.gate()])
    response = await post({"message": "a", "session_id": "s1"})
    assert (response.status_code, response.content) == (504, b'{"error":"the run timed out"}')
    assert fakes.gate().left is not None
    [record] = await records()
    assert (record.status, record.error_code, record.error_status) == ("failed", "timeout", 504)


@in_database
async def test_an_invocation_id_that_was_used_is_refused():
    headers = {"x-agent-invocation-id": "i1"}
    await post({"message": "a"}, headers=headers)
    response = await post({"message": "b"}, headers=headers)
    assert response.status_code == 422
    assert response.content == b'{"error":"this invocation id was used for another request"}'
    assert len(fakes.calls) == 1


@in_database
async def test_stored_state_that_cannot_be_read_is_500_and_stays():
    await post({"message": "a", "session_id": "s1"})
    await database.run(lambda: SessionRecord.objects.update(state='{"format":9}'))
    response = await post({"message": "b", "session_id": "s1"})
    assert (response.status_code, response.content) == (500, b'{"error":"the stored session cannot be read"}')
    [session] = await rows(SessionRecord.objects.all)
    assert (session.state, session.claimed_by) == ('{"format":9}', None)


@in_database
@pytest.mark.parametrize(
    ("change", "text", "code"),
    [
        ({"version": 7}, b"Another request advanced this agent session; reload before retrying.", "session_conflict"),
        ({"claim_number": 7, "claimed_by": None}, b"this invocation was interrupted", "interrupted"),
    ],
)
async def test_a_session_that_somebody_else_wrote_is_409(settings, change, text, code):
    settings.INVOCATIONS = endpoint(TARGET="tests.fakes.build_scripted")
    fakes.script([fakes.gate(), "late"])
    running = asyncio.create_task(post({"message": "a", "session_id": "s1"}))
    await fakes.gate().wait_reached()
    await database.run(lambda: SessionRecord.objects.update(**change))
    fakes.gate().open()
    response = await running
    assert (response.status_code, response.content) == (409, b'{"error":"' + text + b'"}')
    [record] = await records()
    assert (record.error_code, record.answer) == (code, "")


@in_database
@pytest.mark.parametrize(("module", "transaction"), [(turns, "begin_now"), (invocations, "_look_up")])
async def test_a_database_that_is_away_before_the_turn_is_503(monkeypatch, caplog, module, transaction):
    def away(request: Any) -> None:
        raise OperationalError("the database is away")

    go_alone(monkeypatch)
    monkeypatch.setattr(module, transaction, away)
    response = await post({"message": "a", "stream": True}, headers={"x-agent-invocation-id": "i1"})
    assert (response.status_code, response.content) == (503, b'{"error":"storage is not available"}')
    assert response.headers["Retry-After"] == "1"
    assert response.headers["x-agent-invocation-id"] == "i1"
    assert "the database is away" in caplog.text


# Options.


@in_database
async def test_options_reach_the_target(settings):
    await post({"message": "a", "options": {"temperature": 0.5, "max_tokens": 7, "stop": ["x"]}})
    options = fakes.calls[0].options
    assert (options["temperature"], options["max_tokens"], options["stop"]) == (0.5, 7, ["x"])


@pytest.mark.parametrize(
    "name", ["model", "store", "extra_headers", "instructions", "tools", "conversation_id", "Temperature"]
)
async def test_an_option_that_is_not_allowed_is_refused(name):
    response = await post({"message": "a", "options": {name: 1}})
    assert (response.status_code, response.json()) == (422, {"error": f"'options' must not set {name}"})


@in_database
async def test_the_options_of_the_contract_are_allowed():
    for name in DEFAULT_OPTIONS - {"response_format", "tool_choice"}:
        assert (await post({"message": "a", "options": {name: 1}})).status_code == 200, name


@in_database
async def test_allowed_options_are_the_endpoints_own(settings):
    settings.INVOCATIONS = endpoint(ALLOWED_OPTIONS=["user"])
    assert (await post({"message": "a", "options": {"temperature": 1}})).status_code == 422
    assert (await post({"message": "a", "options": {"user": "u"}})).status_code == 200
    assert fakes.calls[0].options["user"] == "u"


@in_database
async def test_options_are_dropped_with_a_warning_where_the_target_takes_none(settings, caplog):
    settings.INVOCATIONS = endpoint(TARGET="tests.fakes.build_custom")
    response = await post({"message": "a", "options": {"temperature": 1}})
    assert response.content == b'{"response":"a","session_id":null}'
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert warnings == ["The target of endpoint 'default' takes no run options; they are dropped."]


async def test_options_are_refused_where_the_target_takes_none_and_the_endpoint_says_so(settings):
    settings.INVOCATIONS = endpoint(TARGET="tests.fakes.build_custom", UNSUPPORTED_OPTIONS="error")
    for stream in (False, True):
        response = await post({"message": "a", "options": {"temperature": 1}, "stream": stream})
        assert response.status_code == 422
        assert response.content == b'{"error":"The hosted agent does not accept caller runtime options."}'


@in_database
async def test_no_options_are_fine_where_the_target_takes_none(settings, caplog):
    settings.INVOCATIONS = endpoint(TARGET="tests.fakes.build_custom", UNSUPPORTED_OPTIONS="error")
    assert (await post({"message": "a", "options": {}})).status_code == 200
    assert [record for record in caplog.records if record.levelname == "WARNING"] == []


# Records.


@in_database
async def test_the_record_holds_what_the_invocation_was_and_became(settings):
    settings.INVOCATIONS = endpoint(TARGET="tests.fakes.build_scripted")
    fakes.script(["hel", "lo", fakes.usage(3, 4)])
    before = timezone.now()
    body = {"message": "a private text", "session_id": "s1", "metadata": {"ticket": "T\u00fc"}}
    await post(body, headers={"x-agent-invocation-id": "i1"})
    [record] = await records()
    [session] = await rows(SessionRecord.objects.all)
    assert (record.invocation_id, record.endpoint, record.dialect) == ("i1", "default", "channel")
    assert (record.user_key, record.chat_key, record.user_id) == ("", "", None)
    assert (record.session_id, record.session_record_id) == ("s1", session.pk)
    assert (record.stream, record.background, record.status) == (False, False, "succeeded")
    assert json.loads(record.answer) == {"text": "hello", "session_id": "s1"}
    assert json.loads(record.metadata) == {"ticket": "T\u00fc"}
    assert (record.error_code, record.error_status) == ("", None)
    usage = {"input_token_count": 3, "output_token_count": 4, "total_token_count": 7}
    assert (json.loads(record.usage), record.total_tokens) == (usage, 7)
    assert re.fullmatch("[0-9a-f]{64}", record.fingerprint)
    assert re.fullmatch("[0-9a-f]{32}", record.correlation_id)
    assert before <= record.created_at <= record.first_byte_at <= record.finished_at <= timezone.now()
    assert record.duration_seconds >= 0
    assert "a private text" not in repr(vars(record))


@in_database
@pytest.mark.parametrize("stream", [False, True])
async def test_usage_is_recorded_streamed_or_not(settings, stream):
    settings.INVOCATIONS = endpoint(TARGET="tests.fakes.build_scripted")
    fakes.script(["a", fakes.usage(1, 2)])
    response = await post({"message": "a", "stream": stream})
    if stream:
        assert read_events([chunk async for chunk in response.streaming_content])[-1] == SseEvent("[DONE]")
    [record] = await records()
    assert (record.stream, record.total_tokens) == (stream, 3)
    assert record.created_at <= record.first_byte_at <= record.finished_at


@in_database
async def test_usage_is_empty_where_the_agent_reports_none():
    await post({"message": "a"})
    [record] = await records()
    assert (record.usage, record.total_tokens) == ("", None)


@in_database
async def test_metadata_never_reaches_the_model():
    await post({"message": "a", "metadata": {"marker": "zebra"}, "session_id": "s1"})
    assert "zebra" not in repr(
        [(call.options, [message.to_dict() for message in call.messages]) for call in fakes.calls]
    )
    assert all("zebra" not in row.payload for row in await rows(MessageRecord.objects.all))


@in_database
async def test_logs_name_neither_message_nor_caller(settings, caplog):
    settings.INVOCATIONS = endpoint(TARGET="tests.fakes.build_scripted")
    caplog.set_level("DEBUG", logger="invocations_app")
    fakes.script([RuntimeError("boom")])
    await post(
        {"message": "private-text", "session_id": "private-session"}, headers={"x-agent-invocation-id": "private-id"}
    )
    ours = [record for record in caplog.records if record.name.startswith("invocations_app")]
    assert not any("private" in record.getMessage() for record in ours)
    [record] = await records()
    assert record.correlation_id in caplog.text


# WSGI.


@in_database
def test_over_wsgi_json_is_answered_and_a_stream_is_not():
    answer = Client().post(INVOKE, {"message": "pong", "session_id": "s1"}, content_type="application/json")
    assert (answer.status_code, answer.content) == (200, b'{"response":"pong","session_id":"s1"}')
    refused = Client().post(INVOKE, {"message": "pong", "stream": True}, content_type="application/json")
    assert refused.status_code == 501
    assert refused.content == b'{"error":"streams and background need an ASGI server"}'
    assert InvocationRecord.objects.count() == 1
