"""The channel dialect against docs/contract.md: bodies in, JSON and frames out."""

from __future__ import annotations

import json
import time
import uuid
from typing import Any, ClassVar

import pytest
from agent_framework import Content, Message

from invocations_app import exceptions
from invocations_app.conf import EndpointSettings
from invocations_app.dialects import get_dialect, parsing, strict_json
from invocations_app.envelope import Invocation, ParsedRequest, fingerprint
from invocations_app.events import Answer, Done, Event, Failed, Output, RequestInfo, TextDelta, Usage
from invocations_app.exceptions import InvocationError, MalformedInvocation
from tests.frames import SseEvent, read_events, read_text

ENDPOINT = EndpointSettings(alias="default", target="x.y")
CHANNEL = get_dialect("channel")
HOSTING = {"channel": "invocations", "endpoint": "default", "dialect": "channel"}
PIXEL = "data:image/png;base64,iVBORw0KGgo="


def parse(body: Any, endpoint: EndpointSettings = ENDPOINT, **headers: str) -> ParsedRequest:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = {name.replace("_", "-"): value for name, value in headers.items()}
    return CHANNEL.invocations_to_run(raw, endpoint=endpoint, headers=lines, query={})


def refusal(body: Any, endpoint: EndpointSettings = ENDPOINT) -> tuple[int, bytes]:
    """Return status and body of the answer to a body that is refused."""
    with pytest.raises(MalformedInvocation) as caught:
        parse(body, endpoint)
    error = caught.value
    return CHANNEL.status_of(error), CHANNEL.encode_json(CHANNEL.error_body(error, error.text))


def frames(*events: Event) -> list[bytes]:
    encoder = CHANNEL.invocations_from_streaming_run()
    return [frame for event in events for frame in encoder.encode(event)]


def nested(depth: int, value: str = "") -> bytes:
    """Return a body that nests to this depth, its own object counted."""
    return b'{"message":"a","x":%b%b%b}' % (b"[" * (depth - 1), value.encode(), b"]" * (depth - 1))


# What a body says.


def test_message_becomes_one_user_message() -> None:
    invocation = parse({"message": "ping"}).invocation
    [message] = invocation.input
    assert (message.role, message.text) == ("user", "ping")
    assert [content.type for content in message.contents] == ["text"]
    assert message.additional_properties == {"hosting": HOSTING}
    assert uuid.UUID(hex=message.message_id).hex == message.message_id


def test_absent_fields_have_their_defaults() -> None:
    invocation = parse({"message": "ping"}).invocation
    assert invocation == Invocation(
        id=invocation.id, endpoint="default", dialect="channel", input=invocation.input, session_mode="auto"
    )


def test_every_field_is_taken_over() -> None:
    body = {
        "message": "ping",
        "session_id": "s1",
        "stream": True,
        "options": {"temperature": 0.5, "stop": None},
        "metadata": {"a": [1, None]},
        "background": True,
        "anything": {"else": 1},
    }
    endpoint = EndpointSettings(alias="other", target="x.y", session_mode="required")
    invocation = parse(body, endpoint).invocation
    assert (invocation.endpoint, invocation.session_mode) == ("other", "required")
    assert (invocation.session_id, invocation.stream, invocation.background) == ("s1", True, True)
    assert invocation.options == {"temperature": 0.5, "stop": None}
    assert invocation.metadata == {"a": [1, None]}
    assert invocation.responses is None
    assert invocation.input[0].additional_properties == {"hosting": {**HOSTING, "endpoint": "other"}}


def test_null_fields_are_absent() -> None:
    names = ("input", "responses", "session_id", "stream", "options", "metadata", "background", "unknown")
    invocation = parse({"message": "ping", **dict.fromkeys(names)}).invocation
    assert (invocation.session_id, invocation.stream, invocation.background) == (None, False, False)
    assert (invocation.options, invocation.metadata, invocation.responses) == ({}, {}, None)


