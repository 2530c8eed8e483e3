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

_AT_ONCE = 64
_TYPE = "message"
_TEXT_FIELDS = {"type", "text", "additional_properties"}
_MESSAGE_FIELDS = {"type", "role", "contents", "author_name", "message_id", "additional_properties"}
# What a content and a message hold that are no more than the constructors make of the least.
_TEXT = dict(vars(Content("text", text="")))
_MESSAGE = dict(vars(Message("user")))


def decode_messages(payloads: Sequence[str]) -> list[tuple[Message, Look]]:
    """Return the messages that JSON texts stand for, and what they look like.

    Args:
        payloads: The texts, each of one message.

    Raises:
        Exception: If one of them is not a message; of whatever kind.
    """
    made: list[tuple[Message, Look]] = []
    for start in range(0, len(payloads), _AT_ONCE):
        some = payloads[start : start + _AT_ONCE]
        # One call of the parser for many of them: half the time of one for each. For more than these, memory that was
        # just used would not be used again.
        documents = json.loads(f"[{','.join(some)}]")
        if len(documents) != len(some):
            raise ValueError("a stored message is not one message")
        made += map(_message, documents)
    return made


def _message(document: dict[str, Any]) -> tuple[Message, Look]:
    if document.get("type") != _TYPE:
        raise ValueError("a stored message is not a message")
    texts = _plain_texts(document) if _IS_AS_KNOWN else None
    if texts is not None:
        return _plain_message(document, texts)
    message = Message.from_dict(document)
    return message, looks.look_of(message)


def _plain_texts(document: dict[str, Any]) -> list[str] | None:
    """Return the texts that the contents of a message are; None where they, or it, are any more than that."""
    contents = document.get("contents")
    if (
        type(contents) is not list
        or type(document.get("role")) is not str
        or type(document.get("additional_properties")) is not dict
        or not document.keys() <= _MESSAGE_FIELDS
    ):
        return None
    texts = []
    for content in contents:
        if type(content) is not dict or content.keys() != _TEXT_FIELDS:
            return None
        text = content["text"]
        if type(text) is not str or content["type"] != "text" or content["additional_properties"] != {}:
            return None
        texts.append(text)
    return texts


def _plain_message(document: dict[str, Any], texts: list[str]) -> tuple[Message, Look]:
    message = Message.__new__(Message)
    fields = _MESSAGE.copy()
    fields["role"] = document["role"]
    fields["contents"] = contents = [_text(text) for text in texts]
    fields["author_name"] = document.get("author_name")
    fields["message_id"] = document.get("message_id")
    fields["additional_properties"] = document["additional_properties"]
    message.__dict__ = fields
    if len(texts) == 1:
        return message, looks.look_of_text(message, contents[0], texts[0])
    return message, looks.look_with(message, texts)


def _text(text: str) -> Content:
    content = Content.__new__(Content)
    fields = _TEXT.copy()
    fields["text"] = text
    fields["additional_properties"] = {}
    content.__dict__ = fields
    return content


# A later framework may make more of it; then everything is left to its constructors.
_known = Message("user", ["x"], author_name="a", message_id="m", additional_properties={"k": 1})
_made, _look = _plain_message(_known.to_dict(), ["x"])
_IS_AS_KNOWN = (
    vars(_made.contents[0]) == vars(_known.contents[0])
    and vars(_made) | {"contents": []} == vars(_known) | {"contents": []}
    and looks.Comparison().is_unchanged(_made, _look)
    and looks.look_of(_made)[1] == ["x"]
)
