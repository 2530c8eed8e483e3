"""Telling that a message is still what it was, without encoding it.

A look holds copies of whatever can be changed in place, all the way down:
compaction marks a message deep inside its properties, so a copy of the outer
level would change together with it. What does not show in one is encoded and
compared as text, so a look may say "changed" too often, but never too rarely.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

from agent_framework import Content, Message

#: What a message looks like: role, author, id, copies of its properties and of the set fields of its contents.
Look: TypeAlias = tuple[Any, ...]

_RAW = "raw_representation"
# These cannot be changed in place.
_PLAIN = frozenset({str, int, float, bool})
# All fields of a content, none of them set.
_BLANK: dict[str, Any] = dict.fromkeys(vars(Content("text")))


def look_of(message: Message) -> Look:
    """Return what a message looks like now.

    Args:
        message: The message.
    """
    return (
        message.role,
        message.author_name,
        message.message_id,
        _copied(message.additional_properties) if message.additional_properties else {},
        [_set_fields(content) for content in message.contents],
    )


def is_unchanged(message: Message, look: Look) -> bool:
    """Return whether a message still looks as it did.

    Args:
        message: The message.
        look: What `look_of` gave.
    """
    role, author_name, message_id, properties, contents = look
    if (
        message.role != role
        or message.message_id != message_id
        or message.author_name != author_name
        or message.additional_properties != properties
        # What the provider's library made of it is not stored, so a message that was read has none.
        or message.raw_representation is not None
        or len(message.contents) != len(contents)
    ):
        return False
    for content, fields in zip(message.contents, contents, strict=True):
        # One comparison of two dictionaries does for most contents. Fields that hold contents never pass it, as
        # their copies are dictionaries: for these a new copy is made.
        if vars(content) != _BLANK | fields and (
            content.raw_representation is not None or _set_fields(content) != fields
        ):
            return False
    return True


def _set_fields(content: Any) -> dict[str, Any]:
    return {
        name: item if type(item) in _PLAIN else _copied(item)
        for name, item in vars(content).items()
        if item is not None and name != _RAW
    }


def _copied(value: Any) -> Any:
    """Return a value whose containers and contents are copies; other objects are themselves."""
    if type(value) in _PLAIN or isinstance(value, str):
        return value
    if isinstance(value, Content):
        return _set_fields(value)
    if isinstance(value, Mapping):
        return {key: _copied(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_copied(item) for item in value]
    return value
