"""A session as text and rows: what stands in the database for an ``AgentSession``.

Messages that a history provider keeps under ``state[source_id]["messages"]``
are rows of their own; the rest is one JSON text. Which rows a turn changed is
told by comparing contents, so a provider that rewrites or compacts its history
is stored as it left it. Reading and writing the tables is left to the callers.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from agent_framework import AgentSession, Message

from invocations_app import entropy, json_text
from invocations_app.exceptions import StoredStateUnreadable
from invocations_app.storage import collecting, looks
from invocations_app.storage.decoding import decode_messages
from invocations_app.storage.encoding import encode_message

_FORMAT = 1
_MAX_SOURCE_ID = 255
_MAX_ROLE = 32
_MARK_DIGITS = 16
_ONLY_MESSAGES = frozenset({Message})
_text_of = json_text.encoder(allow_nan=False, compact=True)


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
        look: What it looks like as long as it is what the text says; None where only the text tells.
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


class Change(NamedTuple):
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
    has_more = False
    after = History()
    written: list[MessageRow] = []
    appended_only = True
    for source_id, value in session.state.items():
        messages = _messages_of(source_id, value)
        if messages is None:
            rest[source_id] = value
            has_more = True
            continue
        rest[source_id] = more = {key: item for key, item in value.items() if key != "messages"}
        has_more = has_more or bool(more)
        before = history.sources.get(source_id, [])
        known, rows = _dump_source(source_id, messages, before)
        after.sources[source_id] = known
        written += rows
        appended_only = appended_only and len(before) <= len(known) and (not rows or rows[0].position >= len(before))
    kept = {source_id: len(known) for source_id, known in after.sources.items()}
    gone = history.sources.keys() - kept.keys()
    bare = AgentSession(session_id=session.session_id, service_session_id=session.service_session_id)
    if has_more:
        _check_keys(rest, "state")
        bare.state = rest
    # Where nothing is left but empty objects, they are in JSON what they are here.
    described = bare.to_dict() if has_more else bare.to_dict() | {"state": rest}
    document = {"format": _FORMAT, "session": described, "history": kept, "mark": new_mark()}
    return Change(
        state=_text_of(document),
        written=tuple(written),
        kept=kept,
        appended_only=appended_only and not any(history.sources[source_id] for source_id in gone),
        history=after,
    )


def new_mark() -> str:
    """Return what makes each state text that is written one of its own: what is kept in memory is told by it."""
    return entropy.random_hex(_MARK_DIGITS)


def _messages_of(source_id: Any, value: Any) -> list[Message] | None:
    """Return the messages that a provider keeps in its part of the state, or None."""
    if not isinstance(source_id, str) or len(source_id) > _MAX_SOURCE_ID or not isinstance(value, dict):
        return None
    messages = value.get("messages")
    if not isinstance(messages, list) or not _ONLY_MESSAGES.issuperset(map(type, messages)):
        return None
    return messages


def _dump_source(
    source_id: str, messages: Sequence[Message], before: Sequence[Known]
) -> tuple[list[Known], list[MessageRow]]:
    known, rows = _compare(source_id, messages, before) if before else ([], [])
    for position, message in enumerate(messages[len(before) :], len(before)):
        role, payload = _role_of(message), encode_message(message)
        # Without a look: most are not compared any more, but made anew from what is stored.
        known.append(Known(message, role, payload, None, is_read=False))
        rows.append(MessageRow(source_id, position, role, payload))
    return known, rows


def _compare(
    source_id: str, messages: Sequence[Message], before: Sequence[Known]
) -> tuple[list[Known], list[MessageRow]]:
    known: list[Known] = []
    rows: list[MessageRow] = []
    is_unchanged = looks.Comparison().is_unchanged
    for message, old in zip(messages, before, strict=False):
        if old.message is message and old.look is not None and is_unchanged(message, old.look):
            known.append(old)
            continue
        role, payload = _role_of(message), encode_message(message)
        if old.payload != payload:
            rows.append(MessageRow(source_id, len(known), role, payload))
        known.append(Known(message, role, payload, looks.look_of(message), is_read=False))
    return known, rows


def _role_of(message: Message) -> str:
    return str(message.role)[:_MAX_ROLE]


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
