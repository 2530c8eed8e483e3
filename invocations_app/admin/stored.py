"""Stored messages as plain JSON values, redacted, with the framework's own names and ids left in place.

They are read as JSON, not through the framework: an unreadable message has to show as such.
"""

from __future__ import annotations

import json
import re
from typing import Any

from invocations_app.admin.redaction import Redactor

# What pages and exports go by. Kept only where it looks like what the framework or a service writes.
_STRUCTURE = frozenset({"approved", "call_id", "id", "media_type", "message_id", "role", "type"})
_WORD = re.compile(r"[\w.:/+-]{1,128}", re.ASCII)
_KEY = re.compile(r"[a-z_]{1,40}")
_TEXTS = ("text", "text_reasoning")
_CONTENTS = frozenset({"contents", "items", "outputs", "inputs"})


def load_message(payload: str, redactor: Redactor) -> dict[str, Any] | None:
    """Return a stored message, redacted; None if it is none.

    Args:
        payload: The message as JSON text.
        redactor: What its texts go through.
    """
    try:
        message = json.loads(payload)
        if not isinstance(message, dict) or not isinstance(message.get("contents"), list):
            return None
        return _fields(message, redactor) if redactor.active else message
    except (ValueError, RecursionError):
        return None


def _fields(value: dict[str, Any], redactor: Redactor) -> dict[str, Any]:
    redacted: dict[str, Any] = {}
    for key, item in value.items():
        if _KEY.fullmatch(key) is None:
            redacted |= redactor.value({key: item})
        elif key in _STRUCTURE and (isinstance(item, bool) or (isinstance(item, str) and _WORD.fullmatch(item))):
            redacted[key] = item
        elif key in _CONTENTS and isinstance(item, list):
            redacted[key] = [_content(content, redactor) for content in _joined(item)]
        elif key == "function_call":
            redacted[key] = _content(item, redactor)
        else:
            redacted[key] = redactor.value(item)
    return redacted


def _joined(contents: list[Any]) -> list[Any]:
    """Return contents with texts that follow each other in one: between them may be cut what is to be redacted."""
    joined: list[Any] = []
    for content in contents:
        before: Any = joined[-1] if joined else None
        if _is_text(content) and _is_text(before) and content["type"] == before["type"]:
            joined[-1] = {**before, "text": before["text"] + content["text"]}
        else:
            joined.append(content)
    return joined


def _is_text(content: Any) -> bool:
    return isinstance(content, dict) and content.get("type") in _TEXTS and isinstance(content.get("text"), str)


def _content(value: Any, redactor: Redactor) -> Any:
    return _fields(value, redactor) if isinstance(value, dict) else redactor.value(value)
