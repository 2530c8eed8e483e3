"""Pending requests: what a person must answer before a session goes on.

What a caller sees of one, whether replies answer them, and what the agent gets
for a reply. Names and arguments come from what is stored, never from a reply.
Storing and consuming them is left to ``storage``.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from agent_framework import AgentSession, Content, FunctionTool, Message

from invocations_app.exceptions import ResponsesMismatch

Kind: TypeAlias = Literal["approval", "tool_call", "request_info"]

#: What an open call's result says when the turn that answered it came to nothing.
OUTCOME_UNKNOWN = "The outcome of this call is unknown: the turn that was to carry it out did not finish."

# Where core keeps what awaits approval, which calls wait with it, and how much of its limits is used up.
_APPROVAL_STATE = "tool_approval"
_ASKING_KEYS = (
    "pending_approval_requests",
    "already_approved_approval_request_groups",
    "approval_responses",
    "pending_mixed_pause_batch",
    "queued_approval_requests",
    "collected_approval_responses",
)
_BUDGET_STATE = "_function_invocation_budget_state"
# What may stand between a call and a result of it.
_ANSWERS = {"function_result", "function_approval_response"}


@dataclass(frozen=True, slots=True)
class PendingRequest:
    """One request that was left pending.

    Attributes:
        request_id: Its id, unique in its turn.
        kind: What it is.
        data: The object that callers see, keys in the contract's order.
        payload: What the framework asked, as JSON; the reply is made from it.
    """

    request_id: str
    kind: Kind
    data: Mapping[str, Any]
    payload: Mapping[str, Any]


#: Checks the value of one reply beyond its kind; raises `ResponsesMismatch`.
CheckReply: TypeAlias = Callable[[PendingRequest, Any], None]


def from_content(content: Content) -> PendingRequest:
    """Return the pending request that a content of an agent's response stands for.

    Args:
        content: One of ``AgentResponse.user_input_requests``.

    Raises:
        TypeError: If it is of a kind that cannot be answered here.
    """
    call = content.function_call if content.type == "function_approval_request" else content
    if call is None or content.type not in {"function_approval_request", "function_call"}:
        raise TypeError(f"an agent asked for {content.type!r}, which cannot be answered")
    kind: Kind = "approval" if call is not content else "tool_call"
    request_id = str(content.id or call.call_id)
    data = {"request_id": request_id, "type": kind, "tool": call.name, "arguments": _arguments(call.arguments)}
    return PendingRequest(request_id, kind, data, content.to_dict())


def _arguments(given: Any) -> Mapping[str, Any] | None:
    """Return a call's arguments as an object; what is no JSON object comes as ``raw``."""
    if given is None or given == "":
        return None
    if isinstance(given, Mapping):
        return dict(given)
    try:
        parsed = json.loads(given, parse_constant=_refuse, parse_float=_finite)
    except (ValueError, RecursionError):
        return {"raw": given}
    return parsed if isinstance(parsed, dict) else {"raw": given}


def _refuse(constant: str) -> Any:
    raise ValueError(constant)


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(text)
    return value


def check_replies(
    pending: Sequence[PendingRequest], replies: Mapping[str, Any], check: CheckReply | None = None
) -> None:
    """Check that replies answer exactly what is pending, each by its kind.

    Args:
        pending: What is pending.
        replies: Request id to reply.
        check: Checks each value further.

    Raises:
        ResponsesMismatch: If they do not.
    """
    if not pending or replies.keys() != {request.request_id for request in pending}:
        raise ResponsesMismatch
    for request in pending:
        reply = replies[request.request_id]
        if request.kind == "approval":
            is_approved(reply)
        elif check is not None:
            check(request, reply)


def is_approved(reply: Any) -> bool:
    """Return whether a reply approves; only the boolean True does.

    Args:
        reply: ``True``, ``False``, or ``{"approved": …, "reason": …}``.

    Raises:
        ResponsesMismatch: If it is something else.
    """
    if isinstance(reply, dict):
        if not reply.keys() <= {"approved", "reason"} or not isinstance(reply.get("reason", ""), str):
            raise ResponsesMismatch
        reply = reply.get("approved")
    if not isinstance(reply, bool):
        raise ResponsesMismatch
    return reply


