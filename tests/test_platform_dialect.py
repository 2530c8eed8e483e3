"""The platform dialect against docs/contract.md: bodies in, JSON and frames out."""

from __future__ import annotations

import json
import uuid
from typing import Any

import pytest

from invocations_app import exceptions
from invocations_app.conf import EndpointSettings
from invocations_app.dialects import get_dialect
from invocations_app.envelope import Invocation, ParsedRequest, fingerprint
from invocations_app.events import (
    Answer,
    Done,
    Event,
    Failed,
    Output,
    RequestInfo,
    TextDelta,
    Usage,
    workflow_frame,
)
from invocations_app.exceptions import InvocationError, MalformedInvocation
from tests.frames import SseEvent, read_events

ENDPOINT = EndpointSettings(alias="default", target="x.y")
PLATFORM = get_dialect("platform")
CHANNEL = get_dialect("channel")
HOSTING = {"channel": "invocations", "endpoint": "default", "dialect": "platform"}
LONE = "\ud800"

HOST_CONTROLLED = [
    "agent",
    "agent_reference",
    "agent_session_id",
    "background",
    "base_url",
    "call_id",
    "continuation_token",
    "conversation",
    "conversation_id",
    "extra_body",
    "extra_headers",
    "extra_query",
    "input",
    "model",
    "previous_response_id",
    "response_id",
    "service_session_id",
    "session_id",
    "store",
    "stream",
    "timeout",
    "user",
    "user_id",
]
AGENT_CONTROLLED = [
    "additional_function_arguments",
    "client_kwargs",
    "compaction_strategy",
    "function_invocation_kwargs",
    "instructions",
    "middleware",
    "session",
    "tokenizer",
    "tools",
]
APPROVAL = {"request_id": "r1", "type": "approval", "tool": "send", "arguments": {"to": "ä"}}
QUESTION = {"request_id": "r2", "type": "request_info", "data": {"q": "ä"}, "source_executor_id": "ask"}


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FOUNDRY_AGENT_SESSION_ID", raising=False)


def parse(
    body: Any, endpoint: EndpointSettings = ENDPOINT, session: str | None = None, **headers: str
) -> ParsedRequest:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = {name.replace("_", "-"): value for name, value in headers.items()}
    query = {} if session is None else {"agent_session_id": session}
    return PLATFORM.invocations_to_run(raw, endpoint=endpoint, headers=lines, query=query)


def shown(error: InvocationError) -> tuple[int, bytes]:
    return PLATFORM.status_of(error), PLATFORM.encode_json(PLATFORM.error_body(error, error.text))


def refusal(body: Any, endpoint: EndpointSettings = ENDPOINT) -> tuple[int, bytes]:
    """Return status and body of the answer to a body that is refused."""
    with pytest.raises(MalformedInvocation) as caught:
        parse(body, endpoint)
    return shown(caught.value)


def is_400(text: str) -> tuple[int, bytes]:
    return 400, f'{{"error":"{text}"}}'.encode()


def frames(*events: Event) -> list[bytes]:
    encoder = PLATFORM.invocations_from_streaming_run()
    return [frame for event in events for frame in encoder.encode(event)]


# What a body says.


def test_message_becomes_one_user_message() -> None:
    invocation = parse({"message": "ping"}, session="s1").invocation
    [message] = invocation.input
    assert (message.role, message.text) == ("user", "ping")
    assert message.additional_properties == {"hosting": HOSTING}
    assert uuid.UUID(hex=message.message_id).hex == message.message_id
    assert invocation == Invocation(
        id=invocation.id, endpoint="default", dialect="platform", input=invocation.input, session_id="s1"
    )


def test_empty_message_is_a_message() -> None:
    [message] = parse({"message": ""}).invocation.input
    assert [(content.type, content.text) for content in message.contents] == [("text", "")]