@pytest.mark.parametrize("text", [" ", "\n", "\u0000", "grüße \u2028 😀"])
def test_every_non_empty_text_is_a_message(text: str) -> None:
    assert parse({"message": text}).invocation.input[0].text == text


def test_empty_session_id_is_kept_apart_from_none() -> None:
    assert parse({"message": "a", "session_id": ""}).invocation.session_id == ""
    assert parse({"message": "a"}).invocation.session_id is None


@pytest.mark.parametrize("session_id", ["x" * 256, "ä:/ \u2028😀"])
def test_session_id_of_any_characters_but_control_ones_is_taken(session_id: str) -> None:
    assert parse({"message": "a", "session_id": session_id}).invocation.session_id == session_id


def test_input_text_becomes_one_user_message() -> None:
    [message] = parse({"input": "ping"}).invocation.input
    assert (message.role, message.text, message.additional_properties) == ("user", "ping", {"hosting": HOSTING})


def test_input_messages_keep_their_contents_in_order() -> None:
    body = {
        "input": [
            {"role": "user", "contents": [{"type": "text", "text": "what is"}, {"type": "data", "uri": PIXEL}]},
            {"role": "user", "contents": [{"type": "text", "text": "this?"}]},
        ]
    }
    first, last = parse(body).invocation.input
    assert [(content.type, content.text) for content in first.contents] == [("text", "what is"), ("data", None)]
    assert (first.contents[1].uri, first.contents[1].media_type) == (PIXEL, "image/png")
    assert last.text == "this?"
    assert first.additional_properties == {}
    assert last.additional_properties == {"hosting": HOSTING}
    assert len({first.message_id, last.message_id, None}) == 3


@pytest.mark.parametrize(
    "media_type",
    [
        "image/png",
        "image/jpeg",
        "image/gif",
        "image/webp",
        "application/pdf",
        "audio/wav",
        "audio/mpeg",
        "audio/mp3",
    ],
)
def test_default_media_types_are_accepted(media_type: str) -> None:
    content = {"type": "data", "uri": f"data:{media_type};base64,QQ=="}
    [message] = parse({"input": [{"role": "user", "contents": [content]}]}).invocation.input
    assert message.contents[0].media_type == media_type


def test_media_types_are_those_of_the_endpoint() -> None:
    endpoint = EndpointSettings(alias="default", target="x.y", input_media_types=frozenset({"text/csv"}))
    content = {"type": "data", "uri": "data:text/csv;base64,QQ=="}
    body = {"input": [{"role": "user", "contents": [content]}]}
    assert parse(body, endpoint).invocation.input[0].contents[0].media_type == "text/csv"
    content["uri"] = PIXEL
    assert refusal(body, endpoint) == (422, b'{"error":"\'input\' must hold data of these media types only: text/csv"}')


def test_options_are_those_that_the_endpoint_allows() -> None:
    endpoint = EndpointSettings(alias="default", target="x.y", allowed_options=frozenset({"model"}))
    assert parse({"message": "a", "options": {"model": "m"}}, endpoint).invocation.options == {"model": "m"}
    assert refusal({"message": "a", "options": {"seed": 1}}, endpoint) == (
        422,
        b'{"error":"\'options\' must not set seed"}',
    )


def test_any_option_is_accepted_from_a_run_hook() -> None:
    invocation = Invocation(id="i", endpoint="default", dialect="channel", options={"model": "m", "extra_headers": {}})
    CHANNEL.check_options(invocation)


# Ids and the fingerprint.


def test_well_formed_invocation_id_is_the_callers() -> None:
    parsed = parse({"message": "a"}, x_agent_invocation_id="run:1")
    assert (parsed.invocation.id, parsed.id_given) == ("run:1", True)


@pytest.mark.parametrize("value", ["", "a b", "a/b", "x" * 257, "invoke", "docs", "sessions", ".", "..", "ä"])
def test_any_other_invocation_id_is_replaced_by_a_uuid(value: str) -> None:
    parsed = parse({"message": "a"}, x_agent_invocation_id=value)
    assert str(uuid.UUID(parsed.invocation.id)) == parsed.invocation.id
    assert not parsed.id_given


