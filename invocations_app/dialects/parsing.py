"""The rules of request fields, and the messages made of them, for every dialect.

A broken rule is a `FieldError`; status and text of its answer are left to the
dialect. JSON itself is read in `strict_json`.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from agent_framework import Content, Message

from invocations_app.dialects.strict_json import has_surrogates
from invocations_app.entropy import random_hex
from invocations_app.envelope import DialectName
from invocations_app.plain_messages import user_message

HOSTING_PROPERTY = "hosting"
MAX_SESSION_ID_CHARACTERS = 256

_CONTROL_CHARACTER = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_DATA_URI = re.compile(r"data:([^,;]*);base64,(.*)", re.DOTALL)


class FieldError(Exception):
    """A field breaks a rule.

    Args:
        field: Name of the field in the body.
        rule: The rule, as the rest of a sentence that starts with the field.
    """

    def __init__(self, field: str, rule: str) -> None:
        self.field = field
        self.rule = rule
        super().__init__(f"'{field}' {rule}")


def without_nulls(body: Mapping[str, Any], keys: Collection[str] | None = None) -> dict[str, Any]:
    """Return a body without the keys whose value is null, which count as absent.

    Args:
        body: The body; objects within it are left as they are.
        keys: The keys of which this holds; None for all.
    """
    return {key: value for key, value in body.items() if value is not None or (keys is not None and key not in keys)}


def refuse_surrogates(body: Mapping[str, Any], fields: Iterable[str]) -> None:
    """Refuse lone surrogates in the given fields, in their order.

    Args:
        body: The body.
        fields: Names of the fields, those of the body or not.

    Raises:
        FieldError: If a name, or a string or key in its value, holds one.
    """
    for name in fields:
        if name in body and has_surrogates({name: body[name]}):
            raise FieldError(name, "must not contain lone surrogates")


def read_boolean(body: Mapping[str, Any], field: str) -> bool:
    """Return a boolean field, False where it is absent.

    Raises:
        FieldError: If it is anything else, 0 and 1 included.
    """
    value = body.get(field, False)
    if not isinstance(value, bool):
        raise FieldError(field, "must be a boolean")
    return value


def read_object(body: Mapping[str, Any], field: str) -> dict[str, Any]:
    """Return an object field, empty where it is absent.

    Raises:
        FieldError: If it is anything else.
    """
    value = body.get(field, {})
    if not isinstance(value, dict):
        raise FieldError(field, "must be an object")
    return value


def check_session_id(session_id: str) -> None:
    """Refuse a session id that is too long or holds control characters.

    Raises:
        FieldError: Of the field ``session_id``.
    """
    if len(session_id) > MAX_SESSION_ID_CHARACTERS:
        raise FieldError("session_id", f"must have at most {MAX_SESSION_ID_CHARACTERS} characters")
    if _CONTROL_CHARACTER.search(session_id):
        raise FieldError("session_id", "must not contain control characters")


def read_input(value: Any, media_types: Collection[str]) -> list[Message]:
    """Return the messages that the ``input`` of an agent says.

    ``Message.from_dict`` would take any role, type, address and id, so nothing
    is handed to it: each key is read here, and any other is refused.

    Args:
        value: The field's value, not null.
        media_types: Media types that data contents may have.

    Returns:
        At least one message, each with at least one content.

    Raises:
        FieldError: Of the field ``input``.
    """
    if isinstance(value, str) and value:
        return [user_message(value)]
    if not isinstance(value, list) or not value:
        raise FieldError("input", "must be a non-empty string or a non-empty list of messages")
    return [_read_message(item, media_types) for item in value]


def _read_message(value: Any, media_types: Collection[str]) -> Message:
    if not isinstance(value, dict) or value.keys() != {"role", "contents"}:
        raise FieldError("input", "must hold messages that have a role, contents and no other keys")
    if value["role"] != "user":
        raise FieldError("input", "must hold messages of the role user only")
    contents = value["contents"]
    if not isinstance(contents, list) or not contents:
        raise FieldError("input", "must hold messages with at least one content")
    return Message("user", [_read_content(content, media_types) for content in contents])


def _read_content(value: Any, media_types: Collection[str]) -> Content:
    kind = value.get("type") if isinstance(value, dict) else None
    if kind == "text":
        if value.keys() != {"type", "text"} or not isinstance(value["text"], str) or not value["text"]:
            raise FieldError("input", "must hold text contents that have a non-empty text and no other keys")
        return Content.from_text(value["text"])
    if kind == "data":
        if value.keys() != {"type", "uri"} or not isinstance(value["uri"], str):
            raise FieldError("input", "must hold data contents that have a uri and no other keys")
        return _read_data(value["uri"], media_types)
    raise FieldError("input", "must hold contents of the types text and data only")


def _read_data(uri: str, media_types: Collection[str]) -> Content:
    found = _DATA_URI.fullmatch(uri)
    if found is None:
        raise FieldError("input", "must hold data as 'data:<media type>;base64,' URIs only")
    media_type, data = found.groups()
    if media_type not in media_types:
        raise FieldError("input", f"must hold data of these media types only: {', '.join(sorted(media_types))}")
    try:
        decoded = base64.b64decode(data, validate=True)
    except ValueError:
        decoded = b""
    if not decoded:
        raise FieldError("input", "must hold data in well-formed base64, at least one byte of it")
    return Content.from_uri(uri, media_type=media_type)


def stamp_messages(messages: Sequence[Message], endpoint: str, dialect: DialectName) -> list[Message]:
    """Return the messages as a target gets them: each with an id, the last with its origin.

    Core takes a repeated exchange of messages without ids for a replay and drops
    it, so each gets a fresh id where it has none. May be called again once a hook
    has replaced messages.

    Args:
        messages: The messages of one turn, in order.
        endpoint: Alias of the endpoint.
        dialect: Name of the dialect.

    Returns:
        Copies with properties and list of contents of their own: what a run writes
        into them (compaction does) stays in this run, though a hook may hand out
        the same message again. Only the last has the property ``hosting``.
    """
    stamped = []
    for message in messages:
        # As copy.copy does it, in a tenth of the time: core's looks at every field on its own.
        stamp = type(message).__new__(type(message))
        stamp.__dict__.update(message.__dict__)
        stamp.contents = list(message.contents)
        stamp.message_id = message.message_id or random_hex()
        stamp.additional_properties = {
            key: dict(value) if isinstance(value, Mapping) else value
            for key, value in message.additional_properties.items()
            if key != HOSTING_PROPERTY
        }
        stamped.append(stamp)
    if stamped:
        origin = {"channel": "invocations", "endpoint": endpoint, "dialect": dialect}
        stamped[-1].additional_properties[HOSTING_PROPERTY] = origin
    return stamped
