"""Runs a workflow for one invocation: plain or streamed, in the task of the run.

As with an agent, one task pulls the stream, finalizes it and closes it. The
workflow is fresh: what it knows of the session comes from the checkpoint that
it goes on from, before it takes new input or replies.
"""

from __future__ import annotations

import logging
from typing import Any

from agent_framework import Workflow, WorkflowEvent

from invocations_app import hooks
from invocations_app.conf import EndpointSettings
from invocations_app.envelope import Invocation
from invocations_app.events import Output, RequestInfo, StepTaken, workflow_frame
from invocations_app.pending import PendingRequest
from invocations_app.runs.agent import Breath, Publish, Result, abort, close
from invocations_app.runs.workflow_checkpoints import CheckpointBuffer, WorkflowSession, restore
from invocations_app.runs.workflow_output import add_usage, json_value, text_of
from invocations_app.runs.workflow_requests import replies_for, request_of

logger = logging.getLogger("invocations_app.runs")

# What clean-up of a finished stream raises though nothing is amiss.
_BENIGN = ("Inner stream not available", "Event loop is closed")


async def run_workflow(
    endpoint: EndpointSettings,
    workflow: Workflow,
    invocation: Invocation,
    session: WorkflowSession | None,
    answered: tuple[PendingRequest, ...],
    publish: Publish,
) -> Result:
    """Run a workflow and publish its outputs and requests.

    Args:
        endpoint: The endpoint, for its hooks and types.
        workflow: The workflow, freshly built.
        invocation: The invocation; its input is what the start executor takes.
        session: What it goes on from; None without a session, which saves nothing.
        answered: The pending requests that the invocation answers.
        publish: Called with each event, and waited for.

    Raises:
        TargetFailed: If a hook fails.
        InvalidWorkflowOutput: If an output is no JSON.
        InvalidCheckpoint: If an executor cannot be restored.
        WorkflowCheckpointException: If what the turn leaves cannot be saved.
        Exception: Whatever the workflow raises.
    """
    buffer = None if session is None else CheckpointBuffer(session)
    arguments: dict[str, Any] = {} if buffer is None else {"checkpoint_storage": buffer}
    checkpoint = None if session is None else session.checkpoint
    if invocation.responses is not None and checkpoint is not None:
        arguments["checkpoint_id"] = checkpoint.checkpoint_id
        arguments["responses"] = replies_for(endpoint, workflow, checkpoint, answered, invocation.responses)
    else:
        if checkpoint is not None:
            await restore(workflow, checkpoint)
        arguments["message"] = invocation.input
    gathered = _Gathered(publish)
    if invocation.stream:
        await _run_streamed(endpoint, workflow.run(stream=True, **arguments), invocation, gathered)
    else:
        result = await workflow.run(**arguments)
        for event in result:
            gathered.note(event)
            await gathered.tell_step(event, is_timed=False)
        result = await hooks.apply_response_hook(endpoint, result, invocation=invocation)
        for event in result:
            await gathered.show(event)
        await gathered.show_requests()
    saved = () if buffer is None else buffer.encoded(workflow, gathered.supersteps)
    return Result(
        "".join(gathered.texts),
        gathered.usage or None,
        tuple(gathered.requests.values()),
        frames=tuple(gathered.frames),
        checkpoints=saved,
    )


async def _run_streamed(endpoint: EndpointSettings, stream: Any, invocation: Invocation, gathered: _Gathered) -> None:
    breath = Breath()
    try:
        async for event in stream:
            gathered.note(event)
            await gathered.tell_step(event, is_timed=True)
            changed = await hooks.apply_stream_transform_hook(endpoint, event, invocation=invocation)
            # What is asked stands as it was asked, and is shown whatever a hook made of it.
            shown = event if event.type == "request_info" else changed
            if shown is not None:
                await gathered.show(shown)
            await breath.take()
        await _finalize(stream)
    except BaseException as error:
        await abort(stream, error)
        raise
    try:
        await close(stream)
    except Exception as error:
        _log_clean_up(error)


async def _finalize(stream: Any) -> None:
    try:
        await stream.get_final_response()
    except Exception as error:
        _log_clean_up(error)
        raise


def _log_clean_up(error: Exception) -> None:
    is_benign = isinstance(error, RuntimeError) and any(text in str(error) for text in _BENIGN)
    logger.log(
        logging.WARNING if is_benign else logging.ERROR,
        "Cleaning up the finished stream of a workflow failed.",
        exc_info=error,
    )


class _Gathered:
    """What the events of a run come to; what is shown is published at once.

    Attributes:
        frames: Outputs and requests, in order, as the platform dialect shows them.
        texts: The texts of the outputs.
        requests: What is asked of a person, by id.
        supersteps: Numbers of the supersteps that were completed.
        usage: Tokens used.
    """

    def __init__(self, publish: Publish) -> None:
        self.frames: list[dict[str, Any]] = []
        self.texts: list[str] = []
        self.requests: dict[str, PendingRequest] = {}
        self.supersteps: list[int] = []
        self.usage: dict[str, Any] = {}
        self._publish = publish
        self._sources: dict[str, str] = {}
        self._shown: set[str] = set()

    def note(self, event: WorkflowEvent[Any]) -> None:
        """Take down what an event says, before any hook sees it."""
        if event.type == "request_info":
            self.requests[event.request_id] = request_of(event)
            self._sources[event.request_id] = event.source_executor_id
        elif event.type == "superstep_completed" and event.iteration is not None:
            self.supersteps.append(event.iteration)
        else:
            add_usage(self.usage, event)

    async def tell_step(self, event: WorkflowEvent[Any], *, is_timed: bool) -> None:
        """Tell what an executor does, for the timeline."""
        if event.type == "executor_invoked":
            await self._publish(StepTaken("invoked", event.executor_id or "", is_timed))
        elif event.type == "executor_completed":
            await self._publish(StepTaken("completed", event.executor_id or "", is_timed))

    async def show(self, event: WorkflowEvent[Any]) -> None:
        """Publish an event that callers see: an output, or a request that was noted."""
        if event.type == "request_info":
            await self._show_request(event.request_id)
        elif event.type == "output":
            data = json_value(event.data)
            output = Output(data, event.executor_id or "", text_of(event.data, data))
            self.frames.append(workflow_frame(output))
            self.texts.append(output.text)
            await self._publish(output)

    async def show_requests(self) -> None:
        """Publish the requests that a response hook took out of the result: they are pending all the same."""
        for request_id in self.requests:
            await self._show_request(request_id)

    async def _show_request(self, request_id: str) -> None:
        request = self.requests.get(request_id)
        if request is None or request_id in self._shown:
            return
        self._shown.add(request_id)
        event = RequestInfo(request_id, request.data, self._sources[request_id])
        self.frames.append(workflow_frame(event))
        await self._publish(event)
