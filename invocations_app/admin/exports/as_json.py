"""Sessions as one JSON document."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from typing import Any

from django.utils import timezone

from invocations_app.admin.conversation import load_turns
from invocations_app.admin.display import figures
from invocations_app.admin.exports import source
from invocations_app.admin.exports.source import iso
from invocations_app.admin.redaction import Redactor
from invocations_app.admin.requests import read_request, requests_of
from invocations_app.admin.stored import load_message
from invocations_app.models import InvocationRecord, MessageRecord, SessionRecord

_SURROGATE = re.compile("[\ud800-\udfff]")


def write(pks: Iterable[int], redactor: Redactor, *, with_ids: bool) -> Iterator[str]:
    """Yield a JSON document of sessions, piece by piece.

    Args:
        pks: Primary keys of the sessions.
        redactor: What texts go through.
        with_ids: Whether the invocation ids are in it, by which an anonymous caller's answers can be had.
    """
    yield f'{{"exported_at": {_text(iso(timezone.now()))}, "sessions": ['
    for number, session in enumerate(source.sessions(pks)):
        yield ",\n" if number else "\n"
        yield from _session(session, redactor, with_ids)
    yield "\n]}\n"


def _session(session: SessionRecord, redactor: Redactor, with_ids: bool) -> Iterator[str]:
    head = {
        "session_id": session.session_id,
        "endpoint": session.endpoint,
        "user": None if session.user is None else str(session.user),
        "user_key": session.user_key,
        "chat_key": session.chat_key,
        "created_at": iso(session.created_at),
        "last_activity_at": iso(session.updated_at),
        "archived_at": iso(session.archived_at),
        "state": _value(session.state, redactor),
    }
    yield _text(head)[:-1]
    yield from _list("messages", _messages(session, redactor))
    yield from _list("requests", (_request(record, redactor) for record in source.by_pk(requests_of(session))))
    yield from _list("turns", (_turn(record, with_ids) for record in source.invocations(session)))
    yield "}"


def _list(name: str, items: Iterable[Any]) -> Iterator[str]:
    yield f', "{name}": ['
    for number, item in enumerate(items):
        yield (",\n" if number else "\n") + _text(item)
    yield "]"


def _messages(session: SessionRecord, redactor: Redactor) -> Iterator[dict[str, Any]]:
    for batch in source.message_batches(session):
        turns = load_turns({record.invocation_id for record in batch if record.invocation_id})
        for record in batch:
            turn = turns.get(record.invocation_id or 0)
            yield {
                "history_provider": record.source_id,
                "position": record.position,
                "role": record.role,
                "created_at": iso(record.created_at),
                "turn": None if turn is None else turn.correlation_id,
                **_message(record, redactor),
            }


def _message(record: MessageRecord, redactor: Redactor) -> dict[str, Any]:
    message = load_message(record.payload, redactor)
    return {"message": message} if message is not None else {"unreadable": redactor.json(record.payload)}


def _request(record: Any, redactor: Redactor) -> dict[str, Any]:
    request = read_request(record, redactor)
    return {
        "request_id": request.request_id,
        "kind": record.kind,
        "tool": request.tool,
        "request": _value(record.data, redactor),
        "asked_at": iso(request.asked_at),
        "reply": _value(record.reply, redactor),
        "answered_by": request.who or None,
        "closed_at": iso(request.when),
    }


def _turn(record: InvocationRecord, with_ids: bool) -> dict[str, Any]:
    return {
        "turn": record.correlation_id,
        **({"invocation_id": record.invocation_id} if with_ids else {}),
        "status": record.status,
        "error_code": record.error_code or None,
        "created_at": iso(record.created_at),
        "finished_at": iso(record.finished_at),
        "usage": figures(record.usage),
        "total_tokens": record.total_tokens,
    }


def _value(text: str, redactor: Redactor) -> Any:
    """Return stored JSON as a value, None for nothing, and what is no JSON as text."""
    if not text:
        return None
    try:
        return redactor.value(json.loads(text))
    except (ValueError, RecursionError):
        return redactor.text(text)


def _text(value: Any) -> str:
    """Return JSON on one line, readable in every script; lone surrogates, which UTF-8 has not, stay escaped."""
    try:
        text = json.dumps(value, ensure_ascii=False)
    except (ValueError, RecursionError):
        return "null"
    return _SURROGATE.sub(lambda found: f"\\u{ord(found[0]):04x}", text)
