"""The JSON texts of messages.

Most messages are plain texts. What the framework's ``to_dict`` makes of these is
put together here, at a fraction of its time; all others are left to it.
"""

from __future__ import annotations

import json
from typing import Any

from agent_framework import Content, Message

_encoder = json.JSONEncoder(allow_nan=False, separators=(",", ":"))
_RAW = "raw_representation"
_PROPERTIES = "additional_properties"
_MESSAGE_FIELDS = vars(Message("user")).keys()
# The fields of a content that is a text and no more.
_TEXT = dict(vars(Content("text", text="")))
_NO_TEXTS = frozenset({"contents", _PROPERTIES})
_SCALARS = frozenset({str, int, float, bool, type(None)})


def encode_message(message: Message) -> str:
    """Return the JSON text of a message, as `decoding` reads it.

    Args:
        message: The message.

    Raises:
        TypeError: If it holds what JSON cannot.
        ValueError: If it holds a number that is not finite.
    """
    document = _plain(message) if _IS_AS_KNOWN else None
    return _encoder.encode(message.to_dict() if document is None else document)


def _plain(message: Message) -> dict[str, Any] | None:
    """Return what ``to_dict`` gives, for a message of plain texts; None for any other."""
    fields = vars(message)
    properties = fields.get(_PROPERTIES)
    if fields.keys() != _MESSAGE_FIELDS or type(message.contents) is not list or not _is_json_object(properties):
        return None
    contents = []
    for content in message.contents:
        text = _plain_text(content)
        if text is None:
            return None
        contents.append(text)
    document: dict[str, Any] = {"type": "message", "role": message.role, "contents": contents}
    if message.author_name is not None:
        document["author_name"] = message.author_name
    if message.message_id is not None:
        document["message_id"] = message.message_id
    document[_PROPERTIES] = properties
    return document if all(type(document[name]) is str for name in document.keys() - _NO_TEXTS) else None


def _plain_text(content: Any) -> dict[str, Any] | None:
    if type(content) is not Content:
        return None
    fields = vars(content)
    text, properties = fields["text"], fields[_PROPERTIES]
    of_a_text = {"text": text, _PROPERTIES: properties, _RAW: fields[_RAW]}
    if fields != _TEXT | of_a_text or type(text) is not str or not _is_json_object(properties):
        return None
    return {"type": "text", "text": text, _PROPERTIES: properties}


def _is_json_object(value: Any) -> bool:
    return type(value) is dict and all(type(key) is str and _is_json(item) for key, item in value.items())


def _is_json(value: Any) -> bool:
    kind = type(value)
    return kind in _SCALARS or (kind is dict and _is_json_object(value)) or (kind is list and all(map(_is_json, value)))


# A later framework may write more; then everything is left to it.
_known = Message("user", [Content("text", text="x")], author_name="a", message_id="m", additional_properties={"k": 1})
_IS_AS_KNOWN = _plain(_known) == _known.to_dict()
