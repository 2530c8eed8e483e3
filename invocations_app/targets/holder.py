"""Holds the target of one endpoint in one event loop: builds, enters, keeps and leaves it.

Building goes through upstream's ``AgentState`` and ``WorkflowState``, which know
no entering. A workflow is never kept, whatever ``CACHE_TARGET`` says: it runs one
turn at a time.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import logging
import time
from collections.abc import Callable
from typing import Any, TypeAlias

from agent_framework import Workflow
from agent_framework_hosting import AgentState, WorkflowState
from django.utils.module_loading import import_string

from invocations_app.conf import EndpointSettings
from invocations_app.exceptions import TargetUnavailable
from invocations_app.targets import telemetry
from invocations_app.targets.kinds import ResolvedTarget, describe, is_context_manager, is_factory
from invocations_app.targets.workflows import check_twins

logger = logging.getLogger(__name__)

RETRY_SECONDS = 1.0
"""How long a failure stands before a probe, which may come at any rate, builds again."""

# None: nothing is kept, as the factory builds workflows.
_Outcome: TypeAlias = "asyncio.Future[ResolvedTarget | Exception | None]"


class TargetHolder:
    """The target of one endpoint in one event loop, in which alone it may be used.

    Args:
        endpoint: The endpoint.

    Attributes:
        failure: Why the target could not be had the last time; None when it could.
    """

    def __init__(self, endpoint: EndpointSettings) -> None:
        self.endpoint = endpoint
        self.failure: Exception | None = None
        self._tried_at: float | None = None
        self._kept: ResolvedTarget | None = None
        self._state: AgentState[Any] | WorkflowState[Any] | None = None
        self._is_fresh = False
        self._builds_workflows = False
        self._outcome: _Outcome | None = None
        self._owner: asyncio.Task[None] | None = None
        self._stop = asyncio.Event()

    async def resolve(self) -> ResolvedTarget:
        """Return the kept target, entered, or a fresh one; see ``targets.resolve``."""
        if self._kept is not None:
            return self._kept
        self._tried_at = time.monotonic()
        try:
            state = self._load()
            if self._is_fresh:
                with telemetry.switch.awake():
                    built = await state.get_target()
                if isinstance(built, Workflow) and not self._builds_workflows:
                    await self._expect_workflows(built)
                fresh = describe(self.endpoint, built, owned=True)
                if not is_context_manager(fresh.target):
                    self.failure = None
                return fresh
        except Exception as error:
            self.note_failure(error)
            raise TargetUnavailable from error
        # Shielded: a caller that is cancelled leaves the outcome to the others.
        outcome = await asyncio.shield(self._build(state))
        if isinstance(outcome, Exception):
            raise TargetUnavailable from outcome
        return await self.resolve() if outcome is None else outcome

    def is_due(self) -> bool:
        """Return whether it is time to find out if the target can be had."""
        if self._tried_at is None:
            return True
        return self.failure is not None and time.monotonic() - self._tried_at >= RETRY_SECONDS

    def note_failure(self, error: Exception) -> None:
        """Remember and log why the target cannot be had.

        Args:
            error: The reason. Its traceback is logged once, as a broken target
                fails with every request.
        """
        is_known = self.failure is not None and repr(self.failure) == repr(error)
        self.failure = error
        logger.error(
            "The target of endpoint %r (%s) is not available: %s",
            self.endpoint.alias,
            self.endpoint.target,
            type(error).__name__,
            exc_info=None if is_known else error,
        )

    async def stop(self) -> None:
        """Leave the kept target, and wait until it is left."""
        self._kept = None
        self._stop.set()
        if self._owner is None:
            return
        if self._outcome is not None and not self._outcome.done():
            self._owner.cancel()
        await asyncio.wait([self._owner])

    def _load(self) -> AgentState[Any] | WorkflowState[Any]:
        if self._state is None:
            with telemetry.switch.awake():
                found = import_string(self.endpoint.target)
            # An instance that can be called would be taken for a factory upstream.
            source: Callable[[], Any] = found if is_factory(found) else lambda: found
            self._is_fresh = is_factory(found) and not self.endpoint.cache_target
            self._state = AgentState(source, cache_target=not self._is_fresh)
        return self._state

    async def _expect_workflows(self, built: Workflow) -> None:
        """Build once more, see that the two are alike and share nothing, and build for each run from now on.

        Raises:
            UnstableWorkflow: If they are not alike, or share something.
        """
        state: WorkflowState[Any] = WorkflowState(import_string(self.endpoint.target), cache_target=False)
        with telemetry.switch.awake():
            twin = await state.get_target()
        check_twins(built, twin)
        self._state = state
        self._is_fresh = self._builds_workflows = True

    def _build(self, state: AgentState[Any] | WorkflowState[Any]) -> _Outcome:
        """Return the outcome that all who wait for the kept target share."""
        if self._outcome is None:
            self._outcome = asyncio.get_running_loop().create_future()
            # A context of its own: the target outlives the request that happened to come first.
            self._owner = asyncio.create_task(
                self._own(state, self._outcome),
                name=f"invocations target {self.endpoint.alias}",
                context=contextvars.Context(),
            )
        return self._outcome

    async def _own(self, state: AgentState[Any] | WorkflowState[Any], outcome: _Outcome) -> None:
        """Build the kept target, enter it, and leave it when the holder is stopped.

        All in one task, as context managers over anyio demand.
        """
        try:
            with telemetry.switch.awake():
                built = await state.get_target()
            if isinstance(built, Workflow) and is_factory(import_string(self.endpoint.target)):
                await self._expect_workflows(built)
                outcome.set_result(None)
                return
            resolved = describe(self.endpoint, built, owned=False)
            if not is_context_manager(resolved.target):
                self._keep(resolved, outcome)
                return
            async with contextlib.AsyncExitStack() as stack:
                # It may make tools of its own then, as one does that asks an MCP server for them.
                with telemetry.switch.awake():
                    await stack.enter_async_context(resolved.target)
                self._keep(resolved, outcome)
                await self._stop.wait()
        except Exception as error:
            self._end_badly(error, outcome)
        except BaseException as reason:
            stopped = RuntimeError(f"building the target was stopped by {type(reason).__name__}")
            stopped.__cause__ = reason
            self._end_badly(stopped, outcome)
            self._forget()
            raise
        self._forget()

    def _keep(self, resolved: ResolvedTarget, outcome: _Outcome) -> None:
        self.failure = None
        self._kept = resolved
        outcome.set_result(resolved)

    def _end_badly(self, error: Exception, outcome: _Outcome) -> None:
        if not outcome.done():
            self.note_failure(error)
            outcome.set_result(error)
        elif not isinstance(error.__cause__, asyncio.CancelledError):
            logger.error("The target of endpoint %r was not left cleanly.", self.endpoint.alias, exc_info=error)

    def _forget(self) -> None:
        """Build anew at the next call: what failed or was left is not used again."""
        self._kept = self._outcome = self._state = None