def reply_messages(pending: Sequence[PendingRequest], replies: Mapping[str, Any]) -> list[Message]:
    """Return the messages by which an agent gets the replies, and nothing beside them.

    A text among them would land between call and result, an order that models refuse.

    Args:
        pending: What was pending.
        replies: Request id to reply, checked.
    """
    approvals = []
    results = []
    for request in pending:
        content = Content.from_dict(dict(request.payload))
        reply = replies[request.request_id]
        if request.kind == "approval":
            approvals.append(content.to_function_approval_response(is_approved(reply)))
        else:
            results.append(result_of(content, reply))
    messages = [Message("user", approvals)] if approvals else []
    return [*messages, Message("tool", results)] if results else messages


def result_of(call: Content, reply: Any) -> Content:
    """Return the result of a call that the caller carried out, as a tool's that returned the same.

    Args:
        call: The call.
        reply: Its result, a JSON value.
    """
    # Not the bare value: lists would become the text of Python's lists.
    result = FunctionTool.parse_result(reply)
    return Content.from_function_result(call_id=str(call.call_id), id=call.id, result=result)


def tools_asked_for(pending: Iterable[PendingRequest]) -> set[str]:
    """Return the names of the agent's own tools that approvals are about; others are carried out by the service.

    Args:
        pending: What was pending.
    """
    return {
        str(request.data["tool"])
        for request in pending
        if request.kind == "approval" and not (request.payload.get("function_call") or {}).get("hosted")
    }


def close_calls(session: AgentSession) -> None:
    """Close every call that a session's history leaves open, with a result that says its outcome is unknown.

    A call without a result makes the next turn invalid for most models.

    Args:
        session: The session; changed in place.
    """
    _forget_asking(session.state)
    for value in session.state.values():
        messages = value.get("messages") if isinstance(value, dict) else None
        if not isinstance(messages, list) or not all(isinstance(message, Message) for message in messages):
            continue
        unanswered = _open_calls(messages)
        if unanswered:
            value["messages"] = _with_results(messages, unanswered)


def _forget_asking(state: dict[str, Any]) -> None:
    """Take out what the framework noted of the calls that wait; standing rules of the same place stay."""
    state.pop(_BUDGET_STATE, None)
    noted = state.get(_APPROVAL_STATE)
    if isinstance(noted, dict):
        for key in _ASKING_KEYS:
            noted.pop(key, None)
        if not noted:
            del state[_APPROVAL_STATE]


def _open_calls(messages: Sequence[Message]) -> dict[int, list[str]]:
    """Return the ids of the calls without a result, by the place of their message.

    A result answers the oldest open call of its id: models use one id again in a later turn.
    """
    waiting: dict[str, list[int]] = {}
    for place, message in enumerate(messages):
        for content in message.contents:
            if content.type == "function_call" and content.call_id:
                # Others are carried out elsewhere, and get no result here.
                if not content.hosted and not content.informational_only:
                    waiting.setdefault(content.call_id, []).append(place)
            elif content.type == "function_result" and content.call_id and waiting.get(content.call_id):
                waiting[content.call_id].pop(0)
    unanswered: dict[int, list[str]] = {}
    for call_id, places in waiting.items():
        for place in places:
            unanswered.setdefault(place, []).append(call_id)
    return unanswered


def _with_results(messages: Sequence[Message], unanswered: Mapping[int, Sequence[str]]) -> list[Message]:
    """Return messages with a result for each open call, right behind the call and results that are there."""
    closed: list[Message] = []
    missing: list[Content] = []
    for place, message in enumerate(messages):
        if missing and not all(content.type in _ANSWERS for content in message.contents):
            closed.append(Message("tool", missing))
            missing = []
        closed.append(message)
        call_ids = unanswered.get(place, ())
        missing += [Content.from_function_result(call_id=call_id, result=OUTCOME_UNKNOWN) for call_id in call_ids]
    return [*closed, Message("tool", missing)] if missing else closed