def test_every_field_is_taken_over() -> None:
    body = {
        "message": "ping",
        "stream": True,
        "options": {"temperature": 0.5, "any": None},
        "metadata": {"a": [1, None]},
        "background": True,
        "session_id": ["ignored"],
        "anything": {"else": 1},
    }
    endpoint = EndpointSettings(alias="other", target="x.y", session_mode="required")
    invocation = parse(body, endpoint, "s1", x_agent_invocation_id="i1").invocation
    assert (invocation.id, invocation.endpoint, invocation.session_mode) == ("i1", "other", "required")
    assert (invocation.session_id, invocation.stream, invocation.background) == ("s1", True, True)
    assert invocation.options == {"temperature": 0.5, "any": None}
    assert invocation.metadata == {"a": [1, None]}
    assert invocation.responses is None


def test_input_stands_in_place_of_a_message() -> None:
    contents = [{"type": "text", "text": "what is"}, {"type": "data", "uri": "data:image/png;base64,QQ=="}]
    [message] = parse({"input": [{"role": "user", "contents": contents}]}).invocation.input
    assert [content.type for content in message.contents] == ["text", "data"]
    [message] = parse({"input": "ping"}).invocation.input
    assert (message.text, message.additional_properties) == ("ping", {"hosting": HOSTING})


def test_responses_stand_in_place_of_a_message() -> None:
    invocation = parse({"responses": {"r1": True}}).invocation
    assert (invocation.input, invocation.responses) == (None, {"r1": True})


def test_null_is_absent_in_four_fields() -> None:
    names = ("input", "responses", "metadata", "background")
    parsed = parse({"message": "ping", **dict.fromkeys(names)}, session="s")
    assert parsed.fingerprint == parse({"message": "ping"}, session="s").fingerprint
    assert (parsed.invocation.metadata, parsed.invocation.background) == ({}, False)


def test_allowed_options_are_the_channels_only() -> None:
    endpoint = EndpointSettings(alias="default", target="x.y", allowed_options=frozenset())
    assert parse({"message": "a", "options": {"any": 1}}, endpoint).invocation.options == {"any": 1}


# Ids and the fingerprint.


def test_session_id_is_the_querys() -> None:
    parsed = parse({"message": "a"}, session="Az09._:-")
    assert (parsed.invocation.session_id, parsed.generated_session_id) == ("Az09._:-", None)


@pytest.mark.parametrize("session", [None, ""])
def test_session_id_is_the_environments_where_the_query_has_none(session, monkeypatch) -> None:
    monkeypatch.setenv("FOUNDRY_AGENT_SESSION_ID", "env-1")
    parsed = parse({"message": "a"}, session=session)
    assert (parsed.invocation.session_id, parsed.generated_session_id) == ("env-1", None)
    assert parse({"message": "a"}, session="s1").invocation.session_id == "s1"


@pytest.mark.parametrize(
    "session", ["a b", "a/b", "ä", "a\n", "x" * 257, "invoke", "docs", "sessions", ".", "..", "%20"]
)
@pytest.mark.parametrize("where", ["query", "environment"])
def test_session_id_that_is_not_well_formed_is_replaced_by_a_uuid(session, where, monkeypatch) -> None:
    monkeypatch.setenv("FOUNDRY_AGENT_SESSION_ID", session if where == "environment" else "env-1")
    parsed = parse({"message": "a"}, session=session if where == "query" else None)
    made = parsed.invocation.session_id
    assert made == str(uuid.UUID(made)) == parsed.generated_session_id
    assert parsed.fingerprint == fingerprint("default", "platform", None, {"message": "a"})


def test_each_request_without_a_session_id_gets_one_of_its_own() -> None:
    first, second = parse({"message": "a"}), parse({"message": "a"})
    assert first.invocation.session_id != second.invocation.session_id
    assert first.generated_session_id == first.invocation.session_id
    assert first.fingerprint == second.fingerprint


def test_fingerprint_holds_the_querys_session_id_and_never_another(monkeypatch) -> None:
    body = {"message": "a", "session_id": "ignored", "x": None}
    given = parse(body | {"stream": True, "background": False}, session="s1").fingerprint
    assert given == fingerprint("default", "platform", "s1", body)
    monkeypatch.setenv("FOUNDRY_AGENT_SESSION_ID", "s1")
    assert parse(body).fingerprint == fingerprint("default", "platform", None, body)


