"""What a workflow asks of a person, and what it is given for the replies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from agent_framework import Content, Workflow, WorkflowCheckpoint, WorkflowCheckpointException, WorkflowEvent

from invocations_app.conf import EndpointSettings
from invocations_app.exceptions import InvalidCheckpoint, ResponsesMismatch
from invocations_app.pending import CheckReply, PendingRequest, from_content, is_approved, result_of
from invocations_app.runs.agent import refuse_missing_tools
from invocations_app.runs.workflow_input import Unfit, fit
from invocations_app.runs.workflow_output import json_value
from invocations_app.storage import checkpoint_encoding
from invocations_app.targets import agents_of

# What an agent inside a workflow asks for; any other content is a request of the workflow's own.
_ASKED_BY_AGENTS = {"function_approval_request", "function_call"}
_RESPONSE_TYPE = "response_type"


def request_of(event: WorkflowEvent[Any]) -> PendingRequest:
    """Return the pending request that an event stands for.

    Args:
        event: An event of the type ``request_info``.

    Raises:
        InvalidWorkflowOutput: If what it holds is no JSON.
    """
    asked = event.data
    if isinstance(asked, Content) and asked.type in _ASKED_BY_AGENTS:
        request = from_content(asked)
        data = {**request.data, "request_id": event.request_id}
        return PendingRequest(event.request_id, request.kind, data, request.payload)
    data = {
        "request_id": event.request_id,
        "type": "request_info",
        "data": json_value(asked),
        "source_executor_id": event.source_executor_id,
    }
    payload = {_RESPONSE_TYPE: checkpoint_encoding.encode_value(event.response_type)}
    return PendingRequest(event.request_id, "request_info", data, payload)


def reply_checker(endpoint: EndpointSettings) -> CheckReply:
    """Return what checks the replies to a workflow's requests, before anything is consumed.

    Args:
        endpoint: The endpoint, for its types.
    """

    def check(request: PendingRequest, reply: Any) -> None:
        if request.kind == "request_info":
            _fit_reply(endpoint, request, reply)

    return check


def wanted_type(endpoint: EndpointSettings, request: PendingRequest) -> Any:
    """Return the type that a workflow asked for.

    Args:
        endpoint: The endpoint, for its types.
        request: A request of the workflow's own.

    Raises:
        InvalidCheckpoint: If it cannot be read.
    """
    try:
        return checkpoint_encoding.decode_value(request.payload[_RESPONSE_TYPE], endpoint.checkpoint_types)
    except (KeyError, WorkflowCheckpointException) as error:
        raise InvalidCheckpoint from error


def _fit_reply(endpoint: EndpointSettings, request: PendingRequest, reply: Any) -> Any:
    wanted = wanted_type(endpoint, request)
    try:
        return fit(reply, [wanted], endpoint.input_media_types)
    except Unfit as error:
        raise ResponsesMismatch from error


def replies_for(
    endpoint: EndpointSettings,
    workflow: Workflow,
    checkpoint: WorkflowCheckpoint,
    answered: Sequence[PendingRequest],
    replies: Mapping[str, Any],
) -> dict[str, Any]:
    """Return the replies as the executors that asked take them.

    Args:
        endpoint: The endpoint, for its types.
        workflow: The workflow.
        checkpoint: What the asking turn left; it holds every request.
        answered: The pending requests.
        replies: Request id to reply, checked.

    Raises:
        LookupError: If a tool that was approved is gone.
    """
    refuse_missing_tools(agents_of(workflow), answered)
    return {
        request.request_id: _reply(endpoint, checkpoint, request, replies[request.request_id]) for request in answered
    }


def _reply(endpoint: EndpointSettings, checkpoint: WorkflowCheckpoint, request: PendingRequest, reply: Any) -> Any:
    if request.kind == "request_info":
        return _fit_reply(endpoint, request, reply)
    asked: Any = checkpoint.pending_request_info_events[request.request_id].data
    if request.kind == "approval":
        return asked.to_function_approval_response(is_approved(reply))
    return result_of(asked, reply)
