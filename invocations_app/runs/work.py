"""What the run of one invocation does with its target: the same steps for an agent and a workflow.

The run calls them in the order in which they stand here.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Protocol

from invocations_app.conf import EndpointSettings
from invocations_app.dialects.parsing import FieldError
from invocations_app.dialects.request import messages_of as read_messages
from invocations_app.envelope import Invocation, ParsedRequest
from invocations_app.exceptions import InvocationError, MalformedInvocation, TargetFailed, WorkflowFailed
from invocations_app.pending import CheckReply
from invocations_app.runs import sessions, workflow_checkpoints
from invocations_app.runs.agent import Publish, Result, messages_of, run_agent
from invocations_app.runs.workflow import run_workflow
from invocations_app.runs.workflow_input import fit_input
from invocations_app.runs.workflow_requests import reply_checker
from invocations_app.storage.endings import SessionChange
from invocations_app.storage.turns import Turn
from invocations_app.targets import ResolvedTarget, agents_of


class Work(Protocol):
    """What a run does with its target."""

    @property
    def agents(self) -> list[Any]:
        """The agents that are run."""
        ...

    @property
    def check_reply(self) -> CheckReply | None:
        """What checks the value of a reply beyond its kind; None for no more."""
        ...

    @property
    def with_checkpoint(self) -> bool:
        """Whether the turn goes on from a checkpoint."""
        ...

    def read(self, parsed: ParsedRequest) -> Invocation:
        """Return the invocation as the dialect parsed it; its input is read now where it had not known the target.

        Raises:
            MalformedInvocation: If the input breaks a rule.
        """
        ...

    def fit(self, invocation: Invocation) -> Invocation:
        """Return the invocation with an input that the target takes, before anything is begun.

        Raises:
            MalformedInvocation: If it takes none of it.
        """
        ...

    async def load(self, turn: Turn) -> None:
        """Load and check what the turn goes on from.

        Raises:
            StoredStateUnreadable: If it cannot be read.
            InvalidCheckpoint: If it cannot be used.
        """
        ...

    async def run(self, invocation: Invocation, turn: Turn, publish: Publish) -> Result:
        """Run the target."""
        ...

    async def leave(self, turn: Turn, result: Result) -> SessionChange | None:
        """Return what the turn leaves of its session; None without one."""
        ...

    def failure(self, error: InvocationError) -> InvocationError:
        """Return an error as it is called for this kind of target."""
        ...


def work_of(endpoint: EndpointSettings, resolved: ResolvedTarget) -> Work:
    """Return what is to be done with a target.

    Args:
        endpoint: The endpoint.
        resolved: The target.
    """
    return WorkflowWork(endpoint, resolved) if resolved.kind == "workflow" else AgentWork(endpoint, resolved)


class AgentWork:
    """Work with an agent; its state is the session's `AgentSession`."""

    check_reply: CheckReply | None = None
    with_checkpoint = False

    def __init__(self, endpoint: EndpointSettings, resolved: ResolvedTarget) -> None:
        self._endpoint = endpoint
        self._resolved = resolved
        self._session: sessions.LoadedSession | None = None

    @property
    def agents(self) -> list[Any]:
        """The agent."""
        return [self._resolved.target]

    def read(self, parsed: ParsedRequest) -> Invocation:
        """Return the invocation, its input read as messages."""
        invocation = parsed.invocation
        if parsed.kind is not None or invocation.responses is not None:
            return invocation
        try:
            messages = read_messages(
                invocation.input, self._endpoint, invocation.dialect, has_message=parsed.has_message
            )
        except FieldError as error:
            raise MalformedInvocation(str(error)) from None
        return dataclasses.replace(invocation, input=messages)

    def fit(self, invocation: Invocation) -> Invocation:
        """Return the invocation as it is: the dialect has read an agent's messages."""
        return invocation

    async def load(self, turn: Turn) -> None:
        """Load the session."""
        self._session = await sessions.load(self._endpoint, turn, self._resolved.target)

    async def run(self, invocation: Invocation, turn: Turn, publish: Publish) -> Result:
        """Run the agent, on the working copy of its session."""
        if invocation.responses is None and not self._endpoint.has_hooks:
            # Nobody else has ever seen them, so they need no further copies.
            messages = invocation.input
        else:
            answered = () if turn.session is None else turn.session.answered
            messages = messages_of(self._resolved.target, invocation, answered)
        session = None if self._session is None else self._session.session
        return await run_agent(self._endpoint, self._resolved, invocation, messages, session, publish)

    async def leave(self, turn: Turn, result: Result) -> SessionChange | None:
        """Return state and messages of the session, and what is pending."""
        if self._session is None:
            return None
        return SessionChange(await self._session.save(), result.pending)

    def failure(self, error: InvocationError) -> InvocationError:
        """Return the error as it is."""
        return error


class WorkflowWork:
    """Work with a workflow; its state is the latest checkpoint."""

    with_checkpoint = True

    def __init__(self, endpoint: EndpointSettings, resolved: ResolvedTarget) -> None:
        self._endpoint = endpoint
        self._workflow = resolved.target
        self._session: workflow_checkpoints.WorkflowSession | None = None

    @property
    def agents(self) -> list[Any]:
        """The agents within."""
        return agents_of(self._workflow)

    @property
    def check_reply(self) -> CheckReply | None:
        """Checks that a reply is of the type that was asked for."""
        return reply_checker(self._endpoint)

    def read(self, parsed: ParsedRequest) -> Invocation:
        """Return the invocation: its input is the body's own value."""
        return parsed.invocation

    def fit(self, invocation: Invocation) -> Invocation:
        """Return the invocation with its input as the start executor takes it."""
        if invocation.responses is not None:
            return invocation
        try:
            return dataclasses.replace(invocation, input=fit_input(self._endpoint, self._workflow, invocation))
        except FieldError as error:
            raise MalformedInvocation(str(error)) from None

    async def load(self, turn: Turn) -> None:
        """Read the latest checkpoint and see that it can be used."""
        self._session = workflow_checkpoints.load(self._endpoint, self._workflow, turn.session)

    async def run(self, invocation: Invocation, turn: Turn, publish: Publish) -> Result:
        """Run the workflow, once it was restored."""
        answered = () if turn.session is None else turn.session.answered
        return await run_workflow(self._endpoint, self._workflow, invocation, self._session, answered, publish)

    async def leave(self, turn: Turn, result: Result) -> SessionChange | None:
        """Return checkpoints, and what is pending."""
        return None if self._session is None else SessionChange(None, result.pending, result.checkpoints)

    def failure(self, error: InvocationError) -> InvocationError:
        """Return a failure of the target, a hook or the commit as that of a workflow."""
        if type(error) is not TargetFailed:
            return error
        failed = WorkflowFailed()
        failed.__cause__ = error.__cause__
        return failed