def test_invocation_id_is_the_headers_where_it_is_well_formed() -> None:
    parsed = parse({"message": "a"}, x_agent_invocation_id="run:1")
    assert (parsed.invocation.id, parsed.id_given) == ("run:1", True)
    parsed = parse({"message": "a"}, x_agent_invocation_id="docs")
    assert (str(uuid.UUID(parsed.invocation.id)), parsed.id_given) == (parsed.invocation.id, False)


# What is refused, in its order.


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b"", "Expecting value: line 1 column 1 (char 0)"),
        (b"{", "Expecting property name enclosed in double quotes: line 1 column 2 (char 1)"),
        (b'{"message":"a"} x', "Extra data: line 1 column 17 (char 16)"),
        (b'{"message":"\xff"}', "'utf-8' codec can't decode byte 0xff in position 12: invalid start byte"),
        (
            b'{"message":"\xed\xa0\x80"}',
            "'utf-8' codec can't decode byte 0xed in position 12: invalid continuation byte",
        ),
        (b'{"message":"a","x":NaN}', "NaN is not JSON"),
        (b'{"message":"a","x":-Infinity}', "-Infinity is not JSON"),
        (b'{"message":"a","x":1e999}', "Numbers must be finite"),
        (b'{"message":"a","x":' + b"1" * 4301 + b"}", "Integers have at most 4300 digits"),
        (b"[" * 101 + b"]" * 101, "Values nest deeper than 100"),
    ],
)
def test_body_that_is_no_json_is_400_with_the_decoders_text(body: bytes, text: str) -> None:
    assert refusal(body) == is_400(text)


@pytest.mark.parametrize("body", [b"[]", b'"a"', b"1", b"true", b"null", b'[{"message":"a"}]', b'"\\ud800"'])
def test_body_that_is_no_object_is_400(body: bytes) -> None:
    assert refusal(body) == is_400("The invocation must be a JSON object.")


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"stream": 1, "options": 1},
        {"input": None, "responses": None},
        *({"message": value} for value in (None, 0, 5, True, [], ["a"], {})),
    ],
)
def test_message_that_is_absent_or_no_string_is_400(body: dict[str, Any]) -> None:
    assert refusal(body) == is_400("message must be a string.")


@pytest.mark.parametrize("value", [None, 0, 1, "true", "", [], {}])
def test_stream_that_is_no_boolean_is_400(value: Any) -> None:
    assert refusal({"message": "a", "stream": value, "options": 1, "metadata": 1}) == is_400(
        "stream must be a boolean."
    )


@pytest.mark.parametrize("value", [None, 0, "x", True, [], ["a"]])
def test_options_that_are_no_object_are_400(value: Any) -> None:
    body = {"message": "a", "options": value, "metadata": 1, "background": 1}
    assert refusal(body) == is_400("options must be an object.")


@pytest.mark.parametrize(
    ("body", "named"),
    [
        ({"message": "a", "input": "b"}, "'message' and 'input'"),
        ({"message": None, "input": "b"}, "'message' and 'input'"),
        ({"message": 1, "responses": {}, "stream": 1}, "'message' and 'responses'"),
        ({"input": [], "responses": 3}, "'input' and 'responses'"),
        ({"message": 1, "input": 2, "responses": 3}, "'message', 'input' and 'responses'"),
    ],
)
def test_more_than_one_input_is_400_ahead_of_every_field(body: dict[str, Any], named: str) -> None:
    assert refusal(body) == is_400(f"{named} must not be given together")


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"input": ""}, "'input' must be a non-empty string or a non-empty list of messages"),
        ({"input": "", "stream": 1}, "stream must be a boolean."),
        ({"input": "", "metadata": 1}, "'input' must be a non-empty string or a non-empty list of messages"),
        ({"responses": []}, "'responses' must be an object"),
        ({"responses": [], "options": 1}, "options must be an object."),
        ({"message": "a", "metadata": "x", "background": 1}, "'metadata' must be an object"),
        ({"message": "a", "background": 1}, "'background' must be a boolean"),
        ({"message": LONE}, "'message' must not contain lone surrogates"),
        ({"message": LONE, "stream": 1}, "stream must be a boolean."),
        ({"message": "a", "options": {LONE: 1}, "metadata": 1}, "'options' must not contain lone surrogates"),
        ({"message": "a", "other": [{"a": LONE}]}, "'other' must not contain lone surrogates"),
    ],
)
def test_any_other_broken_rule_is_400_after_those_and_names_its_field(fields: dict[str, Any], text: str) -> None:
    assert refusal(fields) == is_400(text)