def test_each_request_without_an_id_gets_one_of_its_own() -> None:
    first, second = parse({"message": "a"}), parse({"message": "a"})
    assert first.invocation.id != second.invocation.id
    assert first.fingerprint == second.fingerprint


def test_fingerprint_is_that_of_the_parsed_body_and_session() -> None:
    parsed = parse(b'{"session_id":"s1","message":"a","message":"b","stream":true,"background":false,"x":null}')
    assert parsed.fingerprint == fingerprint("default", "channel", "s1", {"message": "b", "session_id": "s1"})


@pytest.mark.parametrize(
    "other",
    [
        {"message": "b"},
        {"message": "a", "session_id": "s"},
        {"message": "a", "options": {"seed": 1}},
        {"message": "a", "metadata": {"k": 1}},
        {"message": "a", "ignored": 1},
        {"input": "a"},
    ],
)
def test_another_body_has_another_fingerprint(other: dict[str, Any]) -> None:
    assert parse(other).fingerprint != parse({"message": "a"}).fingerprint


# What is refused, in the order of the contract's table.

DEEP = 100_000
LONE = b'"\\ud800"'


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b" ",
        b"{",
        b"ping",
        b'{"message":"a"} x',
        b"{'message':'a'}",
        b'{"message":"a",}',
        b'{"message":"a\nb"}',
        b'{"message":"\xff"}',
        b'{"message":"\xed\xa0\x80"}',
        '{"message":"a"}'.encode("utf-16"),
        '{"message":"a"}'.encode("utf-16-le"),
        b'\xef\xbb\xbf\xef\xbb\xbf{"message":"a"}',
        b'{"message":"a","x":NaN}',
        b'{"message":"a","x":Infinity}',
        b'{"message":"a","x":-Infinity}',
        b'{"message":"a","x":1e999}',
        b'{"message":"a","x":-1e999}',
        b'{"message":"a","x":1e999,"x":1}',
        b'{"message":"a","x":' + b"1" * 4301 + b"}",
        b'{"message":"a","x":-' + b"1" * 4301 + b"}",
        nested(101),
        nested(101)[:-1] + b',"x":1}',
        nested(101, r'"\\\"]"'),
        nested(DEEP),
        b"[" * DEEP,
        b'{"a":' * DEEP,
        b'"' + b'\\"' * DEEP,
    ],
)
def test_body_that_is_no_strict_json_is_400(body: bytes) -> None:
    assert refusal(body) == (400, b'{"error":"invalid json"}')


@pytest.mark.parametrize(
    "body",
    [
        b'\xef\xbb\xbf{"message":"a"}',
        b' \r\n\t{"message":"a"}\n',
        b'{"message":"first","message":"a"}',
        b'{"message":5,"message":"a"}',
        b'{"message":"a","x":1e308}',
        b'{"message":"a","x":' + b"1" * 4300 + b"}",
        b'{"message":"a","x":-' + b"1" * 4300 + b"}",
        nested(100),
        nested(2, ",".join(["[{}]"] * 500)),
        nested(2, json.dumps('[{"\\' * 200)),
        b'{"message":"a","x":"\\ud83d\\ude00"}',
        b'{"message":"a","x":"\\\\ud800"}',
    ],
)
def test_body_within_the_limits_of_strict_json_is_read(body: bytes) -> None:
    assert parse(body).invocation.input[0].text == "a"


