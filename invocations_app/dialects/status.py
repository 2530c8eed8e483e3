"""The status body of an invocation: the same in every dialect."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from invocations_app import sse
from invocations_app.events import Answer
from invocations_app.exceptions import InvocationError


def status_body(
    *,
    invocation_id: str,
    status: str,
    session_id: str | None,
    answer: Answer | None,
    error: InvocationError | None,
    usage: Mapping[str, Any] | None,
    created_at: datetime,
    finished_at: datetime | None,
) -> dict[str, Any]:
    """Return the status body of an invocation.

    Args:
        invocation_id: The invocation's id.
        status: What it is.
        session_id: The session id in force; None when there is none.
        answer: The stored answer; None unless it ended well.
        error: The stored error; None unless it ended badly.
        usage: The framework's usage details, or None.
        created_at: When it was begun; aware.
        finished_at: When it ended; None before that.
    """
    frames = None if answer is None else answer.frames
    return {
        "invocation_id": invocation_id,
        "status": status,
        "session_id": session_id,
        "response": None if answer is None else answer.text,
        **({} if frames is None else {"output": [dict(frame) for frame in frames]}),
        "pending": [dict(request) for request in answer.pending]
        if answer is not None and status == "awaiting_input"
        else [],
        "error": None if error is None else {"message": error.text, "code": error.code, "status": error.status},
        "usage": None if usage is None else dict(usage),
        "created_at": _time(created_at),
        "finished_at": None if finished_at is None else _time(finished_at),
    }


def background_body(invocation_id: str, status: str, session_id: str | None) -> dict[str, Any]:
    """Return the body of the answer to a background invocation.

    Args:
        invocation_id: The invocation's id.
        status: What it is.
        session_id: The session id in force; None when there is none.
    """
    return {"invocation_id": invocation_id, "status": status, "session_id": session_id}


def reset_frame(body: Mapping[str, Any]) -> bytes:
    """Return the event for a reader whose next event cannot be had any more.

    Args:
        body: The status body.
    """
    text = sse.replace_surrogates(json.dumps(body, ensure_ascii=False, separators=(",", ":")))
    return sse.encode_event(text, "reset")


def _time(moment: datetime) -> str:
    """Return a time by RFC 3339, in UTC."""
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
