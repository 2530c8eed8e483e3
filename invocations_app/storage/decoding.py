"""Messages from their JSON texts, many at once, and what they look like.

Most messages of a long history are plain texts. These are put together here as
the framework's constructors leave them, in a third of their time; all others
are left to its ``from_dict``.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from agent_framework import Content, Message

from invocations_app.storage import looks
from invocations_app.storage.looks import Look

_TYPE = "message"
_TEXT_FIELDS = {"type", "text", "additional_properties"}
_MESSAGE_FIELDS = {"type", "role", "contents", "author_name", "message_id", "additional_properties"}
# What a content and a message hold that are no more than the constructors make of the least.
_TEXT = dict(vars(Content("text", text="")))
_MESSAGE = dict(vars(Message("user")))
_SET_IN_TEXT = looks.look_of(Message("user", [""]))[1][0]


def decode_messages(payloads: Sequence[str]) -> list[tuple[Message, Look]]:
    """Return the messages that JSON texts stand for, and what they look like.

    Args:
        payloads: The texts, each of one message.

    Raises:
        Exception: If one of them is not a message; of whatever kind.
    """
    # One call of the parser for all of them: half the time of one for each.
    documents = json.loads(f"[{','.join(payloads)}]")
    if len(documents) != len(payloads):
        raise ValueError("a stored message is not one message")
    return [_message(document) for document in documents]


def _message(document: dict[str, Any]) -> tuple[Message, Look]:
    if document.get("type") != _TYPE:
        raise ValueError("a stored message is not a message")
    if _IS_AS_KNOWN and _is_plain(document):
        return _plain_message(document)
    message = Message.from_dict(document)
    return message, looks.look_of(message)


def _is_plain(document: dict[str, Any]) -> bool:
    contents = document.get("contents")
    return (
        document.keys() <= _MESSAGE_FIELDS
        and type(document.get("role")) is str
        and type(document.get("additional_properties")) is dict
        and type(contents) is list
        and all(map(_is_plain_text, contents))
    )


def _is_plain_text(content: Any) -> bool:
    return (
        type(content) is dict
        and content.get("type") == "text"
        and content.keys() == _TEXT_FIELDS
        and type(content["text"]) is str
        and content["additional_properties"] == {}
    )


def _plain_message(document: dict[str, Any]) -> tuple[Message, Look]:
    texts = [content["text"] for content in document["contents"]]
    contents = [_text(text) for text in texts]
    message = Message.__new__(Message)
    fields = message.__dict__
    fields.update(_MESSAGE)
    fields["role"] = document["role"]
    fields["contents"] = contents
    fields["author_name"] = document.get("author_name")
    fields["message_id"] = document.get("message_id")
    fields["additional_properties"] = document["additional_properties"]
    return message, looks.look_with(message, [_SET_IN_TEXT | {"text": text} for text in texts])


def _text(text: str) -> Content:
    content = Content.__new__(Content)
    fields = content.__dict__
    fields.update(_TEXT)
    fields["text"] = text
    fields["additional_properties"] = {}
    return content


# A later framework may make more of it; then everything is left to its constructors.
_known = Message("user", ["x"], author_name="a", message_id="m", additional_properties={"k": 1})
_made, _look = _plain_message(_known.to_dict())
_IS_AS_KNOWN = (vars(_made.contents[0]), vars(_made) | {"contents": []}, _look[1]) == (
    vars(_known.contents[0]),
    vars(_known) | {"contents": []},
    looks.look_of(_known)[1],
)
