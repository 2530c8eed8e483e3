"""Neutral events of a run: what happened, before any dialect makes bytes of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from invocations_app.exceptions import InvocationError


@dataclass(frozen=True, slots=True)
class TextDelta:
    """A piece of the answer's text, after the transform hook."""

    text: str


@dataclass(frozen=True, slots=True)
class Output:
    """An output of a workflow: a JSON value and the executor it came from."""

    data: Any
    executor_id: str


@dataclass(frozen=True, slots=True)
class RequestInfo:
    """A request that a person must answer; `data` is the object of the contract."""

    request_id: str
    data: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens used so far, as the framework counts them."""

    details: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Answer:
    """What a run that ended well answers: stored in its record, and replayed from it.

    Attributes:
        text: The answer's text, after hooks.
        session_id: The session id in force, as given; None when there is none.
        pending: What a person must answer before the session goes on.
        frames: The outputs and requests of a workflow, in order.
        usage: The framework's usage details, or None.
    """

    text: str
    session_id: str | None = None
    pending: tuple[Mapping[str, Any], ...] = ()
    frames: tuple[Mapping[str, Any], ...] | None = None
    usage: Mapping[str, Any] | None = field(default=None)


@dataclass(frozen=True, slots=True)
class Done:
    """The run ended well and is committed."""

    answer: Answer


@dataclass(frozen=True, slots=True)
class Failed:
    """The run ended badly."""

    error: InvocationError


Event: TypeAlias = TextDelta | Output | RequestInfo | Usage | Done | Failed
