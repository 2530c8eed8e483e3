"""One POST, parsed and frozen.

The dialects make it, hooks change it with ``dataclasses.replace``, runs carry
it out. It holds no request, no settings and no model.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, TypeAlias
from urllib.parse import quote

from invocations_app import json_text

DialectName: TypeAlias = Literal["channel", "platform"]
SessionMode: TypeAlias = Literal["auto", "required", "disabled"]
TargetKind: TypeAlias = Literal["agent", "workflow"]
Delivery: TypeAlias = Literal["originating", "none"] | tuple[str, ...]

INVOCATION_ID_HEADER = "x-agent-invocation-id"
SESSION_ID_HEADER = "x-agent-session-id"

_WELL_FORMED = re.compile(r"[A-Za-z0-9._:-]{1,256}")
_sorted = json_text.encoder(sort_keys=True)
_RESERVED_IDS = frozenset({"invoke", "docs", "sessions", ".", ".."})


@dataclass(frozen=True, slots=True)
class Invocation:
    """What a caller asks of an endpoint.

    Attributes:
        id: The invocation id, the caller's or a new UUID.
        endpoint: Alias of the endpoint.
        dialect: Name of the dialect it came in and is answered in.
        input: For an agent a list of ``agent_framework.Message``; for a
            workflow a JSON value; None when `responses` answers a pending turn.
        responses: Request id to reply, or None.
        session_id: The caller's session id; None or empty for none.
        session_mode: Whether a session is loaded and stored.
        stream: Whether the target is run streamed.
        background: Whether the caller is answered at once.
        options: Run options for the target.
        metadata: The caller's metadata: for hooks and the record only.
        delivery: Who gets the answer: the caller, nobody, or the push
            destinations of these names.
    """

    id: str
    endpoint: str
    dialect: DialectName
    input: Any = None
    responses: Mapping[str, Any] | None = None
    session_id: str | None = None
    session_mode: SessionMode = "auto"
    stream: bool = False
    background: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)
    metadata: Mapping[str, Any] = field(default_factory=dict)
    delivery: Delivery = "originating"

    @property
    def is_acknowledged(self) -> bool:
        """Whether the caller is told that the invocation was taken, and no more."""
        return self.background or self.delivery != "originating"


class ParsedRequest(NamedTuple):
    """An invocation with what the replay look-up needs of its request.

    Attributes:
        invocation: The invocation as the caller asked for it.
        fingerprint: SHA-256, 64 hexadecimal digits; see `fingerprint`.
        id_given: Whether the id is the caller's (a replay is possible).
        generated_session_id: The session id where it is one of ours; a session mode that requires
            one is not satisfied by it.
        kind: What the target was taken for; None where that was not known yet, and the
            input is the body's own value, unchecked.
        has_message: Whether the body has a ``message``.
    """

    invocation: Invocation
    fingerprint: str
    id_given: bool
    generated_session_id: str | None = None
    kind: TargetKind | None = "agent"
    has_message: bool = True


def is_well_formed_id(value: str) -> bool:
    """Return whether a value may serve as an invocation id or platform session id.

    Args:
        value: The whole header or query value.
    """
    return _WELL_FORMED.fullmatch(value) is not None and value not in _RESERVED_IDS


def session_header_value(session_id: str) -> str:
    """Return a session id as the value of the header ``x-agent-session-id``.

    Args:
        session_id: The session id in force, as given.

    Returns:
        The id, each character outside ``[A-Za-z0-9._:-]`` as its percent-encoded
        UTF-8; a surrogate, which UTF-8 has not, as that of a question mark.
    """
    if _WELL_FORMED.fullmatch(session_id):
        return session_id
    # quote leaves the tilde alone, which is not in the set.
    return quote(session_id, safe=":", errors="replace").replace("~", "%7E")


def fingerprint(endpoint: str, dialect: str, session_id: str | None, body: Mapping[str, Any]) -> str:
    """Return the digest by which a repeated request is told from another one.

    Args:
        endpoint: Alias of the endpoint.
        dialect: Name of the dialect.
        session_id: The session id as the caller gave it; None when it is
            absent, empty or one of ours.
        body: The parsed body; ``stream`` and ``background`` do not count.

    Returns:
        64 hexadecimal digits.
    """
    counted = {key: value for key, value in body.items() if key not in {"stream", "background"}}
    text = _sorted([endpoint, dialect, session_id or None, counted])
    return hashlib.sha256(text.encode("ascii")).hexdigest()
