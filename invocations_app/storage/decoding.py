"""Messages from their JSON texts, many at once.

Most messages of a long history are plain texts. These are made by the
framework's constructors directly, which is what its ``from_dict`` does in the
end, at half the time; all others are left to ``from_dict``.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from agent_framework import Content, Message

_TYPE = "message"
_TEXT_FIELDS = {"type", "text", "additional_properties"}


def decode_messages(payloads: Sequence[str]) -> list[Message]:
    """Return the messages that JSON texts stand for.

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


def _message(document: dict[str, Any]) -> Message:
    if document.get("type") != _TYPE:
        raise ValueError("a stored message is not a message")
    contents = document.get("contents")
    if type(contents) is not list or not all(map(_is_plain_text, contents)):
        return Message.from_dict(document)
    del document["type"]
    document["contents"] = [Content(**content) for content in contents]
    return Message(**document)


def _is_plain_text(content: Any) -> bool:
    return type(content) is dict and content.get("type") == "text" and content.keys() <= _TEXT_FIELDS
