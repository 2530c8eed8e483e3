"""Messages of plain texts as the framework's constructors leave them, in a third of their time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from agent_framework import Content, Message

# What a content and a message hold that are no more than the constructors make of the least.
_TEXT = dict(vars(Content("text", text="")))
_MESSAGE = dict(vars(Message("user")))


def user_message(text: str) -> Message:
    """Return a person's message.

    Args:
        text: Its text.
    """
    return plain_message("user", [text]) if IS_AS_KNOWN else Message("user", [text])


def plain_message(
    role: str,
    texts: Sequence[str],
    author_name: Any = None,
    message_id: Any = None,
    additional_properties: dict[str, Any] | None = None,
) -> Message:
    """Return a message; only where `IS_AS_KNOWN` as the framework would make it.

    Args:
        role: Its role.
        texts: The texts that its contents are.
        author_name: As in the framework's ``Message``.
        message_id: Likewise.
        additional_properties: Likewise; not copied.
    """
    message = Message.__new__(Message)
    fields = _MESSAGE.copy()
    fields["role"] = role
    fields["contents"] = [_text(text) for text in texts]
    fields["author_name"] = author_name
    fields["message_id"] = message_id
    fields["additional_properties"] = {} if additional_properties is None else additional_properties
    message.__dict__ = fields
    return message


def _text(text: str) -> Content:
    content = Content.__new__(Content)
    fields = _TEXT.copy()
    fields["text"] = text
    fields["additional_properties"] = {}
    content.__dict__ = fields
    return content


def _is_as_known() -> bool:
    for known in (
        Message("user", ["x"]),
        Message("user", ["x"], author_name="a", message_id="m", additional_properties={"k": 1}),
    ):
        made = plain_message("user", ["x"], known.author_name, known.message_id, known.additional_properties)
        (content,), (known_content,) = made.contents, known.contents
        if vars(content) != vars(known_content) or vars(made) | {"contents": []} != vars(known) | {"contents": []}:
            return False
    return True


#: Whether the framework makes no more of it; a later one may, and then everything is left to its constructors.
IS_AS_KNOWN = _is_as_known()
