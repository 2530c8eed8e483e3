"""Stored messages as parts that pages and exports show, in full.

The JSON is what ``Message.to_dict`` of agent-framework-core gives.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from django.template.defaultfilters import filesizeformat
from django.utils.translation import gettext as _

from invocations_app.admin.display import Excerpt, excerpt, one_line, pretty, pretty_json
from invocations_app.admin.redaction import Redactor
from invocations_app.admin.stored import load_message

MAX_CONTENTS = 50
MAX_IMAGE_BYTES = 1024 * 1024

Kind = Literal["text", "fold", "call", "asked", "answer", "result", "image", "note", "joined", "problem"]

_DATA_URI = re.compile(r"data:([^;,]{1,100})[^,]{0,100};base64,")
_BASE64 = re.compile(r"[A-Za-z0-9+/]+={0,2}")
_PREVIEWED = frozenset({"image/png", "image/jpeg", "image/gif", "image/webp"})


@dataclass(frozen=True, slots=True)
class Part:
    """One piece of a message.

    Attributes:
        kind: What it is: running text, something to fold, a tool's call, the approval
            asked for one, the answer to that, a call's result, an image, a quiet
            line, the mention of what is shown with its call, or something that is wrong.
        text: Its text in full; empty for an image.
        label: What it is, in the reader's language.
        title: A name that belongs to it, such as the tool's.
        image: ``data:`` URI of a raster image within ``MAX_IMAGE_BYTES``.
        call_id: The call that it belongs to.
        request_id: The request that an approval, or a call the caller carries out, is known by.
        media: What a result has beside its text.
        good: False for a refusal and for the result of a tool that failed.
    """

    kind: Kind
    text: str = ""
    label: str = ""
    title: str = ""
    image: str = ""
    call_id: str = ""
    request_id: str = ""
    media: tuple[Part, ...] = ()
    good: bool = True

    @property
    def body(self) -> Excerpt:
        """The text as a page shows it."""
        return excerpt(self.text)

    @property
    def hint(self) -> str:
        """The beginning of the text, on one line."""
        return one_line(self.text)


@dataclass(frozen=True, slots=True)
class Reading:
    """A message: its author's name, if any, its parts, and its JSON over several lines."""

    parts: tuple[Part, ...]
    author: str = ""
    raw: str = ""


def read_message(payload: str, redactor: Redactor, *, limit: int | None = MAX_CONTENTS) -> Reading:
    """Read one stored message; one that cannot be read becomes a part that says so.

    Args:
        payload: The message as JSON text.
        redactor: What its texts go through.
        limit: Most contents to read; None: all.
    """
    message = load_message(payload, redactor)
    if message is None:
        return Reading((Part("problem", redactor.json(payload), label=_("This message cannot be read")),))
    contents = [content for content in message["contents"] if content is not None]
    parts = [part for content in contents[:limit] for part in _read_content(content)]
    if limit is not None and len(contents) > limit:
        parts.append(_note(_("%(count)d more contents are not shown") % {"count": len(contents) - limit}))
    return Reading(tuple(parts), author=_word(message.get("author_name")), raw=_raw(message))


def _read_content(content: Any) -> Iterator[Part]:
    if isinstance(content, str):
        content = {"type": "text", "text": content}
    if not isinstance(content, dict):
        yield Part("problem", pretty(content), label=_("This content cannot be read"))
        return
    match content.get("type"):
        case "text":
            yield Part("text", pretty(content.get("text", "")))
        case "text_reasoning":
            yield _fold(_("Reasoning"), content.get("text"))
        case "function_call":
            yield _call("call", _("Tool call"), content, content)
        case "function_result":
            yield _result(content)
        case "function_approval_request":
            yield _call("asked", _("Approval asked"), content.get("function_call"), content)
        case "function_approval_response":
            approved = content.get("approved") is True
            label = _("Approved") if approved else _("Refused")
            yield _call("answer", label, content.get("function_call"), content, good=approved)
        case "data" | "uri":
            yield _media(content)
        case "error":
            body = pretty(content.get("message", ""))
            yield Part("problem", body, label=_("Error"), title=_word(content.get("error_code")))
        case "usage":
            yield _fold(_("Token usage"), content.get("usage_details"))
        case other:
            yield _fold(_word(other) or _("Content"), content)


def _call(kind: Kind, label: str, call: Any, content: dict[str, Any], *, good: bool = True) -> Part:
    if not isinstance(call, dict):
        return _fold(label, call)
    call_id = _word(call.get("call_id"))
    return Part(
        kind,
        _spread(call.get("arguments")),
        label=label,
        title=_word(call.get("name")),
        call_id=call_id,
        request_id=_word(content.get("id")) or call_id,
        good=good,
    )


def _result(content: dict[str, Any]) -> Part:
    failure = content.get("exception")
    items = content.get("items")
    # Texts among the items are the result once more.
    media = [item for item in items if _is_media(item)] if isinstance(items, list) else []
    return Part(
        "result",
        _spread(content.get("result") or failure if failure else content.get("result")),
        label=_("Tool error") if failure else _("Tool result"),
        call_id=_word(content.get("call_id")),
        media=tuple(_media(item) for item in media[:MAX_CONTENTS]),
        good=not failure,
    )


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


def _spread(value: Any) -> str:
    if value is None:
        return ""
    return pretty_json(value) if isinstance(value, str) else pretty(value)


def _fold(label: str, value: Any) -> Part:
    return Part("fold", _spread(value), label=label)


def _note(text: str, *, label: str = "") -> Part:
    return Part("note", text, label=label)


def _word(value: Any) -> str:
    """Return a short name; what is no text is no name."""
    return excerpt(value, 200).text if isinstance(value, str) else ""


def _raw(message: dict[str, Any]) -> str:
    try:
        return pretty(_shortened(message))
    except RecursionError:
        return "\ufffd"


def _shortened(value: Any) -> Any:
    """Return a JSON value with its long strings cut, so that a picture's bytes leave room for what is around them."""
    match value:
        case str():
            shown = excerpt(value, 2000)
            return shown.text + shown.more
        case list():
            return [_shortened(item) for item in value]
        case dict():
            return {key: _shortened(item) for key, item in value.items()}
    return value
