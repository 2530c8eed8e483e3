"""Stored messages as what a page shows: JSON text in, bounded display values out.

The JSON is what ``Message.to_dict`` of agent-framework-core gives.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from django.template.defaultfilters import filesizeformat
from django.utils.translation import gettext as _

from invocations_app.admin.display import Excerpt, excerpt, pretty, pretty_json
from invocations_app.admin.redaction import Redactor
from invocations_app.admin.stored import load_message

MAX_CONTENTS = 50
MAX_IMAGE_BYTES = 1024 * 1024
HINT_CHARACTERS = 80

Kind = Literal["text", "fold", "image", "note", "problem"]

_DATA_URI = re.compile(r"data:([^;,]{1,100})[^,]{0,100};base64,")
_BASE64 = re.compile(r"[A-Za-z0-9+/]+={0,2}")
_PREVIEWED = frozenset({"image/png", "image/jpeg", "image/gif", "image/webp"})


@dataclass(frozen=True, slots=True)
class Part:
    """One piece of a message on the page.

    Attributes:
        kind: How it is shown: as running text, folded, as an image, as a quiet
            line, or as something that is wrong.
        body: Its text, bounded; empty for an image.
        label: What it is, in the reader's language.
        title: A name that belongs to it, such as the tool's.
        hint: The beginning of the folded text, on one line.
        image: ``data:`` URI of a raster image within ``MAX_IMAGE_BYTES``.
    """

    kind: Kind
    body: Excerpt = Excerpt("")
    label: str = ""
    title: str = ""
    hint: str = ""
    image: str = ""


@dataclass(frozen=True, slots=True)
class Reading:
    """A message as a page shows it: its author's name, if any, and its parts."""

    parts: tuple[Part, ...]
    author: str = ""


def read_message(payload: str, calls: dict[str, str], redactor: Redactor) -> Reading:
    """Read one stored message; one that cannot be read becomes a part that says so.

    Args:
        payload: The message as JSON text.
        calls: Tool names by call id. Calls met here are added, so that results in
            later messages can be told by name.
        redactor: What its texts go through.
    """
    message = load_message(payload, redactor)
    if message is None:
        shown = excerpt(redactor.json(payload))
        return Reading((Part("problem", shown, label=_("This message cannot be read")),))
    contents = [content for content in message["contents"] if content is not None]
    parts = [part for content in contents[:MAX_CONTENTS] for part in _read_content(content, calls)]
    if len(contents) > MAX_CONTENTS:
        parts.append(_note(_("%(count)d more contents are not shown") % {"count": len(contents) - MAX_CONTENTS}))
    return Reading(tuple(parts), author=_word(message.get("author_name")))


def _read_content(content: Any, calls: dict[str, str]) -> Iterator[Part]:
    if isinstance(content, str):
        content = {"type": "text", "text": content}
    if not isinstance(content, dict):
        yield Part("problem", excerpt(pretty(content)), label=_("This content cannot be read"))
        return
    match content.get("type"):
        case "text":
            yield Part("text", excerpt(pretty(content.get("text", ""))))
        case "text_reasoning":
            yield _fold(_("Reasoning"), content.get("text"))
        case "function_call":
            yield _call(_("Tool call"), content, calls)
        case "function_result":
            yield from _result(content, calls)
        case "function_approval_request":
            yield _call(_("Approval asked"), content.get("function_call"), calls)
        case "function_approval_response":
            label = _("Approved") if content.get("approved") is True else _("Refused")
            yield _call(label, content.get("function_call"), calls)
        case "data" | "uri":
            yield _media(content)
        case "error":
            body = excerpt(pretty(content.get("message", "")))
            yield Part("problem", body, label=_("Error"), title=_word(content.get("error_code")))
        case "usage":
            yield _fold(_("Token usage"), content.get("usage_details"))
        case other:
            yield _fold(_word(other) or _("Content"), content)


def _call(label: str, call: Any, calls: dict[str, str]) -> Part:
    if not isinstance(call, dict):
        return _fold(label, call)
    name = _word(call.get("name"))
    if isinstance(call_id := call.get("call_id"), str):
        calls[call_id] = name
    return _fold(label, call.get("arguments"), title=name)


def _result(content: dict[str, Any], calls: dict[str, str]) -> Iterator[Part]:
    call_id = content.get("call_id")
    name = calls.get(call_id, "") if isinstance(call_id, str) else ""
    failure = content.get("exception")
    if failure:
        yield _fold(_("Tool error"), content.get("result") or failure, title=name)
    else:
        yield _fold(_("Tool result"), content.get("result"), title=name)
    items = content.get("items")
    # Texts among the items are the result once more.
    media = [item for item in items if _is_media(item)] if isinstance(items, list) else []
    yield from (_media(item) for item in media[:MAX_CONTENTS])


def _is_media(item: Any) -> bool:
    return isinstance(item, dict) and item.get("type") in ("data", "uri")


def _media(content: dict[str, Any]) -> Part:
    """Show an image if it is small and its bytes are in the message; nothing is fetched, and no link is made."""
    uri, media_type = content.get("uri"), _word(content.get("media_type"))
    if not isinstance(uri, str):
        return _note(media_type or _("Content without an address"))
    head = _DATA_URI.match(uri)
    if head is None:
        if uri.startswith("data:"):
            return _note(media_type or _("Data that cannot be read"))
        return _note(excerpt(uri, 500).text, label=media_type or _("Address"))
    media_type = _word(head[1]).lower()
    size = (len(uri) - head.end()) * 3 // 4 - uri[-2:].count("=")
    if media_type not in _PREVIEWED:
        return _note(filesizeformat(size), label=media_type)
    if size > MAX_IMAGE_BYTES:
        return _note(_("%(size)s, too large for a preview") % {"size": filesizeformat(size)}, label=media_type)
    if _BASE64.fullmatch(uri, head.end()) is None:
        return _note(_("an image that cannot be read"), label=media_type)
    return Part(
        "image", label=media_type, title=filesizeformat(size), image=f"data:{media_type};base64,{uri[head.end() :]}"
    )


def _fold(label: str, value: Any, *, title: str = "") -> Part:
    text = "" if value is None else pretty_json(value) if isinstance(value, str) else pretty(value)
    body = excerpt(text)
    hint = " ".join(body.text[: 4 * HINT_CHARACTERS].split())
    if len(hint) > HINT_CHARACTERS:
        hint = hint[:HINT_CHARACTERS] + "…"
    return Part("fold", body, label=label, title=title, hint=hint)


def _note(text: str, *, label: str = "") -> Part:
    return Part("note", Excerpt(text), label=label)


def _word(value: Any) -> str:
    """Return a short name; what is no text is no name."""
    return excerpt(value, 200).text if isinstance(value, str) else ""