def test_hostile_bodies_are_read_in_linear_time() -> None:
    """The largest bodies of the default limit, each made to be slow."""
    size = 2 * 1024 * 1024
    began = time.process_time()
    for unit in (b"[", b"[]", b'"\\', b'\\"', b'"[', b'{"a":'):
        with pytest.raises(MalformedInvocation, match="^invalid json$"):
            parse(unit * (size // len(unit)))
    assert time.process_time() - began < 3


@pytest.mark.parametrize("body", [b"[]", b'"a"', b"1", b"true", b"null", b'[{"message":"a"}]', LONE])
def test_body_that_is_no_object_is_422(body: bytes) -> None:
    assert refusal(body) == (422, b'{"error":"request body must be an object"}')


@pytest.mark.parametrize("body", [{}, {"message": None}, {"input": None}, {"session_id": "s"}])
def test_absent_message_is_422(body: dict[str, Any]) -> None:
    assert refusal(body) == (422, b'{"error":"missing or empty \'message\'"}')


@pytest.mark.parametrize("message", ["", 0, 5, False, True, [], ["a"], {}, {"text": "a"}])
def test_message_that_is_empty_or_no_string_is_422(message: Any) -> None:
    assert refusal({"message": message}) == (422, b'{"error":"missing or empty \'message\'"}')


@pytest.mark.parametrize(
    ("body", "named"),
    [
        ({"message": "a", "input": "b"}, "'message' and 'input'"),
        ({"message": "", "input": "b"}, "'message' and 'input'"),
        ({"message": "a", "responses": {}}, "'message' and 'responses'"),
        ({"input": [], "responses": {}}, "'input' and 'responses'"),
        ({"message": 1, "input": 2, "responses": 3}, "'message', 'input' and 'responses'"),
    ],
)
def test_more_than_one_input_is_422_and_names_them(body: dict[str, Any], named: str) -> None:
    assert refusal(body) == (422, f'{{"error":"{named} must not be given together"}}'.encode())


@pytest.mark.parametrize("session_id", [1, 0, True, False, [], ["s"], {}])
def test_session_id_that_is_no_string_is_422(session_id: Any) -> None:
    expected = (422, b'{"error":"\'session_id\' must be a string"}')
    assert refusal({"message": "a", "session_id": session_id}) == expected


MESSAGE_KEYS = "must hold messages that have a role, contents and no other keys"
TEXT_KEYS = "must hold text contents that have a non-empty text and no other keys"
DATA_KEYS = "must hold data contents that have a uri and no other keys"
DATA_URI = "must hold data as 'data:<media type>;base64,' URIs only"
MEDIA_TYPES = (
    "must hold data of these media types only: application/pdf, audio/mp3, audio/mpeg, audio/wav, "
    "image/gif, image/jpeg, image/png, image/webp"
)
BASE64 = "must hold data in well-formed base64, at least one byte of it"


def with_contents(*contents: Any) -> dict[str, Any]:
    return {"input": [{"role": "user", "contents": list(contents)}]}


def with_uri(uri: str) -> dict[str, Any]:
    return with_contents({"type": "data", "uri": uri})


@pytest.mark.parametrize(
    ("body", "rule"),
    [
        *[
            ({"input": value}, "must be a non-empty string or a non-empty list of messages")
            for value in ("", [], {}, {"role": "user"}, 5, True, False)
        ],
        *[
            ({"input": [value]}, MESSAGE_KEYS)
            for value in (
                "a",
                None,
                [],
                {},
                {"role": "user"},
                {"contents": []},
                {"role": "user", "contents": [], "message_id": "m"},
                {"role": "user", "contents": [], "additional_properties": None},
                {"role": "user", "contents": [], "author_name": "me"},
            )
        ],
        *[
            (
                {"input": [{"role": role, "contents": [{"type": "text", "text": "a"}]}]},
                "must hold messages of the role user only",
            )
            for role in ("system", "assistant", "tool", "USER", "", None, 1, ["user"])
        ],
        *[
            ({"input": [{"role": "user", "contents": value}]}, "must hold messages with at least one content")
            for value in ([], None, "a", {"type": "text", "text": "a"})
        ],
        *[
            (with_contents(value), "must hold contents of the types text and data only")
            for value in (
                "a",
                None,
                {},
                {"text": "a"},
                {"type": None},
                {"type": ["text"]},
                {"type": "uri", "uri": "https://example.com/a.png"},
                {"type": "function_call", "name": "f"},
                {"type": "function_approval_response", "approved": True},
            )
        ],
        *[
            (with_contents(value), TEXT_KEYS)
            for value in (
                {"type": "text"},
                {"type": "text", "text": ""},
                {"type": "text", "text": None},
                {"type": "text", "text": 1},
                {"type": "text", "text": "a", "annotations": None},
            )
        ],
        *[
            (with_contents(value), DATA_KEYS)
            for value in (
                {"type": "data"},
                {"type": "data", "uri": None},
                {"type": "data", "uri": 1},
                {"type": "data", "uri": PIXEL, "media_type": "image/png"},
            )
        ],
        *[
            (with_uri(uri), DATA_URI)
            for uri in (
                "",
                "QQ==",
                "https://example.com/a.png",
                "file:///etc/passwd",
                "data:image/png,QQ==",
                "data:image/png;base64",
                "data:image/png;charset=utf-8;base64,QQ==",
                "DATA:image/png;base64,QQ==",
                " data:image/png;base64,QQ==",
            )
        ],
        *[
            (with_uri(f"data:{media_type};base64,QQ=="), MEDIA_TYPES)
            for media_type in ("", "text/html", "image/svg+xml", "image/*", "IMAGE/PNG", "image/png ")
        ],
        *[
            (with_uri(f"data:image/png;base64,{data}"), BASE64)
            for data in (
                "",
                "Q",
                "QQ",
                "QQ=",
                "QQ===",
                "=QQ=",
                "QQ==QQ==",
                "QQ==\n",
                "Q Q=",
                "Q-_=",
                "QÄ==",
                "QQ==,",
                "!!!!",
            )
        ],
    ],
)
def test_malformed_input_is_422_and_names_the_rule(body: dict[str, Any], rule: str) -> None:
    assert refusal(body) == (422, f'{{"error":"\'input\' {rule}"}}'.encode())


def test_every_message_and_content_of_the_input_is_checked() -> None:
    good = {"type": "text", "text": "a"}
    assert refusal(with_contents(good, {"type": "text", "text": ""}))[0] == 422
    assert refusal({"input": [{"role": "user", "contents": [good]}, "b"]})[0] == 422


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"session_id": "x" * 257}, "'session_id' must have at most 256 characters"),
        ({"session_id": "a\u0000"}, "'session_id' must not contain control characters"),
        ({"session_id": "\n"}, "'session_id' must not contain control characters"),
        ({"session_id": "\u007f"}, "'session_id' must not contain control characters"),
        ({"session_id": "\u0085"}, "'session_id' must not contain control characters"),
        ({"stream": 1}, "'stream' must be a boolean"),
        ({"stream": "true"}, "'stream' must be a boolean"),
        ({"stream": []}, "'stream' must be a boolean"),
        ({"options": []}, "'options' must be an object"),
        ({"options": ""}, "'options' must be an object"),
        ({"options": {"model": "m"}}, "'options' must not set model"),
        ({"options": {"store": None, "seed": 1, "extra_headers": {}}}, "'options' must not set extra_headers, store"),
        ({"metadata": []}, "'metadata' must be an object"),
        ({"metadata": "a"}, "'metadata' must be an object"),
        ({"background": 1}, "'background' must be a boolean"),
        ({"background": "true"}, "'background' must be a boolean"),
    ],
)
def test_any_other_broken_rule_is_422_and_names_field_and_rule(fields: dict[str, Any], text: str) -> None:
    assert refusal({"message": "a", **fields}) == (422, json.dumps({"error": text}, separators=(",", ":")).encode())


