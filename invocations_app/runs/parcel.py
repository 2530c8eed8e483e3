"""What a worker on another machine needs of an invocation, as the text that its record keeps meanwhile.

The invocation as the run hook left it, and the trusted headers' values, for the
ContextVars: a scope has them in another form. The text goes with the run's end.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

from agent_framework import Message

from invocations_app.envelope import Invocation
from invocations_app.exceptions import TargetFailed
from invocations_app.isolation import IsolationKeys, RequestKeys
from invocations_app.storage.handover import Taken


def pack(invocation: Invocation, keys: RequestKeys) -> str:
    """Return an invocation as JSON, ASCII-escaped.

    Args:
        invocation: The invocation, after the run hook.
        keys: The trusted headers' values.

    Raises:
        TargetFailed: If the run hook put something into it that JSON does not have.
    """
    document = {
        "input": _pack_input(invocation.input),
        "responses": None if invocation.responses is None else dict(invocation.responses),
        "session_id": invocation.session_id,
        "session_mode": invocation.session_mode,
        "stream": invocation.stream,
        "options": dict(invocation.options),
        "metadata": dict(invocation.metadata),
        "delivery": invocation.delivery,
        "keys": asdict(keys),
    }
    try:
        return json.dumps(document, allow_nan=False, separators=(",", ":"))
    except (TypeError, ValueError, RecursionError) as error:
        problem = TypeError(f"an invocation for a worker holds what JSON does not have: {error}")
        raise TargetFailed from problem


def unpack(taken: Taken) -> tuple[Invocation, RequestKeys]:
    """Return the invocation and the headers' values that a record holds.

    Args:
        taken: The record, as a worker took it.

    Raises:
        Exception: If it cannot be read: another version of the app wrote it.
    """
    document = json.loads(taken.input)
    keys = document["keys"]
    delivery = document["delivery"]
    invocation = Invocation(
        id=taken.invocation_id,
        endpoint=taken.scope.endpoint,
        dialect=taken.dialect,
        input=_unpack_input(document["input"]),
        responses=document["responses"],
        session_id=document["session_id"],
        session_mode=document["session_mode"],
        stream=document["stream"],
        background=True,
        options=document["options"],
        metadata=document["metadata"],
        delivery=tuple(delivery) if isinstance(delivery, list) else delivery,
    )
    return invocation, RequestKeys(IsolationKeys(**keys["isolation"]), keys["user_id"], keys["call_id"])


def _pack_input(value: Any) -> dict[str, Any]:
    if isinstance(value, list) and value and all(isinstance(item, Message) for item in value):
        return {"messages": [message.to_dict() for message in value]}
    return {"value": value}


def _unpack_input(document: dict[str, Any]) -> Any:
    if "messages" in document:
        return [Message.from_dict(message) for message in document["messages"]]
    return document["value"]
