"""What the request bodies of all dialects share: ids, exclusive inputs, and the invocation made of them.

The order of the rules and the texts of refusals are left to the dialects.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from agent_framework import Message

from invocations_app.conf import EndpointSettings
from invocations_app.dialects import parsing, strict_json
from invocations_app.entropy import new_uuid
from invocations_app.envelope import INVOCATION_ID_HEADER, DialectName, TargetKind, is_well_formed_id
from invocations_app.plain_messages import user_message

#: The fields of which a body has one.
INPUTS = ("message", "input", "responses")


def invocation_id_of(headers: Mapping[str, str]) -> tuple[str, bool]:
    """Return the invocation id, and whether it is the caller's.

    Args:
        headers: Request headers, names in lower case.

    Returns:
        The header's value where it is well formed, else a new UUID.
    """
    given = headers.get(INVOCATION_ID_HEADER, "")
    return (given, True) if is_well_formed_id(given) else (new_uuid(), False)


def clash_of(body: Mapping[str, Any]) -> str | None:
    """Return what is wrong with a body of more than one input, naming them; None where nothing is.

    Args:
        body: The body, without the keys that count as absent.
    """
    given = [f"'{name}'" for name in INPUTS if name in body]
    if len(given) < 2:
        return None
    return f"{', '.join(given[:-1])} and {given[-1]} must not be given together"


def refuse_surrogates(raw: bytes, body: Mapping[str, Any], known: Iterable[str]) -> None:
    """Refuse a body with a lone surrogate in any of its strings.

    Args:
        raw: The body's bytes.
        body: The body.
        known: The dialect's fields, looked at first and in this order.

    Raises:
        FieldError: Of the first field that holds one.
    """
    if strict_json.may_hold_surrogates(raw):
        parsing.refuse_surrogates(body, dict.fromkeys((*known, *body)))


def read_input(
    body: Mapping[str, Any], endpoint: EndpointSettings, dialect: DialectName, kind: TargetKind | None
) -> Any:
    """Return what a body's ``message`` or ``input`` is for a target; None where it has ``responses``.

    Args:
        body: The body; its ``message``, where it has one, is a string.
        endpoint: The endpoint that was called, for its media types.
        dialect: Name of the dialect.
        kind: What the target is; None where that cannot be told.

    Returns:
        For an agent, messages. For a workflow, which alone knows what it takes, the JSON value.

    Raises:
        FieldError: Of the field ``input``.
    """
    if "responses" in body:
        return None
    has_message = "message" in body
    value = body["message"] if has_message else body["input"]
    return messages_of(value, endpoint, dialect, has_message=has_message) if kind == "agent" else value


def messages_of(value: Any, endpoint: EndpointSettings, dialect: DialectName, *, has_message: bool) -> list[Message]:
    """Return the messages that an agent gets for the ``message`` or ``input`` of a body.

    Args:
        value: The field's value.
        endpoint: The endpoint that was called, for its media types.
        dialect: Name of the dialect.
        has_message: Whether it is the ``message``.

    Raises:
        FieldError: Of the field ``input``.
    """
    messages = [user_message(value)] if has_message else parsing.read_input(value, endpoint.input_media_types)
    return parsing.stamp_messages(messages, endpoint.alias, dialect)


def read_responses(body: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the ``responses`` of a body, or None.

    Args:
        body: The body.

    Raises:
        FieldError: Of the field ``responses``.
    """
    return parsing.read_object(body, "responses") if "responses" in body else None
