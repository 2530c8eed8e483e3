"""Stored messages as parts: what is told of each kind of content, and that none harms a page."""

import base64
import json

import pytest
from agent_framework import Content

from invocations_app.admin import transcript
from invocations_app.admin.display import MAX_TEXT_CHARACTERS
from invocations_app.admin.redaction import Redactor
from invocations_app.admin.transcript import MAX_CONTENTS, MAX_IMAGE_BYTES
from tests.admin_records import PNG, payload

call = Content.from_function_call(call_id="c1", name="get_weather", arguments='{"city":"Rome"}')
approval = Content.from_function_approval_request(id="af-call-1", function_call=call)


def read_message(payload):
    return transcript.read_message(payload, Redactor())


def read(*contents):
    return read_message(payload(*contents)).parts


def one(*contents):
    [part] = read(*contents)
    return part


def test_text_is_running_text():
    part = one(Content.from_text("hello"))
    assert (part.kind, part.body.text) == ("text", "hello")


def test_text_is_bounded():
    part = one(Content.from_text("x" * (MAX_TEXT_CHARACTERS + 5)))
    assert (len(part.body.text), part.body.left_out) == (MAX_TEXT_CHARACTERS, 5)


def test_call_has_its_arguments_and_id():
    part = one(call)
    assert (part.kind, part.label, part.title, part.call_id) == ("call", "Tool call", "get_weather", "c1")
    assert part.body.text == '{\n  "city": "Rome"\n}'
    assert part.hint == '{ "city": "Rome" }'


def test_arguments_that_are_no_json_are_shown_as_they_are():
    assert one(Content.from_function_call(call_id="c", name="f", arguments='{"a":')).body.text == '{"a":'


def test_result_has_the_id_of_its_call():
    part = one(Content.from_function_result(call_id="c1", result={"sky": "clear"}))
    assert (part.kind, part.label, part.call_id, part.good) == ("result", "Tool result", "c1", True)
    assert part.body.text == '{\n  "sky": "clear"\n}'


def test_result_shows_its_images():
    result = [Content.from_text("a map"), Content.from_data(data=PNG, media_type="image/png")]
    part = one(Content.from_function_result(call_id="c1", result=result))
    [image] = part.media
    assert (part.body.text, image.kind) == ("a map", "image")


def test_failed_tool_shows_as_error():
    part = one(Content.from_function_result(call_id="c1", result=None, exception="secret"))
    assert (part.label, part.body.text, part.good) == ("Tool error", "FunctionInvocationError", False)


def test_approval_shows_what_was_asked_and_answered():
    asked, yes, no = read(
        approval, approval.to_function_approval_response(True), approval.to_function_approval_response(False)
    )
    assert [part.label for part in (asked, yes, no)] == ["Approval asked", "Approved", "Refused"]
    assert [part.kind for part in (asked, yes, no)] == ["asked", "answer", "answer"]
    assert [part.good for part in (asked, yes, no)] == [True, True, False]
    assert {(part.title, part.call_id, part.request_id) for part in (asked, yes, no)} == {
        ("get_weather", "c1", "af-call-1")
    }


def test_reasoning_and_usage_are_folded():
    reasoning, usage = read(Content.from_text_reasoning(text="hm"), Content.from_usage({"total_token_count": 3}))
    assert (reasoning.kind, reasoning.label, reasoning.body.text) == ("fold", "Reasoning", "hm")
    assert (usage.kind, usage.label, usage.body.text) == ("fold", "Token usage", '{\n  "total_token_count": 3\n}')


def test_error_shows_message_and_code():
    part = one(Content.from_error(message="no", error_code="refused"))
    assert (part.kind, part.label, part.title, part.body.text) == ("problem", "Error", "refused", "no")


def test_other_content_is_folded_as_json():
    part = one(Content.from_hosted_file(file_id="f1"))
    assert (part.kind, part.label) == ("fold", "hosted_file")
    assert '"file_id": "f1"' in part.body.text


