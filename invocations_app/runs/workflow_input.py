"""What a workflow is given: JSON values made into the types that its executors take.

Core coerces no input and takes a wrong reply for a right one only when it is too
late, so both are validated here, before anything is begun or consumed.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Collection, Iterable, Sequence
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from agent_framework import Content, Message, Workflow, WorkflowMessage
from pydantic import TypeAdapter, ValidationError
from pydantic.errors import PydanticUndefinedAnnotation, PydanticUserError

from invocations_app.conf import EndpointSettings
from invocations_app.dialects.parsing import FieldError, read_input, stamp_messages
from invocations_app.envelope import Invocation


class Unfit(ValueError):
    """A JSON value is not of a type; the text says where, as far as that is known."""


def fit_input(endpoint: EndpointSettings, workflow: Workflow, invocation: Invocation) -> Any:
    """Return an invocation's input as the start executor of a workflow takes it.

    Args:
        endpoint: The endpoint, for its media types.
        workflow: The workflow.
        invocation: The invocation, after the run hook.

    Raises:
        FieldError: Of the field ``input``, if it is not of the type.
    """
    value = invocation.input
    if not _takes(workflow, value):
        try:
            value = fit(value, workflow.input_types, endpoint.input_media_types)
        except Unfit as error:
            raise FieldError("input", f"is not what the workflow takes{error}") from None
    if isinstance(value, list) and value and all(isinstance(item, Message) for item in value):
        return stamp_messages(value, invocation.endpoint, invocation.dialect)
    return value


def _takes(workflow: Workflow, value: Any) -> bool:
    start = workflow.get_start_executor()
    try:
        return start.can_handle(WorkflowMessage(data=value, source_id=start.id, target_id=start.id))
    except TypeError:
        # Core asks isinstance, which not every annotation has an answer to.
        return False


def fit(value: Any, types: Iterable[Any], media_types: Collection[str]) -> Any:
    """Return a JSON value as the first of several types that it fits.

    Args:
        value: The value.
        types: The types, in order.
        media_types: Media types that the data of messages may have.

    Raises:
        Unfit: If it fits none.
    """
    members = [member for given in types for member in _members(given)]
    problems = []
    for member in members:
        try:
            return _fit_one(value, member, media_types)
        except Unfit as error:
            problems.append(error)
    # Of several types nobody knows which one was meant.
    raise problems[0] if len(problems) == 1 else Unfit()


def _members(given: Any) -> Sequence[Any]:
    return get_args(given) if get_origin(given) in (Union, UnionType) else (given,)


def _fit_one(value: Any, wanted: Any, media_types: Collection[str]) -> Any:
    if wanted is Message:
        messages = _read_messages([value] if isinstance(value, dict) else value, media_types)
        if len(messages) != 1:
            raise Unfit(": it takes one message")
        return messages[0]
    if get_origin(wanted) is list and Message in _members(*get_args(wanted)):
        return _read_messages(value, media_types) if value != [] else []
    if wanted is Content and isinstance(value, str):
        return Content.from_text(value)
    adapter = _adapter(wanted)
    if adapter is not None:
        return _validate(adapter, value)
    if dataclasses.is_dataclass(wanted) and isinstance(wanted, type):
        return _fit_dataclass(value, wanted, media_types)
    raise Unfit


def _read_messages(value: Any, media_types: Collection[str]) -> list[Message]:
    try:
        return read_input(value, media_types)
    except FieldError as error:
        raise Unfit(f": it {error.rule}") from None


def _validate(adapter: TypeAdapter[Any], value: Any) -> Any:
    try:
        # As JSON, strictly: a date from its text, but no number from a text.
        return adapter.validate_json(json.dumps(value, allow_nan=False), strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        raise Unfit(": " + ": ".join(part for part in (place, first["msg"]) if part)) from None
    except (TypeError, ValueError, RecursionError):
        # A run hook put something there that JSON has not.
        raise Unfit from None


@functools.lru_cache(maxsize=256)
def _adapter(wanted: Any) -> TypeAdapter[Any] | None:
    """Return what validates a type; None for one that holds the framework's own or other plain classes."""
    try:
        return TypeAdapter(wanted)
    except (PydanticUserError, PydanticUndefinedAnnotation):
        return None


def _fit_dataclass(value: Any, wanted: type, media_types: Collection[str]) -> Any:
    """Make a dataclass, such as the orchestrations have, whose fields hold messages."""
    fields = {item.name: item for item in dataclasses.fields(wanted) if item.init}
    required = {
        name
        for name, item in fields.items()
        if item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING
    }
    if not isinstance(value, dict) or not required <= value.keys() <= fields.keys():
        raise Unfit(": it takes an object with the keys " + ", ".join(fields))
    hints = get_type_hints(wanted)
    return wanted(**{name: fit(item, [hints[name]], media_types) for name, item in value.items()})
