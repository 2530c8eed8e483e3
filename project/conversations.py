"""Stored messages as the playground shows them: plain JSON in, small parts out.

The JSON is what ``Message.to_dict`` of agent-framework-core gives. What cannot be
read is left out; the admin shows it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

TITLE_CHARACTERS = 80

# The beginning of a payload is enough for a title, wherever it was cut: escapes are taken whole.
_FIRST_TEXT = re.compile(r'"text": ?"((?:[^"\\]|\\u[0-9a-fA-F]{4}|\\["\\/bfnrt])+)')
_IMAGE = re.compile(r"data:image/(?:png|jpeg|gif|webp);base64,[A-Za-z0-9+/]+={0,2}")


def title_of(payload_start: str) -> str:
    """Return a title for a session.

    Args:
        payload_start: The stored JSON of its first message, or the beginning of it.

    Returns:
        The message's first words on one line; empty for none.
    """
    found = _FIRST_TEXT.search(payload_start)
    words = " ".join(json.loads(f'"{found[1]}"').split()) if found else ""
    return words if len(words) <= TITLE_CHARACTERS else words[: TITLE_CHARACTERS - 1] + "…"


def parts_of(payload: str) -> list[dict[str, Any]]:
    """Return what a stored message says, in order.

    Args:
        payload: Its stored JSON.

    Returns:
        Objects with ``text``, ``image`` (a ``data:`` URI), ``call`` (a tool's
        name, with its ``arguments``), ``result``, ``asked`` (as ``call``) or
        ``approved`` (a boolean, with the ``tool``).
    """
    try:
        contents = list(json.loads(payload)["contents"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return []
    parts = [_part(content) for content in contents if isinstance(content, dict)]
    return [part for part in parts if part]


def _part(content: Mapping[str, Any]) -> dict[str, Any]:
    call = content.get("function_call")
    match content.get("type"):
        case "text" if content.get("text"):
            return {"text": content["text"]}
        case "data" if _IMAGE.fullmatch(str(content.get("uri"))):
            return {"image": content["uri"]}
        case "function_call":
            return {"call": content.get("name"), "arguments": _arguments(content)}
        case "function_result":
            return {"result": str(content.get("exception") or content.get("result"))}
        case "function_approval_request" if isinstance(call, dict):
            return {"asked": call.get("name"), "arguments": _arguments(call)}
        case "function_approval_response" if isinstance(call, dict):
            return {"approved": content.get("approved") is True, "tool": call.get("name")}
        case _:
            return {}


def _arguments(call: Mapping[str, Any]) -> Any:
    """Return the arguments of a call: a model's are text that may be no JSON."""
    arguments = call.get("arguments")
    if not isinstance(arguments, str):
        return arguments
    try:
        return json.loads(arguments)
    except (ValueError, RecursionError):
        return arguments