@pytest.mark.parametrize("media_type", ["image/png", "image/jpeg", "image/gif", "image/webp"])
def test_small_image_is_previewed(media_type):
    part = one(Content.from_data(data=PNG, media_type=media_type))
    assert part.kind == "image"
    assert part.image == f"data:{media_type};base64,{base64.b64encode(PNG).decode()}"


def test_image_of_the_largest_size_is_previewed_and_one_byte_more_is_not():
    largest = one(Content.from_data(data=bytes(MAX_IMAGE_BYTES), media_type="image/png"))
    larger = one(Content.from_data(data=bytes(MAX_IMAGE_BYTES + 1), media_type="image/png"))
    assert (largest.kind, larger.kind) == ("image", "note")
    assert larger.body.text == "1.0\xa0MB, too large for a preview"


@pytest.mark.parametrize("media_type", ["image/svg+xml", "text/html", "application/pdf"])
def test_other_data_is_a_note_of_its_size(media_type):
    part = one(Content.from_data(data=b"abcde", media_type=media_type))
    assert (part.kind, part.label, part.body.text, part.image) == ("note", media_type, "5\xa0bytes", "")


@pytest.mark.parametrize(
    "uri",
    [
        "https://example.org/a.png",
        "javascript:alert(1)",
        "data:image/png,abc",
        'data:image/png;base64,AA"onerror="x',
        "data:image/svg+xml;x=image/png;base64,AAAA",
    ],
)
def test_address_that_is_no_raster_image_makes_no_image(uri):
    message = {
        "type": "message",
        "role": "user",
        "contents": [{"type": "uri", "uri": uri, "media_type": "image/png"}],
    }
    [part] = read_message(json.dumps(message)).parts
    assert (part.kind, part.image) == ("note", "")


@pytest.mark.parametrize(
    "broken",
    ["", "{", "[]", "null", '{"contents": 3}', '{"role": "user"}', "[" * 100_000, '{"contents": [1' + "0" * 5000],
)
def test_unreadable_message_says_so_and_shows_itself(broken):
    [part] = read_message(broken).parts
    assert (part.kind, part.label) == ("problem", "This message cannot be read")
    assert part.body.text == broken[:MAX_TEXT_CHARACTERS]


@pytest.mark.parametrize(
    "content",
    [
        *(
            1,
            [],
            {},
            {"type": 3},
            {"type": "data"},
            {"type": "error"},
            {"type": "usage"},
            {"type": "function_call"},
        ),
        {"type": "text", "text": 3},
        {"type": "uri", "uri": 4},
        {"type": "function_call", "arguments": [[]], "name": {}},
        {"type": "function_result", "items": 4},
        {"type": "function_result", "call_id": []},
        {"type": "function_approval_request"},
    ],
)
def test_content_of_any_shape_gives_a_part(content):
    assert len(read_message(json.dumps({"contents": [content]})).parts) == 1


def test_contents_are_bounded():
    parts = read(*[Content.from_text("x")] * (MAX_CONTENTS + 7))
    assert len(parts) == MAX_CONTENTS + 1
    assert parts[-1].body.text == "7 more contents are not shown"


def test_author_and_json_are_read():
    reading = read_message(payload("hi", author_name="Concierge", message_id="m1"))
    assert reading.author == "Concierge"
    assert json.loads(reading.raw)["message_id"] == "m1"


def test_long_strings_of_the_json_are_cut_and_it_stays_json():
    raw = json.loads(read_message(payload(Content.from_data(data=bytes(9000), media_type="image/png"))).raw)
    uri = raw["contents"][0]["uri"]
    assert uri.startswith("data:image/png;base64,AAAA")
    assert uri.endswith("… (10022 more characters)")


def test_depth_of_the_json_is_no_error():
    deep = '{"contents": [{"type": "text", "text": "hi"}], "additional_properties": ' + "[" * 900 + "]" * 900 + "}"
    reading = read_message(deep)
    assert [part.text for part in reading.parts] == ["hi"]
