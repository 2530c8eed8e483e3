"""Neutral events of a run: what happened, before any dialect makes bytes of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeAlias

from invocations_app.exceptions import InvocationError


class TextDelta(NamedTuple):
    """A piece of the answer's text, after the transform hook."""

    text: str


@dataclass(frozen=True, slots=True)
class Output:
    """An output of a workflow.

    Attributes:
        data: The output, as a JSON value.
        executor_id: The executor it came from.
        text: Its text, for a dialect that shows text only.
    """

    data: Any
    executor_id: str
    text: str = ""


@dataclass(frozen=True, slots=True)
class RequestInfo:
    """A request that a person must answer.

    Attributes:
        request_id: Id of the request.
        data: The object of the contract: ``request_id``, ``type`` and what goes with the type.
        source_executor_id: The executor of a workflow it came from; None for that of an agent.
    """

    request_id: str
    data: Mapping[str, Any]
    source_executor_id: str | None = None


@dataclass(frozen=True, slots=True)
class StepTaken:
    """A tool or executor was called or has returned: for the record's timeline, no caller sees it.

    Attributes:
        kind: ``call`` or ``result`` of a tool, ``invoked`` or ``completed`` of an executor.
        name: Name of the tool, id of the executor.
        is_timed: Whether it is told as it happens; otherwise only the order is known.
    """

    kind: Literal["call", "result", "invoked", "completed"]
    name: str
    is_timed: bool = True


def workflow_frame(event: Output | RequestInfo) -> dict[str, Any]:
    """Return what `Answer.frames` holds of an event, and the platform dialect sends of it.

    Args:
        event: An output or request of a workflow.
    """
    if isinstance(event, Output):
        return {"type": "output", "data": event.data, "executor_id": event.executor_id}
    # An approval is told by the whole object, a request of the workflow's own by its data.
    data = event.data["data"] if event.data["type"] == "request_info" else dict(event.data)
    return {
        "type": "request_info",
        "data": data,
        "request_id": event.request_id,
        "source_executor_id": event.source_executor_id,
    }


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens used so far, as the framework counts them."""

    details: Mapping[str, Any]


class Answer(NamedTuple):
    """What a run that ended well answers: stored in its record, and replayed from it.

    Attributes:
        text: The answer's text, after hooks.
        session_id: The session id in force, as given; None when there is none.
        pending: What a person must answer before the session goes on.
        frames: The outputs and requests of a workflow, in order, each as `workflow_frame` makes it;
            None for an agent's answer.
        usage: The framework's usage details, or None.
    """

    text: str
    session_id: str | None = None
    pending: tuple[Mapping[str, Any], ...] = ()
    frames: tuple[Mapping[str, Any], ...] | None = None
    usage: Mapping[str, Any] | None = None


class Done(NamedTuple):
    """The run ended well and is committed."""

    answer: Answer


@dataclass(frozen=True, slots=True)
class Failed:
    """The run ended badly."""

    error: InvocationError


Event: TypeAlias = TextDelta | Output | RequestInfo | StepTaken | Usage | Done | Failed
