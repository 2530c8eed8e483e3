"""Messages from their texts: whichever way they are made, they are what the framework makes of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from agent_framework import AgentSession, Content, Message

from invocations_app.storage import decoding, looks
from invocations_app.storage.decoding import decode_messages
from tests.test_snapshots import CONTENTS

TEXT = {"type": "text", "text": "a", "additional_properties": {}}
BARE = {"type": "message", "role": "user", "contents": [TEXT], "additional_properties": {}}

DOCUMENTS: dict[str, dict[str, Any]] = {
    **{
        f"content: {name}": Message("assistant", [content], message_id="m1").to_dict()
        for name, content in CONTENTS.items()
    },
    "all fields": Message("user", ["a"], author_name="Ann", message_id="m", additional_properties={"a": {}}).to_dict(),
    "several texts": Message("user", ["a", "", "\u2028\ud800"]).to_dict(),
    "text and image": Message("user", ["a", Content.from_data(b"x", "image/png")]).to_dict(),
    "no contents": Message("user", []).to_dict(),
    "contents left out": {"type": "message", "role": "user"},
    "contents that are null": BARE | {"contents": None},
    "a content that is null": BARE | {"contents": [None, TEXT]},
    "a content that is a string": BARE | {"contents": ["a"]},
    "a text without its text": BARE | {"contents": [{"type": "text"}]},
    "deep properties": BARE | {"contents": [TEXT | {"additional_properties": {"a": {"b": [1]}}}]},
    "an annotated text": BARE | {"contents": [TEXT | {"annotations": [{"type": "citation", "title": "t"}]}]},
}


def everything(value: Any) -> Any:
    """Return all there is in a message, fields that are not set included."""
    if isinstance(value, (Message, Content)):
        return type(value), {name: everything(item) for name, item in vars(value).items()}
    return [everything(item) for item in value] if isinstance(value, list) else value


@pytest.mark.parametrize("document", DOCUMENTS.values(), ids=DOCUMENTS.keys())
def test_a_message_is_what_the_framework_makes_of_it(document: dict[str, Any]) -> None:
    ((decoded, look),) = decode_messages([json.dumps(document)])
    theirs = AgentSession.from_dict({"session_id": "-", "state": {"messages": [json.loads(json.dumps(document))]}})
    assert everything(decoded) == everything(theirs.state["messages"][0])
    assert looks.Comparison().is_unchanged(decoded, looks.look_of(decoded))
    assert looks.Comparison().is_unchanged(decoded, look)


def test_messages_share_nothing() -> None:
    (first, _), (second, _) = decode_messages([json.dumps(BARE)] * 2)
    first.additional_properties["a"] = first.contents[0].additional_properties["a"] = 1
    assert (second.additional_properties, second.contents[0].additional_properties) == ({}, {})


def test_many_come_in_their_order() -> None:
    texts = [json.dumps(BARE | {"message_id": str(number)}) for number in range(300)]
    assert [message.message_id for message, _ in decode_messages(texts)] == [str(number) for number in range(300)]
    assert decode_messages([]) == []


@pytest.mark.parametrize(
    "text",
    [
        "",
        "null",
        "[]",
        '"a"',
        "{}",
        '{"type": "session"}',
        '{"type": "message", "role": "user"}, {"type": "message", "role": "user"}',
        '{"type": "message", "role": "user", "unknown": 1}',
        '{"type": "message", "contents": []}',
        '{"type": "message", "role": "user", "contents": [',
    ],
)
def test_what_is_no_message_is_refused(text: str) -> None:
    with pytest.raises((ValueError, TypeError, KeyError, AttributeError)):
        decode_messages([json.dumps(BARE), text])


CHANGES: dict[str, Callable[[Message], object]] = {
    "one more content": lambda message: message.contents.append(Content("text", text="b")),
    "no content": lambda message: message.contents.clear(),
    "another content that is equal": lambda message: message.contents.__setitem__(0, Content("text", text="b")),
    "contents of another kind": lambda message: setattr(message, "contents", tuple(message.contents)),
    "another text": lambda message: setattr(message.contents[0], "text", "b"),
    "another kind of content": lambda message: setattr(message.contents[0], "type", "text_reasoning"),
    "a property of a content": lambda message: message.contents[0].additional_properties.update(a=1),
    "an annotation": lambda message: setattr(message.contents[0], "annotations", [{"type": "citation"}]),
    "a property": lambda message: message.additional_properties.update(a=1),
    "no properties": lambda message: setattr(message, "additional_properties", None),
    "the role": lambda message: setattr(message, "role", "assistant"),
    "the author": lambda message: setattr(message, "author_name", "b"),
    "the id": lambda message: setattr(message, "message_id", "b"),
    "an attribute of its own": lambda message: setattr(message, "extra", 1),
    "an attribute less": lambda message: delattr(message, "author_name"),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
@pytest.mark.parametrize("contents", [[TEXT], [TEXT, TEXT]], ids=["one text", "two texts"])
def test_a_change_of_what_was_read_shows(contents: list[Any], change: Callable[[Message], object]) -> None:
    ((message, look),) = decode_messages([json.dumps(BARE | {"contents": contents})])
    assert looks.Comparison().is_unchanged(message, look)
    change(message)
    assert not looks.Comparison().is_unchanged(message, look)


def test_a_property_deep_inside_that_changes_shows() -> None:
    ((message, look),) = decode_messages([json.dumps(BARE | {"additional_properties": {"a": {"b": [1]}}})])
    assert looks.Comparison().is_unchanged(message, look)
    message.additional_properties["a"]["b"].append(2)
    assert not looks.Comparison().is_unchanged(message, look)


def test_what_a_library_made_of_a_text_is_no_change_of_it() -> None:
    ((message, look),) = decode_messages([json.dumps(BARE)])
    message.contents[0].raw_representation = object()
    assert looks.Comparison().is_unchanged(message, look)


def test_messages_that_are_compared_one_after_the_other_are_told_apart() -> None:
    texts = [json.dumps(BARE | {"contents": [TEXT | {"text": text}]}) for text in ("a", "b", "a")]
    comparison = looks.Comparison()
    made = decode_messages(texts)
    made[1][0].contents[0].text = "a"
    assert [comparison.is_unchanged(*each) for each in made] == [True, False, True]


@pytest.mark.parametrize("document", DOCUMENTS.values(), ids=DOCUMENTS.keys())
def test_a_framework_that_makes_something_else_is_left_to_make_it(
    document: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoding, "_IS_AS_KNOWN", False)
    made: list[Any] = []
    original = Message.from_dict
    monkeypatch.setattr(Message, "from_dict", lambda given: made.append(given) or original(given))
    decode_messages([json.dumps(document)])
    assert len(made) == 1


def test_the_framework_in_use_is_known() -> None:
    assert decoding._IS_AS_KNOWN
