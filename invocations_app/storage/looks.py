"""Telling that a message is still what it was, without encoding it.

A look holds copies of whatever can be changed in place, all the way down:
compaction marks a message deep inside its properties, so a copy of the outer
level would change together with it. What does not show in one is encoded and
compared as text, so a look may say "changed" too often, but never too rarely.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any, TypeAlias

from agent_framework import Content, Message

#: What a message looks like: its fields, with copies of what they hold, and of each of its contents the set fields;
#: the text where a content is a text and no more.
FullLook: TypeAlias = tuple[dict[str, Any], list[dict[str, Any] | str]]
#: What a message of one text and no more looks like: the content and its text, a copy of the properties, and the values
#: of the other fields.
TextLook: TypeAlias = tuple[Content, str, dict[str, Any], tuple[Any, ...]]
Look: TypeAlias = FullLook | TextLook

_RAW = "raw_representation"
# These cannot be changed in place.
_PLAIN = frozenset({str, int, float, bool})
# All fields of a content, none of them set.
_BLANK: dict[str, Any] = dict.fromkeys(vars(Content("text")))
# All fields of a content that is a text and no more.
_TEXT: dict[str, Any] = dict(vars(Content("text", text="")))
# Number of all fields of a message, and the values of those that cannot be changed in place.
_FIELDS = len(vars(Message("user")))
_values_of_others = operator.itemgetter(*(vars(Message("user")).keys() - {"contents", "additional_properties"}))
_NO_PROPERTIES: dict[str, Any] = {}


def look_of(message: Message) -> FullLook:
    """Return what a message looks like now.

    Args:
        message: The message.
    """
    return look_with(message, [_look_of_content(content) for content in message.contents])


def look_with(message: Message, contents: list[Any]) -> FullLook:
    """Return what a message looks like now, where it is known what its contents do.

    Args:
        message: The message.
        contents: Of each content the text, where it is a text and no more; or its set fields, copies all the way down.
    """
    shown = vars(message).copy()
    shown["contents"] = list(message.contents)
    shown["additional_properties"] = _copied(message.additional_properties)
    return shown, contents


def look_of_text(message: Message, content: Content, text: str) -> TextLook:
    """Return what a message looks like now that is one text: of many, these take the least to keep.

    Args:
        message: The message, with its fields and no other attributes.
        content: Its only content.
        text: The content's text.
    """
    properties = message.additional_properties
    return content, text, _copied(properties) if properties else _NO_PROPERTIES, _values_of_others(vars(message))


class Comparison:
    """Compares messages with their looks, one after the other; for one thread."""

    def __init__(self) -> None:
        # One for all of them, as it has some fifty fields of which no two texts differ in more than one.
        self._text = _TEXT.copy()

    def is_unchanged(self, message: Message, look: Look) -> bool:
        """Return whether a message still looks as it did.

        Args:
            message: The message.
            look: What `look_of` gave.
        """
        if len(look) == 2:
            fields, contents = look
            # Comparisons of dictionaries are quick: almost all that they hold is the very same object.
            return vars(message) == fields and all(map(self._is_that, message.contents, contents))
        content, text, properties, values = look
        fields = vars(message)
        try:
            held = fields["contents"]
            is_same = _values_of_others(fields) == values and fields["additional_properties"] == properties
        except KeyError:
            return False
        if not is_same or len(fields) != _FIELDS or type(held) is not list or len(held) != 1 or held[0] is not content:
            return False
        return self._is_that(content, text)

    def _is_that(self, content: Any, known: dict[str, Any] | str) -> bool:
        if isinstance(known, str):
            shown = self._text
            shown["text"] = known
        else:
            shown = _BLANK | known
        # Fields that hold contents are never equal, as their copies are dictionaries, nor is a content that holds what
        # the provider's library made of it, which is not stored: of these a new copy is made.
        return vars(content) == shown or _look_of_content(content) == known


def _look_of_content(content: Any) -> dict[str, Any] | str:
    fields = _set_fields(content)
    text = fields.get("text")
    return text if type(text) is str and fields == _SET_IN_TEXT | {"text": text} else fields


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


_SET_IN_TEXT = _set_fields(Content("text", text=""))