# Reserved options.


def test_options_that_the_host_or_the_agent_owns_are_refused_after_parsing() -> None:
    for name in (*HOST_CONTROLLED, *AGENT_CONTROLLED):
        invocation = parse({"message": "a", "options": {name: None, "temperature": 1}}).invocation
        with pytest.raises(MalformedInvocation) as caught:
            PLATFORM.check_options(invocation)
        start = (
            "prepare_options cannot set host-controlled fields"
            if name in HOST_CONTROLLED
            else "Invocations options cannot set agent-controlled fields"
        )
        assert shown(caught.value) == is_400(f"{start}: {name}.")


@pytest.mark.parametrize(
    ("names", "text"),
    [
        (HOST_CONTROLLED, f"prepare_options cannot set host-controlled fields: {', '.join(HOST_CONTROLLED)}."),
        (AGENT_CONTROLLED, f"Invocations options cannot set agent-controlled fields: {', '.join(AGENT_CONTROLLED)}."),
        (["tools", "user", "store"], "prepare_options cannot set host-controlled fields: store, user."),
    ],
)
def test_reserved_options_are_named_sorted_the_hosts_first(names: list[str], text: str) -> None:
    invocation = Invocation(id="i", endpoint="e", dialect="platform", options=dict.fromkeys(reversed(names), 1))
    with pytest.raises(MalformedInvocation) as caught:
        PLATFORM.check_options(invocation)
    assert shown(caught.value) == is_400(text)


def test_any_other_option_is_accepted() -> None:
    options = {"temperature": 1, "max_tokens": 2, "unknown": {}}
    PLATFORM.check_options(Invocation(id="i", endpoint="e", dialect="platform", options=options))


# Answers.


@pytest.mark.parametrize(
    ("answer", "content"),
    [
        (Answer("pong", "s1"), '{"response":"pong"}'),
        (Answer("", None), '{"response":""}'),
        (Answer('grüß 😀 \u2028 " \\', "s1"), '{"response":"grüß 😀 \u2028 \\" \\\\"}'),
        (Answer("a" + LONE, "s1"), '{"response":"a\ufffd"}'),
        (
            Answer("a", "s1", pending=(APPROVAL,)),
            '{"response":"a","pending":[{"request_id":"r1","type":"approval","tool":"send","arguments":{"to":"ä"}}]}',
        ),
        (
            Answer("ä", "s1", frames=({"type": "output", "data": {"a": "ä"}, "executor_id": "x"},)),
            '{"output":[{"type":"output","data":{"a":"ä"},"executor_id":"x"}]}',
        ),
        (Answer("", "s1", frames=(), pending=(QUESTION,)), '{"output":[]}'),
    ],
)
def test_json_answer_is_compact_and_raw(answer: Answer, content: str) -> None:
    assert PLATFORM.encode_json(PLATFORM.invocations_from_run(answer)) == content.encode()


def test_stream_is_deltas_and_done() -> None:
    events = (TextDelta("hel"), TextDelta("lo"), Usage({"total_token_count": 3}), Done(Answer("hello", "s1")))
    assert frames(*events) == [
        b'event: delta\ndata: {"text": "hel"}\n\n',
        b'event: delta\ndata: {"text": "lo"}\n\n',
        b'event: done\ndata: {"session_id": "s1"}\n\n',
    ]