@pytest.mark.parametrize(
    ("responses", "rule"),
    [([], "must be an object"), (1, "must be an object")],
)
def test_responses_are_422(responses: Any, rule: str) -> None:
    assert refusal({"responses": responses}) == (422, f'{{"error":"\'responses\' {rule}"}}'.encode())


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (b'{"message":"a\\ud800"}', "message"),
        (b'{"message":"\\uDC00\\uD800"}', "message"),
        (b'{"input":[{"role":"user","contents":[{"type":"text","text":"\\udfff"}]}]}', "input"),
        (b'{"message":"a","session_id":"\\ud800"}', "session_id"),
        (b'{"message":"a","options":{"stop":["\\ud800"]}}', "options"),
        (b'{"message":"a","metadata":{"\\ud800":1}}', "metadata"),
        (b'{"message":"a","ignored":[{"k":"\\ud800"}]}', "ignored"),
        (b'{"message":"a","\\ud800":1}', "\ufffd"),
        (b'{"ignored":"\\ud800","metadata":"\\ud800","message":"a"}', "metadata"),
    ],
)
def test_lone_surrogate_in_any_string_is_422_and_names_the_field(body: bytes, field: str) -> None:
    assert refusal(body) == (422, f'{{"error":"\'{field}\' must not contain lone surrogates"}}'.encode())


