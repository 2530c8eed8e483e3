"""Sessions as one Markdown document.

What was said stands in fences, word for word: nothing in it becomes a heading, a
link or a picture that is fetched when somebody opens the file.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from django.utils.translation import gettext as _
from django.utils.translation import ngettext

from invocations_app.admin.conversation import Turn, load_turns
from invocations_app.admin.display import fit
from invocations_app.admin.exports import source
from invocations_app.admin.exports.source import iso
from invocations_app.admin.redaction import Redactor
from invocations_app.admin.requests import Request, read_request, requests_of
from invocations_app.admin.transcript import Part, read_message
from invocations_app.models import MessageRecord, SessionRecord

_BACKTICKS = re.compile("`+")


def write(pks: Iterable[int], redactor: Redactor, *, with_ids: bool) -> Iterator[str]:
    """Yield a Markdown document of sessions, piece by piece.

    Args:
        pks: Primary keys of the sessions.
        redactor: What texts go through.
        with_ids: Without effect: there are no invocation ids in it.
    """
    for number, session in enumerate(source.sessions(pks)):
        if number:
            yield "\n---\n\n"
        yield _head(session)
        yield from _messages(session, redactor)
        yield from _requests(session, redactor)


def fence(text: str, info: str = "") -> str:
    """Return a text as a fenced block, its fence longer than any in the text.

    Args:
        text: Any text.
        info: The word behind the fence.
    """
    text = fit(text)
    ticks = "`" * max(3, _longest(text) + 1)
    return f"{ticks}{info}\n{text}{'' if text.endswith(chr(10)) else chr(10)}{ticks}\n"


def code(text: str) -> str:
    """Return a short text on one line, as it is.

    Args:
        text: Any text.
    """
    text = " ".join(fit(text).split()) or "-"
    ticks = "`" * (_longest(text) + 1)
    pad = " " if text.startswith("`") or text.endswith("`") else ""
    return f"{ticks}{pad}{text}{pad}{ticks}"


def _longest(text: str) -> int:
    return max((len(found) for found in _BACKTICKS.findall(text)), default=0)


def _head(session: SessionRecord) -> str:
    lines = [f"# {_('Session')} {code(session.session_id)}", ""]
    about = [
        (_("Endpoint"), code(session.endpoint)),
        (_("User"), code(str(session.user or session.user_key)) if session.user or session.user_key else ""),
        (_("Created"), iso(session.created_at)),
        (_("Last activity"), iso(session.updated_at)),
        (_("Archived"), iso(session.archived_at)),
        (_("Messages"), str(session.message_count)),
    ]
    return "\n".join([*lines, *(f"- {name}: {value}" for name, value in about if value), ""])


def _messages(session: SessionRecord, redactor: Redactor) -> Iterator[str]:
    names: dict[str, str] = {}
    current: int | None = None
    for batch in source.message_batches(session):
        turns = load_turns({record.invocation_id for record in batch if record.invocation_id})
        for record in batch:
            turn = turns.get(record.invocation_id or 0) if record.invocation_id != current else None
            current = record.invocation_id
            yield _message(record, turn, names, redactor)


def _message(record: MessageRecord, turn: Turn | None, names: dict[str, str], redactor: Redactor) -> str:
    reading = read_message(record.payload, redactor, limit=None)
    roles = {"user": _("User"), "assistant": _("Agent"), "tool": _("Tool"), "system": _("System")}
    role = roles.get(record.role) or code(record.role)
    author = f" {code(reading.author)}" if reading.author else ""
    blocks = [f"\n## {role}{author}, {iso(record.created_at)}\n"]
    if turn is not None:
        blocks.append(_turn(turn))
    blocks += [_part(part, names) for part in reading.parts]
    return "\n".join(blocks)


def _turn(turn: Turn) -> str:
    told = [turn.status, turn.duration]
    if turn.tokens is not None:
        told.append(ngettext("%d token", "%d tokens", turn.tokens) % turn.tokens)
    return f"- {_('Turn')} {code(turn.correlation_id)}: {', '.join(told)}\n"


def _part(part: Part, names: dict[str, str]) -> str:
    known = part.call_id in names
    if part.kind == "call" and part.call_id:
        names[part.call_id] = part.title
    title = part.title or names.get(part.call_id, "")
    label = f"{part.label} {code(title)}" if title else part.label
    match part.kind:
        case "text":
            return fence(part.text, "text")
        case "image" | "note":
            return f"- {part.label + ': ' if part.label else ''}{code(part.text or part.title)}\n"
        case "answer" | "asked" if known or part.kind == "answer":
            # The call's arguments stand there already.
            return f"**{label}**\n"
    block = f"**{label}**\n" + (f"\n{fence(part.text)}" if part.text else "")
    return "\n".join([block, *(_part(item, names) for item in part.media)])


def _requests(session: SessionRecord, redactor: Redactor) -> Iterator[str]:
    for number, record in enumerate(source.by_pk(requests_of(session))):
        if not number:
            yield f"\n## {_('Requests')}\n"
        yield _request(read_request(record, redactor))


def _request(request: Request) -> str:
    told = [request.status, code(request.who) if request.who else "", iso(request.when) or ""]
    tool = f" {code(request.tool)}" if request.tool else ""
    blocks = [f"\n### {request.kind}{tool}, {iso(request.asked_at)}\n", fence(request.text, "json")]
    blocks.append(f"- {', '.join(part for part in told if part)}\n")
    if request.reply:
        blocks.append(fence(request.reply, "json"))
    return "\n".join(blocks)
