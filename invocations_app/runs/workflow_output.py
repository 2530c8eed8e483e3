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


def json_value(value: Any) -> Any:
    """Return an output of a workflow as JSON: the framework's types, dataclasses and Pydantic models included.

    Args:
        value: The output.

    Raises:
        InvalidWorkflowOutput: If it has no JSON; the text names the type.
    """
    try:
        return _json(value, 0)
    except InvalidWorkflowOutput:
        raise
    # Whatever a class of the site raises when it is asked for its JSON.
    except Exception as error:
        raise _refusal(value) from error


def _refusal(value: Any) -> InvalidWorkflowOutput:
    return InvalidWorkflowOutput(f"Workflow output type {type(value).__name__} is not JSON-serializable.")


def _json(value: Any, depth: int) -> Any:
    if value is None or isinstance(value, (str, bool, int)):
        # Without the class of a member of an enumeration, which JSON has not.
        return value if type(value) in (str, bool, int, type(None)) else json.loads(json.dumps(value))
    if depth > 100 or (isinstance(value, float) and not math.isfinite(value)):
        raise _refusal(value)
    if isinstance(value, float):
        return float(value)
    if isinstance(value, Mapping):
        if not all(isinstance(key, str) for key in value):
            raise _refusal(value)
        return {str(key): _json(item, depth + 1) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_json(item, depth + 1) for item in value]
    return _json(_opened(value), depth + 1)


def _opened(value: Any) -> Any:
    if isinstance(value, _RESPONSES):
        return value.to_dict(exclude={"continuation_token"})
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        # Not asdict: it would copy what lies within, and leave objects of the framework as they are.
        return {item.name: getattr(value, item.name) for item in dataclasses.fields(value)}
    to_dict = getattr(value, "to_dict", None)
    if callable(to_dict) and not isinstance(value, type):
        return to_dict()
    raise _refusal(value)


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