def test_first_broken_rule_is_the_one_answered() -> None:
    """Each step mends what the step before was refused for."""
    rules = [
        (b'{"input":[],"message":""', b"invalid json"),
        (b'[{"input":[],"message":""}]', b"request body must be an object"),
        (b'{"message":"","session_id":1,"stream":1}', b"missing or empty 'message'"),
        (b'{"message":"","input":"","session_id":1,"stream":1}', b"'message' and 'input' must not be given together"),
        (b'{"input":"","session_id":1,"stream":1}', b"'session_id' must be a string"),
        (
            b'{"input":"","session_id":"\\n","stream":1}',
            b"'input' must be a non-empty string or a non-empty list of messages",
        ),
        (
            b'{"background":1,"metadata":1,"options":1,"stream":1,"session_id":"\\n","message":"a"}',
            b"'session_id' must not contain control characters",
        ),
        (b'{"background":1,"metadata":1,"options":1,"stream":1,"message":"a"}', b"'stream' must be a boolean"),
        (b'{"background":1,"metadata":1,"options":1,"message":"a"}', b"'options' must be an object"),
        (b'{"background":1,"metadata":1,"message":"a"}', b"'metadata' must be an object"),
        (b'{"background":1,"message":"a"}', b"'background' must be a boolean"),
    ]
    for body, text in rules:
        assert refusal(body)[1] == b'{"error":"%b"}' % text


# Answers.


@pytest.mark.parametrize(
    ("answer", "body"),
    [
        (Answer("pong", "s1"), b'{"response":"pong","session_id":"s1"}'),
        (Answer("pong"), b'{"response":"pong","session_id":null}'),
        (Answer("pong", ""), b'{"response":"pong","session_id":""}'),
        (Answer("", "s1"), b'{"response":"","session_id":"s1"}'),
        (
            Answer("gr\u00fc\u00dfe \u2028 \U0001f600", "\u00e4"),
            '{"response":"grüße \u2028 😀","session_id":"ä"}'.encode(),
        ),
        (Answer("a\r\nb\r\n[DONE]", "s"), b'{"response":"a\\r\\nb\\r\\n[DONE]","session_id":"s"}'),
        (Answer("a\ud800b", "s"), b'{"response":"a\xef\xbf\xbdb","session_id":"s"}'),
        (
            Answer("", "s1", pending=({"request_id": "r", "type": "approval", "tool": "ä", "arguments": {"x": 1}},)),
            '{"response":"","session_id":"s1","pending":'
            '[{"request_id":"r","type":"approval","tool":"ä","arguments":{"x":1}}]}'.encode(),
        ),
        (Answer("pong", "s1", frames=(), usage={"total_token_count": 1}), b'{"response":"pong","session_id":"s1"}'),
    ],
)
def test_answer_has_exactly_these_bytes(answer: Answer, body: bytes) -> None:
    assert CHANNEL.encode_json(CHANNEL.invocations_from_run(answer)) == body


class UnsupportedOptions(InvocationError):
    """What a run raises for options that its target cannot take."""

    code: ClassVar[str] = "unsupported_options"
    default_text: ClassVar[str] = "The hosted agent does not accept caller runtime options."
    default_status: ClassVar[int] = 400