@pytest.mark.parametrize(
    ("text", "data"),
    [
        ("grüß", rb'{"text": "gr\u00fc\u00df"}'),
        ("😀\u2028", rb'{"text": "\ud83d\ude00\u2028"}'),
        ("a\nb\r\n\r", rb'{"text": "a\nb\r\n\r"}'),
        ('"\\\x00\x7f', rb'{"text": "\"\\\u0000\u007f"}'),
        ("[DONE]", b'{"text": "[DONE]"}'),
        (LONE, rb'{"text": "\ud800"}'),
    ],
)
def test_event_data_is_ascii_escaped_json_on_one_line(text: str, data: bytes) -> None:
    [frame] = frames(TextDelta(text))
    assert frame == b"event: delta\ndata: " + data + b"\n\n"
    [event] = read_events(frame)
    assert (event.type, json.loads(event.data)) == ("delta", {"text": text})


def test_empty_piece_sends_nothing() -> None:
    assert frames(TextDelta(""), Usage({})) == []


def test_done_without_a_session_says_null() -> None:
    assert frames(Done(Answer(""))) == [b'event: done\ndata: {"session_id": null}\n\n']


def test_pending_request_of_an_agent_is_sent_as_it_is() -> None:
    assert frames(RequestInfo("r1", APPROVAL)) == [
        b'event: request_info\ndata: {"request_id": "r1", "type": "approval", "tool": "send",'
        b' "arguments": {"to": "\\u00e4"}}\n\n'
    ]


WORKFLOW_EVENTS = [
    (
        Output({"a": "ä"}, "x", text="ä"),
        {"type": "output", "data": {"a": "ä"}, "executor_id": "x"},
    ),
    (Output(None, "x"), {"type": "output", "data": None, "executor_id": "x"}),
    (
        RequestInfo("r2", QUESTION, source_executor_id="ask"),
        {"type": "request_info", "data": {"q": "ä"}, "request_id": "r2", "source_executor_id": "ask"},
    ),
    (
        RequestInfo("r1", APPROVAL, source_executor_id="agent"),
        {"type": "request_info", "data": APPROVAL, "request_id": "r1", "source_executor_id": "agent"},
    ),
]


@pytest.mark.parametrize(("event", "frame"), WORKFLOW_EVENTS)
def test_event_of_a_workflow_is_the_whole_frame(event: Output | RequestInfo, frame: dict[str, Any]) -> None:
    assert list(workflow_frame(event).items()) == list(frame.items())
    data = json.dumps(frame).encode()
    assert frames(event) == [b"event: " + frame["type"].encode() + b"\ndata: " + data + b"\n\n"]


def test_event_of_a_workflow_to_the_byte() -> None:
    assert frames(WORKFLOW_EVENTS[0][0]) == [
        b'event: output\ndata: {"type": "output", "data": {"a": "\\u00e4"}, "executor_id": "x"}\n\n'
    ]


def test_stored_answer_of_an_agent_is_its_text_as_one_piece_and_what_is_pending() -> None:
    answer = Answer("hello", "s1", pending=(APPROVAL,))
    assert PLATFORM.invocations_from_answer(answer) == frames(TextDelta("hello"), RequestInfo("r1", APPROVAL))
    assert PLATFORM.invocations_from_answer(Answer("", "s1")) == []


def test_stored_answer_of_a_workflow_is_its_frames() -> None:
    events = [event for event, _ in WORKFLOW_EVENTS]
    answer = Answer("ä", "s1", pending=(QUESTION, APPROVAL), frames=tuple(map(workflow_frame, events)))
    assert PLATFORM.invocations_from_answer(answer) == frames(*events)
    assert PLATFORM.invocations_from_run(answer) == {"output": [frame for _, frame in WORKFLOW_EVENTS]}


