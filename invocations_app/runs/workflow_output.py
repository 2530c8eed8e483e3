"""What a workflow gives: its outputs as JSON values, as text, and the tokens that its agents used."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable, Mapping
from typing import Any

from agent_framework import (
    AgentExecutorResponse,
    AgentResponse,
    AgentResponseUpdate,
    ChatResponse,
    ChatResponseUpdate,
    Content,
    Message,
    WorkflowEvent,
)
from pydantic import BaseModel

from invocations_app.exceptions import InvalidWorkflowOutput

_RESPONSES = (AgentResponse, AgentResponseUpdate, ChatResponse, ChatResponseUpdate)
_MAX_DEPTH = 100
# Where an output stands in what the published host makes JSON of: the second value of a frame.
_PLACE = "$.value[1]"


def json_value(value: Any) -> Any:
    """Return an output of a workflow as JSON: the framework's types, dataclasses and Pydantic models included.

    Args:
        value: The output.

    Raises:
        InvalidWorkflowOutput: If it has no JSON; the text names the place and the type, as the published
            host does.
    """
    try:
        return _json(value, _PLACE, ())
    except InvalidWorkflowOutput:
        raise
    # Whatever a class of the site raises when it is asked for its JSON.
    except Exception as error:
        raise InvalidWorkflowOutput(f"Workflow output type {type(value).__name__} is not JSON-serializable.") from error


def _refusal(place: str, why: str) -> InvalidWorkflowOutput:
    return InvalidWorkflowOutput(f"Workflow output at {place} is not JSON-serializable: {why}.")


def _json(value: Any, place: str, around: tuple[int, ...]) -> Any:
    """Return the JSON of a value at a place; ``around`` are the ids of what it lies in."""
    if isinstance(value, str):
        # JSON may escape a lone surrogate, but no body in UTF-8 can hold it.
        value.encode()
    if value is None or isinstance(value, (str, bool, int)):
        # Without the class of a member of an enumeration, which JSON has not.
        return value if type(value) in (str, bool, int, type(None)) else json.loads(json.dumps(value))
    if isinstance(value, float):
        if not math.isfinite(value):
            raise _refusal(place, "number must be finite")
        return float(value)
    if id(value) in around:
        raise _refusal(place, f"circular {_kind(value)}")
    if len(around) >= _MAX_DEPTH:
        raise RecursionError(f"Values nest deeper than {_MAX_DEPTH}")
    around = (*around, id(value))
    if isinstance(value, Mapping):
        made = {}
        for index, (key, item) in enumerate(value.items()):
            _check_key(key, place)
            made[str(key)] = _json(item, f"{place}.value[{index}]", around)
        return made
    if isinstance(value, (list, tuple)):
        return [_json(item, f"{place}[{index}]", around) for index, item in enumerate(value)]
    return _json(_opened(value, place), f"{place}.serialized", around)


def _kind(value: Any) -> str:
    if isinstance(value, Mapping):
        return "mapping"
    return "sequence" if isinstance(value, (list, tuple)) else "serialized value"


def _check_key(key: Any, place: str) -> None:
    if not isinstance(key, str):
        raise _refusal(place, f"mapping keys must be strings, found {type(key).__name__}")
    key.encode()


def _opened(value: Any, place: str) -> Any:
    if isinstance(value, _RESPONSES):
        return value.to_dict(exclude={"continuation_token"})
    if isinstance(value, BaseModel):
        # As JSON, Pydantic makes texts of other keys.
        _check_keys(value.model_dump(), f"{place}.model")
        return value.model_dump(mode="json")
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _plain(value)
    to_dict = getattr(value, "to_dict", None)
    if callable(to_dict) and not isinstance(value, type):
        return to_dict()
    raise _refusal(place, f"unsupported type {type(value).__name__}")


def _plain(value: Any) -> Any:
    """Return a value with the dataclasses in it as dictionaries; unlike asdict, all else is not copied."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {item.name: _plain(getattr(value, item.name)) for item in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def _check_keys(value: Any, place: str) -> None:
    if isinstance(value, Mapping):
        for index, (key, item) in enumerate(value.items()):
            _check_key(key, place)
            _check_keys(item, f"{place}.value[{index}]")
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            _check_keys(item, f"{place}[{index}]")


def text_of(value: Any, as_json: Any) -> str:
    """Return the text of an output: what an agent said, a text itself, and of anything else its JSON.

    Args:
        value: The output.
        as_json: The same as a JSON value.
    """
    if isinstance(value, str):
        return value
    if isinstance(value, AgentExecutorResponse):
        value = value.agent_response
    if isinstance(value, (AgentResponse, ChatResponse)):
        value = list(value.messages)
    if isinstance(value, (AgentResponseUpdate, ChatResponseUpdate, Message)):
        return _join(value.contents)
    if isinstance(value, Content):
        return _join([value])
    if isinstance(value, list) and value and all(isinstance(item, Message) for item in value):
        return "".join(_join(message.contents) for message in value)
    if value is None or value == []:
        return ""
    return json.dumps(as_json, ensure_ascii=False, separators=(",", ":"))


def _join(contents: Iterable[Any]) -> str:
    return "".join(content.text for content in contents if content.type == "text" and content.text)


def add_usage(usage: dict[str, Any], event: WorkflowEvent[Any]) -> None:
    """Add the tokens that an agent used, as the event says that tells of its end.

    Args:
        usage: What was used so far; changed in place.
        event: An event of the workflow.
    """
    if event.type != "executor_completed" or not isinstance(event.data, list):
        return
    for item in event.data:
        details = item.agent_response.usage_details if isinstance(item, AgentExecutorResponse) else None
        for key, count in (details or {}).items():
            if isinstance(count, (int, float)):
                usage[key] = usage.get(key, 0) + count