ERRORS: list[tuple[InvocationError, int, bytes]] = [
    (exceptions.BodyTooLarge(), 413, b"request body too large"),
    (exceptions.InvalidIsolationHeader(), 400, b"invalid isolation header"),
    (exceptions.InvocationRejected("not today"), 422, b"not today"),
    (exceptions.InvocationRejected("not you", 403), 403, b"not you"),
    (exceptions.StreamsNeedAsgi(), 501, b"streams and background need an ASGI server"),
    (exceptions.SessionBusy(), 409, b"the session is busy"),
    (exceptions.SessionRequired(), 409, b"a session is required"),
    (exceptions.RunTimedOut(), 504, b"the run timed out"),
    (exceptions.RunCancelled(), 409, b"this invocation was cancelled"),
    (exceptions.Overloaded(), 503, b"too many runs"),
    (exceptions.ShuttingDown(), 503, b"the server is shutting down"),
    (exceptions.StorageUnavailable(), 503, b"storage is not available"),
    (exceptions.TargetUnavailable(), 500, b"The agent is not available."),
    (exceptions.TargetFailed(), 500, b"Agent invocation failed."),
    (exceptions.StoredStateUnreadable(), 500, b"the stored session cannot be read"),
    (
        exceptions.SessionConflict(),
        409,
        b"Another request advanced this agent session; reload before retrying.",
    ),
    (exceptions.RunInterrupted(), 409, b"this invocation was interrupted"),
    (exceptions.InvocationNotFound(), 404, b"not found"),
    (exceptions.InvocationIdReused(), 422, b"this invocation id was used for another request"),
    (UnsupportedOptions(), 422, b"The hosted agent does not accept caller runtime options."),
]


@pytest.mark.parametrize(("error", "status", "text"), ERRORS, ids=lambda value: getattr(value, "code", None))
def test_error_has_its_status_and_one_text_in_json_and_stream(error: InvocationError, status: int, text: bytes) -> None:
    assert CHANNEL.status_of(error) == status
    assert CHANNEL.encode_json(CHANNEL.error_body(error, error.text)) == b'{"error":"%b"}' % text
    assert frames(Failed(error)) == [b"event: error\ndata: %b\n\n" % text]


def test_exposed_text_replaces_the_fixed_one_in_a_body() -> None:
    body = CHANNEL.error_body(exceptions.TargetFailed(), "division by zero")
    assert CHANNEL.encode_json(body) == b'{"error":"division by zero"}'


def test_stream_is_text_events_and_the_terminator() -> None:
    sent = frames(TextDelta("hel"), TextDelta("lo"), Done(Answer("hello", "s1")))
    assert sent == [b"data: hel\n\n", b"data: lo\n\n", b"data: [DONE]\n\n"]
    assert read_text(sent) == "hello"


def test_what_the_channel_does_not_show_sends_nothing() -> None:
    assert frames(TextDelta(""), Usage({"total_token_count": 3}), Output({"a": 1}, "e")) == []


def test_failure_is_an_error_event_whose_lines_stay_in_it() -> None:
    sent = frames(TextDelta("he"), Failed(exceptions.TargetFailed("it\nbroke\ud800")))
    assert sent == [b"data: he\n\n", b"event: error\ndata: it\ndata: broke\xef\xbf\xbd\n\n"]


def test_pending_request_is_an_event_of_its_own() -> None:
    data = {"request_id": "r", "type": "approval", "tool": "löschen", "arguments": {"name": "a\nb", "n": None}}
    sent = frames(RequestInfo("r", data), Done(Answer("", "s", (data,))))
    body = '{"request_id":"r","type":"approval","tool":"löschen","arguments":{"name":"a\\nb","n":null}}'
    assert sent == [f"event: request_info\ndata: {body}\n\n".encode(), b"data: [DONE]\n\n"]
    assert read_events(sent)[0] == SseEvent(body, "request_info")


def test_line_end_cut_by_another_event_is_still_one() -> None:
    data = {"request_id": "r"}
    sent = frames(TextDelta("a\r"), RequestInfo("r", data), TextDelta("\nb"), Done(Answer("a\r\nb")))
    assert read_text(sent) == "a\nb"


