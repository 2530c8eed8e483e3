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
    fields["contents"] = [_text(text) for text in texts]
    fields["author_name"] = document.get("author_name")
    fields["message_id"] = document.get("message_id")
    fields["additional_properties"] = document["additional_properties"]
    message.__dict__ = fields
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
_IS_AS_KNOWN = (vars(_made.contents[0]), vars(_made) | {"contents": []}, _look[1]) == (
    vars(_known.contents[0]),
    vars(_known) | {"contents": []},
    looks.look_of(_known)[1],
)
