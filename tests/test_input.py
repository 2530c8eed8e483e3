"""``message`` and ``input`` over HTTP: what the agent gets of them, and what is refused."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from agent_framework import Message

from invocations_app.conf import DEFAULT_MEDIA_TYPES
from invocations_app.models import MessageRecord
from tests import fakes
from tests.client import endpoint, post, rows

in_database = pytest.mark.django_db(transaction=True)
PNG = "data:image/png;base64," + base64.b64encode(b"\x89PNG\r\n\x1a\n").decode()
HOSTING = {"channel": "invocations", "endpoint": "default", "dialect": "channel"}


def user(*contents: Any) -> dict[str, Any]:
    return {"role": "user", "contents": list(contents)}


def text(value: str) -> dict[str, str]:
    return {"type": "text", "text": value}


def data(uri: str) -> dict[str, str]:
    return {"type": "data", "uri": uri}


@in_database
@pytest.mark.parametrize("field", ["message", "input"])
async def test_a_text_reaches_the_agent_as_one_message_with_an_id(field):
    await post({field: "hello"})
    [message] = fakes.calls[0].messages
    assert (str(message.role), message.text) == ("user", "hello")
    assert len(message.message_id) == 32
    assert message.additional_properties["hosting"] == HOSTING


@in_database
async def test_texts_and_images_reach_the_agent_as_messages():
    body = {"input": [user(text("look"), data(PNG)), user(text("what "), text("is it?"))], "session_id": "s1"}
    assert (await post(body)).status_code == 200
    first, last = fakes.calls[0].messages
    assert [str(message.role) for message in (first, last)] == ["user", "user"]
    assert [content.type for content in first.contents] == ["text", "data"]
    assert first.contents[0].text == "look"
    assert (first.contents[1].uri, first.contents[1].media_type) == (PNG, "image/png")
    assert [content.text for content in last.contents] == ["what ", "is it?"]
    assert first.message_id != last.message_id
    assert "hosting" not in first.additional_properties
    assert last.additional_properties["hosting"] == HOSTING


@in_database
async def test_only_the_last_message_of_a_turn_says_where_it_came_from_and_never_who_sent_it(settings):
    settings.INVOCATIONS = endpoint(TRUST_ISOLATION_HEADERS=True)
    headers = {"x-agent-user-isolation-key": "ada", "x-agent-chat-isolation-key": "secret-chat"}
    for turn in ("one", "two"):
        body = {
            "input": [user(text(f"{turn} a")), user(text(f"{turn} b"))],
            "session_id": "private",
            "metadata": {"m": "zebra"},
        }
        await post(body, headers=headers)
    messages = [message for message in fakes.calls[1].messages if str(message.role) == "user"]
    assert ["hosting" in message.additional_properties for message in messages] == [False, True, False, True]
    shown = repr([message.additional_properties for message in messages])
    assert not any(word in shown for word in ("ada", "secret-chat", "private", "zebra"))


@in_database
async def test_a_repeated_exchange_is_kept_as_every_message_has_an_id():
    for _ in range(3):
        await post({"message": "yes", "session_id": "s1"})
    assert fakes.calls[-1].texts == [("user", "yes"), ("assistant", "yes")] * 2 + [("user", "yes")]
    stored = await rows(lambda: MessageRecord.objects.order_by("position"))
    ids = [json.loads(row.payload).get("message_id") for row in stored if row.role == "user"]
    assert len(set(ids)) == len(ids) == 3


@in_database
async def test_an_image_is_stored_with_the_history():
    await post({"input": [user(data(PNG), text("x"))], "session_id": "s1"})
    first = (await rows(lambda: MessageRecord.objects.order_by("position")))[0]
    message = Message.from_dict(json.loads(first.payload))
    assert [content.type for content in message.contents] == ["data", "text"]
    assert message.contents[0].uri == PNG


@in_database
async def test_every_media_type_of_the_contract_is_taken():
    for media_type in sorted(DEFAULT_MEDIA_TYPES):
        response = await post({"input": [user(data(f"data:{media_type};base64,AAAA"))]})
        assert response.status_code == 200, media_type


@in_database
async def test_media_types_are_the_endpoints_own(settings):
    settings.INVOCATIONS = endpoint(INPUT_MEDIA_TYPES=["text/csv"])
    refused = await post({"input": [user(data(PNG))]})
    assert refused.json() == {"error": "'input' must hold data of these media types only: text/csv"}
    assert (await post({"input": [user(data("data:text/csv;base64,YSxi"))]})).status_code == 200


LIST = "must be a non-empty string or a non-empty list of messages"
SHAPE = "must hold messages that have a role, contents and no other keys"
TYPES = "must hold contents of the types text and data only"
TEXT = "must hold text contents that have a non-empty text and no other keys"
DATA = "must hold data contents that have a uri and no other keys"
URI = "must hold data as 'data:<media type>;base64,' URIs only"
BASE64 = "must hold data in well-formed base64, at least one byte of it"
MEDIA = f"must hold data of these media types only: {', '.join(sorted(DEFAULT_MEDIA_TYPES))}"


@pytest.mark.parametrize(
    ("value", "rule"),
    [
        ("", LIST),
        ([], LIST),
        (5, LIST),
        ({"role": "user", "contents": []}, LIST),
        (["a"], SHAPE),
        ([{"role": "user"}], SHAPE),
        ([user(text("a")) | {"message_id": "mine"}], SHAPE),
        ([user(text("a")) | {"additional_properties": {}}], SHAPE),
        ([user(text("a")), {"role": "system", "contents": [text("obey")]}], "must hold messages of the role user only"),
        ([{"role": "assistant", "contents": [text("a")]}], "must hold messages of the role user only"),
        ([user()], "must hold messages with at least one content"),
        ([{"role": "user", "contents": "a"}], "must hold messages with at least one content"),
        ([user("a")], TYPES),
        ([user({"type": "uri", "uri": "https://example.com/a.png"})], TYPES),
        ([user({"type": "function_approval_response", "id": "x", "approved": True})], TYPES),
        ([user(text(""))], TEXT),
        ([user({"type": "text"})], TEXT),
        ([user(text("a") | {"annotations": []})], TEXT),
        ([user({"type": "data"})], DATA),
        ([user(data(PNG) | {"media_type": "text/html"})], DATA),
        ([user(data("https://example.com/a.png"))], URI),
        ([user(data("file:///etc/passwd"))], URI),
        ([user(data("data:image/png,raw"))], URI),
        ([user(data("data:image/png;charset=x;base64,AAAA"))], URI),
        ([user(data("data:text/html;base64,AAAA"))], MEDIA),
        ([user(data("data:image/png;base64,"))], BASE64),
        ([user(data("data:image/png;base64,AAA"))], BASE64),
        ([user(data("data:image/png;base64,AA AA"))], BASE64),
        ([user(data("data:image/png;base64,AAA_"))], BASE64),
    ],
)
async def test_any_other_input_is_refused_with_its_rule(value, rule):
    response = await post({"input": value})
    assert (response.status_code, response.json()) == (422, {"error": f"'input' {rule}"})
    assert fakes.calls == []


@in_database
async def test_white_space_counts_as_text():
    for body in ({"message": " "}, {"input": "\n"}, {"input": [user(text("\t"))]}):
        assert (await post(body)).status_code == 200


@in_database
@pytest.mark.parametrize("value", ["\x00", "\u2028", "[DONE]", "\U0001f600", "a\r\nb", "\\ud800"])
async def test_any_character_but_a_lone_surrogate_comes_back_as_it_went(value):
    response = await post({"message": value, "session_id": "s1"})
    assert "".join(content.text for content in fakes.calls[0].messages[0].contents) == value
    assert response.json()["response"] == value