def test_each_run_has_an_encoder_of_its_own() -> None:
    assert frames(TextDelta("a\r")) == [b"data: a\ndata: \n\n"]
    assert frames(TextDelta("\nb")) == [b"data: \ndata: b\n\n"]


# What the dialects share.


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b"", "Expecting value: line 1 column 1 (char 0)"),
        (b"{", "Expecting property name enclosed in double quotes: line 1 column 2 (char 1)"),
        (b"\xff", "'utf-8' codec can't decode byte 0xff in position 0: invalid start byte"),
        (b"NaN", "NaN is not JSON"),
        (b"1e999", "Numbers must be finite"),
        (b"9" * 4301, "Integers have at most 4300 digits"),
        (b"[" * 101 + b"]" * 101, "Values nest deeper than 100"),
    ],
)
def test_decoders_text_says_what_is_wrong(body: bytes, text: str) -> None:
    with pytest.raises(strict_json.InvalidJson) as caught:
        strict_json.loads(body)
    assert caught.value.text == text


@pytest.mark.parametrize(
    "body",
    [
        b'{"a": 1}',
        b'{"a": 1}\n',
        b' \t\r\n{"a": 1} \t\r\n',
        b'\xef\xbb\xbf{"a": 1}',
        b'\xef\xbb\xbf\xef\xbb\xbf{"a": 1}',
        b'{"a": 1}\xef\xbb\xbf',
        b'{"a": 1} x',
        b'{"a": 1}\n{"a": 2}',
        b'{"a": 1}\x0b',
        b'{"a": 1}\xc2\xa0',
        b'{"a": 1,\n',
        b"{",
        b"",
        b" ",
        b"[1]",
        b'"\xff"',
        b'\xef\xbb\xbf"\xff"',
        b"\xef\xbb",
    ],
)
def test_body_is_read_as_python_reads_it(body: bytes) -> None:
    try:
        expected: Any = json.JSONDecoder().decode(body.decode("utf-8-sig"))
    except ValueError as error:
        expected = str(error)
    try:
        read = strict_json.loads(body)
    except strict_json.InvalidJson as error:
        read = error.text
    assert read == expected


def test_number_that_is_not_finite_is_never_written() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        strict_json.dump_compact({"a": float("nan")})


def test_nulls_of_the_named_keys_only_are_dropped_where_names_are_given() -> None:
    body = {"message": None, "input": None, "other": None, "metadata": {"a": None}}
    assert parsing.without_nulls(body, {"input", "responses"}) == {
        "message": None,
        "other": None,
        "metadata": {"a": None},
    }


def test_stamping_leaves_the_given_messages_alone() -> None:
    given = Message("user", ["a"], additional_properties={"mine": {"k": 1}, "hosting": {"secret": 1}})
    first, last = parsing.stamp_messages([given, given], "default", "channel")
    last.additional_properties["mine"]["k"] = 2
    last.additional_properties["_group"] = {}
    last.contents.append(Content.from_text("b"))
    assert given.message_id is None
    assert given.additional_properties == {"mine": {"k": 1}, "hosting": {"secret": 1}}
    assert given.text == "a"
    assert first.additional_properties == {"mine": {"k": 1}}
    assert last.additional_properties["hosting"] == HOSTING


def test_stamping_again_moves_the_origin_to_the_last_message() -> None:
    [first] = parsing.stamp_messages([Message("user", ["a"])], "default", "channel")
    again, added = parsing.stamp_messages([first, Message("user", ["b"])], "default", "channel")
    assert again.message_id == first.message_id
    assert added.message_id not in {None, first.message_id}
    assert again.additional_properties == {}
    assert added.additional_properties == {"hosting": HOSTING}
    assert first.additional_properties == {"hosting": HOSTING}


def test_stamping_nothing_gives_nothing() -> None:
    assert parsing.stamp_messages([], "default", "channel") == []
