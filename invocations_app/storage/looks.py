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

#: What a message looks like: its fields, with copies of what they hold, and the set fields of each of its contents.
Look: TypeAlias = tuple[dict[str, Any], list[dict[str, Any]]]

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
    return look_with(message, [_set_fields(content) for content in message.contents])


def look_with(message: Message, fields: list[dict[str, Any]]) -> Look:
    """Return what a message looks like now, where the set fields of its contents are known.

    Args:
        message: The message.
        fields: The set fields of each content, copies all the way down.
    """
    properties = message.additional_properties
    copied = _copied(properties) if properties else {}
    return vars(message) | {"contents": list(message.contents), "additional_properties": copied}, fields


def is_unchanged(message: Message, look: Look) -> bool:
    """Return whether a message still looks as it did.

    Args:
        message: The message.
        look: What `look_of` gave.
    """
    shown, contents = look
    # Both comparisons are of dictionaries, which is quick: almost all that they hold is the very same object.
    if vars(message) != shown:
        return False
    for content, fields in zip(message.contents, contents, strict=True):
        # Fields that hold contents are never equal, as their copies are dictionaries: for these a new copy is made.
        if vars(content) != _BLANK | fields and (
            # What the provider's library made of it is not stored, so a content that was read has none.
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
