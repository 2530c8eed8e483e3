"""A session as text and rows: what stands in the database for an ``AgentSession``.

Messages that a history provider keeps under ``state[source_id]["messages"]``
are rows of their own; the rest is one JSON text. Which rows a turn changed is
told by comparing contents, so a provider that rewrites or compacts its history
is stored as it left it. Reading and writing the tables is left to the callers.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from agent_framework import AgentSession, Message

from invocations_app.exceptions import StoredStateUnreadable
from invocations_app.storage import collecting, looks
from invocations_app.storage.decoding import decode_messages
from invocations_app.storage.encoding import encode_message

_FORMAT = 1
_MAX_SOURCE_ID = 255
_MAX_ROLE = 32
_encoder = json.JSONEncoder(allow_nan=False, separators=(",", ":"))


class MessageRow(NamedTuple):
    """One message as it is stored.

    Attributes:
        source_id: Id of the history provider.
        position: Place in that provider's history, from 0.
        role: The message's role.
        payload: Its JSON text.
    """

    source_id: str
    position: int
    role: str
    payload: str


@dataclass(slots=True)
class Known:
    """A message as it was last read or written: by this an unchanged one is told.

    Attributes:
        message: The object that the session holds; None while it is a text only.
        role: Its role, as it is stored.
        payload: Its JSON text.
        look: What it looks like as long as it is what the text says; None with the message.
        is_read: Whether the object was made from the text, not the text from the object.
    """

    message: Message | None
    role: str
    payload: str
    look: looks.Look | None
    is_read: bool


@dataclass(slots=True)
class History:
    """The messages of a loaded session, by history provider."""

    sources: dict[str, list[Known]] = field(default_factory=dict)

    @property
    def count(self) -> int:
        """Number of messages of all providers."""
        return sum(len(known) for known in self.sources.values())

    def rows(self) -> list[MessageRow]:
        """Return all messages as rows."""
        return [
            MessageRow(source_id, position, item.role, item.payload)
            for source_id, known in self.sources.items()
            for position, item in enumerate(known)
        ]


@dataclass(frozen=True, slots=True)
class Change:
    """What a turn changed of a session.

    Attributes:
        state: JSON text of all but the messages.
        written: New rows, and those whose contents changed.
        kept: Number of rows of each provider after the turn; further ones go.
        appended_only: Whether no stored row is replaced or removed.
        history: The history after the turn.
    """

    state: str
    written: tuple[MessageRow, ...]
    kept: Mapping[str, int]
    appended_only: bool
    history: History


def load(
    state: str, messages: Sequence[MessageRow] | History, session_id: str | None = None
) -> tuple[AgentSession, History]:
    """Return the session that a state text and its messages stand for.

    Args:
        state: The state text.
        messages: All rows of the session, by provider and position; or its history as
            it was kept in memory. Its objects become those of the session.
        session_id: Id that the session gets; the stored one when omitted.

    Returns:
        The session, and its history for `dump`.

    Raises:
        StoredStateUnreadable: If they are not what `dump` writes.
    """
    try:
        document = json.loads(state)
        if document["format"] != _FORMAT:
            raise ValueError(f"unknown format {document['format']!r}")
        data = document["session"]
        if session_id is not None:
            data["session_id"] = session_id
        session = AgentSession.from_dict(data)
        counts = document["history"]
        history = messages if isinstance(messages, History) else _read_rows(counts, messages)
        if {source_id: len(known) for source_id, known in history.sources.items()} != counts:
            raise ValueError("stored messages are missing")
        _make_messages(history)
    except Exception as error:
        raise StoredStateUnreadable from error
    for source_id, known in history.sources.items():
        session.state.setdefault(source_id, {})["messages"] = [item.message for item in known]
    return session, history


def _read_rows(counts: Mapping[str, int], rows: Sequence[MessageRow]) -> History:
    history = History({source_id: [] for source_id in counts})
    for source_id, position, role, payload in rows:
        known = history.sources[source_id]
        if position != len(known):
            raise ValueError("a stored message is missing")
        known.append(Known(None, role, payload, None, is_read=True))
    return history


def _make_messages(history: History) -> None:
    """Make the objects that are not there yet, and anew those that are not what their text says any more."""
    is_unchanged = looks.Comparison().is_unchanged
    to_make = [
        item
        for known in history.sources.values()
        for item in known
        if item.message is None or item.look is None or not is_unchanged(item.message, item.look)
    ]
    with collecting.paused():
        for item, made in zip(to_make, decode_messages([item.payload for item in to_make]), strict=True):
            (item.message, item.look), item.is_read = made, True


def dump(session: AgentSession, history: History) -> Change:
    """Return what has to be written for a session.

    Args:
        session: The session after the turn.
        history: What `load` or the last `dump` gave; an empty one for a new session.

    Raises:
        TypeError: If the state holds what JSON cannot.
        ValueError: If it holds a number that is not finite.
    """
    rest: dict[str, Any] = {}
    sources: dict[str, list[Message]] = {}
    for source_id, value in session.state.items():
        messages = _messages_of(source_id, value)
        if messages is None:
            rest[source_id] = value
        else:
            sources[source_id] = messages
            rest[source_id] = {key: item for key, item in value.items() if key != "messages"}
    bare = AgentSession(session_id=session.session_id, service_session_id=session.service_session_id)
    bare.state = rest
    _check_keys(rest, "state")
    after = History()
    written: list[MessageRow] = []
    appended_only = True
    for source_id, messages in sources.items():
        before = history.sources.get(source_id, [])
        known, rows = _dump_source(source_id, messages, before)
        after.sources[source_id] = known
        written.extend(rows)
        appended_only = appended_only and len(before) <= len(known) and all(r.position >= len(before) for r in rows)
    kept = {source_id: len(known) for source_id, known in after.sources.items()}
    appended_only = appended_only and not any(
        known for source_id, known in history.sources.items() if source_id not in kept
    )
    document = {"format": _FORMAT, "session": bare.to_dict(), "history": kept, "mark": new_mark()}
    return Change(
        state=_encoder.encode(document),
        written=tuple(written),
        kept=kept,
        appended_only=appended_only,
        history=after,
    )


def new_mark() -> str:
    """Return what makes each state text that is written one of its own: what is kept in memory is told by it."""
    return secrets.token_hex(8)


def _messages_of(source_id: Any, value: Any) -> list[Message] | None:
    """Return the messages that a provider keeps in its part of the state, or None."""
    if not isinstance(source_id, str) or len(source_id) > _MAX_SOURCE_ID or not isinstance(value, dict):
        return None
    messages = value.get("messages")
    if not isinstance(messages, list) or not all(type(item) is Message for item in messages):
        return None
    return messages


def _dump_source(
    source_id: str, messages: Sequence[Message], before: Sequence[Known]
) -> tuple[list[Known], list[MessageRow]]:
    known: list[Known] = []
    to_encode: list[tuple[int, Message]] = []
    stored = len(before)
    is_unchanged = looks.Comparison().is_unchanged
    for position, message in enumerate(messages):
        if position < stored:
            old = before[position]
            if old.message is message and old.look is not None and is_unchanged(message, old.look):
                known.append(old)
                continue
        to_encode.append((position, message))
        known.append(Known(message, str(message.role)[:_MAX_ROLE], "", looks.look_of(message), is_read=False))
    rows: list[MessageRow] = []
    for position, message in to_encode:
        payload = encode_message(message)
        known[position].payload = payload
        if position >= stored or before[position].payload != payload:
            rows.append(MessageRow(source_id, position, known[position].role, payload))
    return known, rows


def _check_keys(value: Any, path: str) -> None:
    """Refuse keys that JSON would turn into other ones: the state must come back as it was.

    Only plain containers are looked into; registered types have encoders of their own.
    """
    if isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str):
                raise TypeError(f"session state at {path} has a key that is no string")
            _check_keys(item, f"{path}.{key}")
    elif type(value) is list:
        for index, item in enumerate(value):
            _check_keys(item, f"{path}[{index}]")
    elif type(value) in (tuple, set, frozenset, bytes):
        raise TypeError(f"session state at {path} is a {type(value).__name__}, which JSON does not have")