def test_channel_shows_the_text_of_outputs_and_the_objects_of_requests() -> None:
    encoder = CHANNEL.invocations_from_streaming_run()
    sent = [frame for event, _ in WORKFLOW_EVENTS for frame in encoder.encode(event)]
    assert read_events(b"".join(sent)) == [
        SseEvent("ä"),
        SseEvent(json.dumps(QUESTION, ensure_ascii=False, separators=(",", ":")), "request_info"),
        SseEvent(json.dumps(APPROVAL, ensure_ascii=False, separators=(",", ":")), "request_info"),
    ]


# Errors.

ERRORS: list[tuple[InvocationError, int, str, str]] = [
    (exceptions.TargetFailed(), 500, "invocation_failed", "Agent invocation failed."),
    (exceptions.WorkflowFailed(), 500, "workflow_invocation_failed", "Workflow invocation failed."),
    (exceptions.InvalidWorkflowOutput("set is no JSON"), 500, "invalid_workflow_output", "set is no JSON"),
    (
        exceptions.ResponsesMismatch(),
        400,
        "invalid_workflow_turn",
        "Workflow replies must answer exactly the complete pending request batch.",
    ),
    (
        exceptions.AwaitingResponses("i1", [APPROVAL]),
        400,
        "invalid_workflow_turn",
        "This workflow is awaiting replies; do not replace them with new input.",
    ),
    (
        exceptions.SessionConflict(),
        409,
        "session_conflict",
        "Another request advanced this agent session; reload before retrying.",
    ),
    (
        exceptions.UnsupportedOptions(),
        400,
        "unsupported_options",
        "The hosted agent does not accept caller runtime options.",
    ),
    (exceptions.RunTimedOut(), 504, "timeout", "the run timed out"),
    (exceptions.RunCancelled(), 409, "cancelled", "this invocation was cancelled"),
    (exceptions.RunInterrupted(), 409, "interrupted", "this invocation was interrupted"),
    (exceptions.Overloaded(), 503, "overloaded", "too many runs"),
    (exceptions.InvalidCheckpoint(), 409, "invalid_checkpoint", "the stored workflow state cannot be used"),
    (exceptions.SessionRequired(), 409, "session_required", "a session is required"),
    (exceptions.InvocationRejected("für Mitglieder", 403), 403, "rejected", "für Mitglieder"),
]


@pytest.mark.parametrize(("error", "status", "code", "text"), ERRORS)
def test_error_is_the_same_as_body_and_as_event(error: InvocationError, status: int, code: str, text: str) -> None:
    assert shown(error) == (status, f'{{"error":"{text}"}}'.encode())
    data = f'{{"message": {json.dumps(text)}, "code": "{code}", "status": {status}}}'
    assert frames(Failed(error)) == [f"event: error\ndata: {data}\n\n".encode()]


def test_error_event_to_the_byte() -> None:
    assert frames(Failed(exceptions.TargetFailed("grüß\n"))) == [
        b'event: error\ndata: {"message": "gr\\u00fc\\u00df\\n", "code": "invocation_failed", "status": 500}\n\n'
    ]


@pytest.mark.parametrize(
    ("error", "answer"),
    [
        (exceptions.UnsupportedOptions(), (422, {"error": "The hosted agent does not accept caller runtime options."})),
        (exceptions.ResponsesMismatch(), (422, {"error": "'responses' must answer exactly the pending requests"})),
        (
            exceptions.AwaitingResponses("i1", [APPROVAL]),
            (409, {"error": "the session awaits responses", "invocation_id": "i1", "pending": [APPROVAL]}),
        ),
    ],
)
def test_channel_has_its_own_answers(error: InvocationError, answer: tuple[int, dict[str, Any]]) -> None:
    assert (CHANNEL.status_of(error), CHANNEL.error_body(error, error.text)) == answer


@pytest.mark.parametrize(
    "kind",
    [
        exceptions.WorkflowFailed,
        exceptions.InvalidWorkflowOutput,
        exceptions.InvalidCheckpoint,
        exceptions.SessionRequired,
    ],
)
def test_recorded_error_comes_back_with_its_text(kind: type[InvocationError]) -> None:
    error = exceptions.error_of_code(kind.code, kind.default_status)
    assert (type(error), error.text, error.status) == (kind, kind.default_text, kind.default_status)
