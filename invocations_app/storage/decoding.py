"""Messages from their JSON texts, many at once, and what they look like.

Most messages of a long history are plain texts; all others are left to the
framework's ``from_dict``.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from agent_framework import Message

from invocations_app.plain_messages import IS_AS_KNOWN, plain_message
from invocations_app.storage import looks
from invocations_app.storage.looks import Look

_AT_ONCE = 64
_TYPE = "message"
_TEXT_FIELDS = {"type", "text", "additional_properties"}
_MESSAGE_FIELDS = {"type", "role", "contents", "author_name", "message_id", "additional_properties"}


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
    names = document.get("author_name"), document.get("message_id")
    message = plain_message(document["role"], texts, *names, document["additional_properties"])
    if len(texts) == 1:
        return message, looks.look_of_text(message, message.contents[0], texts[0])
    return message, looks.look_with(message, texts)


# A later framework may look another way; then everything is left to it.
_known = Message("user", ["x"], author_name="a", message_id="m", additional_properties={"k": 1})
_made, _look = _plain_message(_known.to_dict(), ["x"])
_IS_AS_KNOWN = IS_AS_KNOWN and looks.Comparison().is_unchanged(_made, _look) and looks.look_of(_made)[1] == ["x"]
