"""JSON texts of messages: what is put together here is what the framework would write, to the byte."""

from __future__ import annotations

import enum
import json
from typing import Any

import pytest
from agent_framework import Content, Message

from invocations_app.storage import encoding
from invocations_app.storage.encoding import encode_message


class Name(enum.StrEnum):
    BOB = "bob"


def upstream(message: Message) -> str:
    return json.dumps(message.to_dict(), separators=(",", ":"))


def with_field(message: Message, name: str, value: Any) -> Message:
    setattr(message, name, value)
    return message


PLAIN = [
    Message("user", ["ping"]),
    Message("user", []),
    Message("user", ["one", "", "\u2028 ☃ \ud83d\ude00 \"'\\"]),
    Message("assistant", ["pong"], author_name="bob", message_id="m-1"),
    Message("assistant", ["pong"], raw_representation=object()),
    Message("user", ["ping"], additional_properties={"a": {"b": [1, 2.5, None, True, "x", {"c": []}]}}),
    Message("user", [Content("text", text="ping", additional_properties={"k": None}, raw_representation=object())]),
    Message("user", [Content("text")]),
]
OTHER: list[Message] = [
    Message("user", [Content("text", text="ping", annotations=[{"type": "citation", "title": "t"}])]),
    Message("assistant", [Content.from_function_call("c", "n", arguments={"a": 1})]),
    Message("user", ["see", Content.from_uri("https://example.com/a.png", media_type="image/png")]),
    Message("user", [Content("text_reasoning", text="hm")]),
    Message("user", ["ping"], additional_properties={"of": Message("user", ["inner"])}),
    Message("user", ["ping"], additional_properties={"t": ("a", "b")}),
    Message("user", ["ping"], additional_properties={1: "a"}),
    Message("user", ["ping"], author_name=Name.BOB),
    with_field(Message("user", ["ping"]), "more", "fields"),
    with_field(Message("user", ["ping"]), "additional_properties", None),
]


@pytest.mark.parametrize("message", PLAIN)
def test_plain_texts_are_put_together_as_upstream_writes_them(message: Message) -> None:
    assert encoding._plain(message) is not None
    assert encode_message(message) == upstream(message)


@pytest.mark.parametrize("message", OTHER)
def test_everything_else_is_left_to_upstream(message: Message) -> None:
    assert encoding._plain(message) is None
    assert encode_message(message) == upstream(message)


def test_numbers_that_are_not_finite_are_refused() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        encode_message(Message("user", ["ping"], additional_properties={"n": float("nan")}))


def test_a_property_within_itself_is_refused() -> None:
    loop: dict[str, Any] = {}
    loop["again"] = loop
    message = Message("user", ["ping"])
    message.additional_properties["loop"] = loop
    with pytest.raises((ValueError, RecursionError)):
        encode_message(message)


def test_a_framework_that_writes_something_else_is_left_to_write_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoding, "_IS_AS_KNOWN", False)
    monkeypatch.setattr(Message, "to_dict", lambda _: {"another": "shape"})
    assert encode_message(PLAIN[0]) == '{"another":"shape"}'


def test_the_framework_in_use_is_known() -> None:
    assert encoding._IS_AS_KNOWN
