"""The JSON texts of messages.

Most messages are plain texts. What the framework's ``to_dict`` makes of these is
put together here, at a fraction of its time; all others are left to it.
"""

from __future__ import annotations

import operator
from json.encoder import encode_basestring_ascii
from typing import Any

from agent_framework import Content, Message

from invocations_app import json_text

_text_of = json_text.encoder(allow_nan=False, compact=True)
_PROPERTIES = "additional_properties"
_MESSAGE_FIELDS = len(vars(Message("user")))
_values_of_message = operator.itemgetter("role", "contents", "author_name", "message_id", _PROPERTIES)
# The fields of a content that is a text and no more; those of them that are the same in each, and their values.
_TEXT = vars(Content("text", text=""))
_values_of_others = operator.itemgetter(*(_TEXT.keys() - {"text", _PROPERTIES, "raw_representation"}))
_OTHERS = _values_of_others(_TEXT)
_SCALARS = frozenset({str, int, float, bool, type(None)})


def encode_message(message: Message) -> str:
    """Return the JSON text of a message, as `decoding` reads it.

    Args:
        message: The message.

    Raises:
        TypeError: If it holds what JSON cannot.
        ValueError: If it holds a number that is not finite.
        RecursionError: If it holds a property that is within itself.
    """
    text = _plain(message) if _IS_AS_KNOWN else None
    return _text_of(message.to_dict()) if text is None else text


def _plain(message: Message) -> str | None:
    """Return the text of what ``to_dict`` gives, for a message of plain texts; None for any other."""
    fields = vars(message)
    try:
        role, contents, author_name, message_id, properties = _values_of_message(fields)
    except KeyError:
        return None
    if len(fields) != _MESSAGE_FIELDS or type(role) is not str or type(contents) is not list:
        return None
    texts = []
    for content in contents:
        text = _plain_text(content)
        if text is None:
            return None
        texts.append(text)
    names = ""
    if author_name is not None:
        if type(author_name) is not str:
            return None
        names = f',"author_name":{encode_basestring_ascii(author_name)}'
    if message_id is not None:
        if type(message_id) is not str:
            return None
        names = f'{names},"message_id":{encode_basestring_ascii(message_id)}'
    properties = _properties(properties)
    if properties is None:
        return None
    role = encode_basestring_ascii(role)
    return f'{{"type":"message","role":{role},"contents":[{",".join(texts)}]{names},"{_PROPERTIES}":{properties}}}'


def _plain_text(content: Any) -> str | None:
    if type(content) is not Content:
        return None
    fields = vars(content)
    text = fields["text"]
    if type(text) is not str or len(fields) != len(_TEXT) or _values_of_others(fields) != _OTHERS:
        return None
    properties = _properties(fields[_PROPERTIES])
    if properties is None:
        return None
    return f'{{"type":"text","text":{encode_basestring_ascii(text)},"{_PROPERTIES}":{properties}}}'


def _properties(value: Any) -> str | None:
    if type(value) is dict and not value:
        return "{}"
    return _text_of(value) if _is_json_object(value) else None


def _is_json_object(value: Any) -> bool:
    if type(value) is not dict:
        return False
    for key, item in value.items():
        if type(key) is not str or (type(item) not in _SCALARS and not _is_json(item)):
            return False
    return True


def _is_json(value: Any) -> bool:
    kind = type(value)
    return kind in _SCALARS or (kind is dict and _is_json_object(value)) or (kind is list and all(map(_is_json, value)))


# A later framework may write more; then everything is left to it.
_known = Message("user", [Content("text", text="x")], author_name="a", message_id="m", additional_properties={"k": 1})
_IS_AS_KNOWN = _plain(_known) == _text_of(_known.to_dict())
