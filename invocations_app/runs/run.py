"""One run: a task of its own, from the run hook to the commit.

The task is owned by the engine, not by the response: Django cancels the view
when the client leaves, and a claim made by a cancelled view would stay. The
response, and whoever else follows, only reads what the run publishes.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import copy
import dataclasses
import logging
import uuid
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeVar

from asgiref.sync import ThreadSensitiveContext
from django.db import connections
from django.utils import timezone

from invocations_app import hooks, isolation, targets
from invocations_app.conf import EndpointSettings
from invocations_app.dialects import get_dialect
from invocations_app.dialects.parsing import stamp_messages
from invocations_app.envelope import Invocation, ParsedRequest
from invocations_app.events import Answer, Done, Event, Failed
from invocations_app.exceptions import (
    InvocationError,
    RunCancelled,
    RunInterrupted,
    RunTimedOut,
    SessionRequired,
    StorageUnavailable,
    StreamsNeedAsgi,
    TargetFailed,
    UnsupportedOptions,
)
from invocations_app.isolation import RequestKeys, Scope
from invocations_app.runs import sessions
from invocations_app.runs.agent import run_agent
from invocations_app.runs.tape import FrameStream, Tape
from invocations_app.storage import database, turns
from invocations_app.targets import ResolvedTarget

logger = logging.getLogger("invocations_app.runs")

T = TypeVar("T")

# A claim outlives the longest run by the time that ending it may take.
_LEASE_MARGIN_SECONDS = 30
# How long a transaction that was sent off is waited for when its run is cancelled.
_SETTLE_SECONDS = 30


@dataclass(frozen=True, slots=True)
class RunRequest:
    """What starts a run.

    Attributes:
        parsed: The parsed request.
        endpoint: The endpoint it came in at.
        scope: Endpoint and isolation keys.
        keys: The trusted headers' values, for the ContextVars.
        user_pk: Primary key of the authenticated Django user, or None.
        request: The DRF request, for the run hook.
        can_stream: Whether the server can stream (ASGI).
    """

    parsed: ParsedRequest
    endpoint: EndpointSettings
    scope: Scope
    keys: RequestKeys
    user_pk: Any
    request: Any
    can_stream: bool


# The loop holds its tasks weakly only: whoever runs is held here.
_live: set[Run] = set()


class Run:
    """The run of one invocation.

    Attributes:
        invocation: The invocation; what the run hook made of it, once it ran.
        correlation_id: Random id of its record, the only one that logs carry.
        started: Done when the turn was begun, or refused with an `InvocationError`.
        ended: Done with the last event, `Done` or `Failed`.
        tape: Its wire events.
    """

    def __init__(self, request: RunRequest) -> None:
        loop = asyncio.get_running_loop()
        self.invocation: Invocation = request.parsed.invocation
        self.correlation_id = uuid.uuid4().hex
        self.started: asyncio.Future[None] = loop.create_future()
        self.ended: asyncio.Future[Done | Failed] = loop.create_future()
        self.tape = Tape()
        self._request = request
        self.endpoint = request.endpoint
        self._dialect = get_dialect(request.parsed.invocation.dialect)
        self._encoder = self._dialect.invocations_from_streaming_run()
        self._readers = 0
        self._turn: turns.Turn | None = None
        self._session: sessions.LoadedSession | None = None
        self._first_byte_at: datetime | None = None
        self._stop: InvocationError | None = None
        self._over = False
        _live.add(self)
        # A copy of its own: the middleware unsets the keys while the response still streams.
        context = contextvars.copy_context()
        keys = request.keys.isolation
        context.run(isolation.set_current_isolation_keys, None if keys.is_empty else keys)
        context.run(isolation.set_current_call_id, request.keys.call_id)
        self.task = loop.create_task(self._main(), context=context)

    @property
    def session_id(self) -> str | None:
        """The session id in force, as given; None when there is none."""
        return None if self.invocation.session_mode == "disabled" else self.invocation.session_id

    def attach(self) -> Reader:
        """Return a reader of the answer; that the last one leaves may cancel the run."""
        self._readers += 1
        return Reader(self)

    def _reader_left(self) -> None:
        self._readers -= 1
        if self._readers == 0 and self.endpoint.on_disconnect == "cancel":
            self.cancel(RunCancelled())

    def cancel(self, error: InvocationError) -> None:
        """Stop the run; nothing happens when it is over or was stopped before.

        Args:
            error: What it ends with.
        """
        if self._stop is None and not self._over:
            self._stop = error
            self.task.cancel()

    # The task

    async def _main(self) -> None:
        executor = _RunExecutor()
        try:
            # Sync code of the run gets a thread of its own: the request's is gone before the run is.
            async with ThreadSensitiveContext(executor=executor):
                await self._guarded()
        finally:
            executor.end()
            _live.discard(self)

    async def _guarded(self) -> None:
        try:
            async with AsyncExitStack() as stack:
                resolved, turn = await self._prepare(stack)
                _resolve(self.started, None)
                answer = await self._carry_out(resolved)
                await self._commit(turn, answer)
                self._end(Done(answer))
        except asyncio.CancelledError as error:
            if self._stop is None and not self.task.cancelling():
                # A library's own cancellation that got out: nobody stopped this run.
                await self._fail(_as_invocation_error(error), cause=error)
                return
            await self._fail(self._stop or RunInterrupted())
            if self._stop is None:
                raise
        except BaseException as error:
            # SystemExit and the like too: they end the run, and neither the server nor the wait of a reader.
            await self._fail(_as_invocation_error(error), cause=error)
            if isinstance(error, KeyboardInterrupt):
                raise

    async def _prepare(self, stack: AsyncExitStack) -> tuple[ResolvedTarget, turns.Turn]:
        """Do everything that has a status of its own: after this the answer's head is sent."""
        endpoint = self.endpoint
        resolved = await targets.resolve(endpoint)
        target = await stack.enter_async_context(targets.entered(resolved))
        self.invocation = await hooks.apply_run_hook(
            endpoint, self.invocation, target=target, request=self._request.request
        )
        self._dialect.check_options(self.invocation)
        self.invocation = invocation = self._fit_options(self.invocation, resolved)
        if invocation.session_mode == "required" and not invocation.session_id:
            raise SessionRequired
        if invocation.stream and not self._request.can_stream:
            raise StreamsNeedAsgi
        messages = stamp_messages(invocation.input, endpoint.alias, invocation.dialect)
        self.invocation = dataclasses.replace(invocation, input=messages)
        turn = await self._begin()
        self._session = await sessions.load(endpoint, turn, target)
        return resolved, turn

    def _fit_options(self, invocation: Invocation, resolved: ResolvedTarget) -> Invocation:
        if not invocation.options or resolved.takes_options:
            return invocation
        if self.endpoint.unsupported_options == "error":
            raise UnsupportedOptions
        logger.warning("The target of endpoint %r takes no run options; they are dropped.", self.endpoint.alias)
        return dataclasses.replace(invocation, options={})

    async def _begin(self) -> turns.Turn:
        request = turns.TurnRequest(
            invocation=self.invocation,
            scope=self._request.scope,
            user_pk=self._request.user_pk,
            fingerprint=self._request.parsed.fingerprint,
            correlation_id=self.correlation_id,
            lease_seconds=self.endpoint.run_timeout_seconds + _LEASE_MARGIN_SECONDS,
        )
        begin = asyncio.ensure_future(turns.begin(request))
        try:
            self._turn = await asyncio.shield(begin)
        except database.UNREACHABLE as error:
            raise StorageUnavailable from error
        except asyncio.CancelledError:
            # It cannot be called back: its claim has to be released when it has been made.
            await _settle(begin)
            if begin.done() and not begin.cancelled() and begin.exception() is None:
                self._turn = begin.result()
            raise
        return self._turn

    async def _carry_out(self, resolved: ResolvedTarget) -> Answer:
        """Run the target within its time."""
        invocation = self.invocation
        session = None if self._session is None else self._session.session
        try:
            async with asyncio.timeout(self.endpoint.run_timeout_seconds) as limit:
                result = await run_agent(self.endpoint, resolved, invocation, session, self._publish)
        except TimeoutError as error:
            if limit.expired():
                raise RunTimedOut from error
            raise
        if self._first_byte_at is None:
            self._first_byte_at = timezone.now()
        return Answer(text=result.text, session_id=self.session_id, usage=result.usage)

    async def _publish(self, event: Event) -> None:
        if self._first_byte_at is None:
            self._first_byte_at = timezone.now()
        if self.tape.has_readers:
            self.tape.append(self._encoder.encode(event))
            await self.tape.room()

    async def _commit(self, turn: turns.Turn, answer: Answer) -> None:
        """Write everything in one transaction, which a cancellation does not cut."""
        change = None if self._session is None else await self._session.save()
        commit = asyncio.ensure_future(turns.commit(turn, change, answer, first_byte_at=self._first_byte_at))
        try:
            await asyncio.shield(commit)
        except asyncio.CancelledError:
            await _settle(commit)
            if not commit.done() or commit.cancelled() or commit.exception() is not None:
                raise
            # Committed before the cancellation reached it: the turn stands.
            task = asyncio.current_task()
            if self._stop is not None and task is not None:
                task.uncancel()

    def _end(self, event: Done | Failed) -> None:
        """Publish the last event."""
        self._over = True
        self.tape.append(self._encoder.encode(event))
        self.tape.close()
        _resolve(self.ended, event)

    async def _fail(self, error: InvocationError, cause: BaseException | None = None) -> None:
        """End a run that has no answer."""
        if self._over:
            # It was committed and answered; only cleaning up after it failed.
            logger.error("Cleaning up after invocation %s failed.", self.correlation_id, exc_info=cause)
            return
        self._over = True
        if error.status >= 500:
            logger.error("Invocation %s failed: %s.", self.correlation_id, error.code, exc_info=cause)
        else:
            logger.info("Invocation %s ended: %s.", self.correlation_id, error.code)
        if self._turn is not None:
            failing = asyncio.ensure_future(turns.fail(self._turn, error, first_byte_at=self._first_byte_at))
            await _settle(failing)
            if failing.done() and not failing.cancelled() and failing.exception() is not None:
                # The claim expires by itself, and whoever meets it writes down that the run was interrupted.
                logger.error(
                    "The end of invocation %s was not recorded.", self.correlation_id, exc_info=failing.exception()
                )
        shown = self._exposed(error)
        if not self.started.done():
            self.started.set_exception(shown)
            # Whoever started it may have left: nobody need ask.
            self.started.exception()
        self._end(Failed(shown))

    def _exposed(self, error: InvocationError) -> InvocationError:
        """Return the error as the live caller sees it: records keep the fixed text."""
        cause = error.__cause__
        if error.status != 500 or cause is None or not self.endpoint.shows_errors:
            return error
        shown = copy.copy(error)
        shown.text = str(cause) or type(cause).__name__
        return shown


class Reader:
    """One who waits for the answer of a run: the POST that started it."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._place = run.tape.attach()
        self._left = False

    def leave(self) -> None:
        """Stop reading; harmless when done before."""
        if not self._left:
            self._left = True
            self._run.tape.detach(self._place)
            self._run._reader_left()

    async def started(self) -> None:
        """Wait until the turn was begun.

        Raises:
            InvocationError: If it was refused.
        """
        await self._wait(self._run.started)

    async def outcome(self) -> Done | Failed:
        """Wait for the end; what is read is the last event only."""
        self._run.tape.detach(self._place)
        return await self._wait(self._run.ended)

    def stream(self) -> FrameStream:
        """Return the wire events from the first one, for a streamed response."""
        endpoint = self._run.endpoint
        return FrameStream(
            self._run.tape,
            self._place,
            keepalive_seconds=endpoint.keepalive_seconds,
            stall_seconds=endpoint.reader_stall_seconds,
            on_leave=self.leave,
        )

    async def _wait(self, future: asyncio.Future[T]) -> T:
        try:
            # The run is not the reader's to cancel.
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            self.leave()
            raise


class _RunExecutor(ThreadPoolExecutor):
    """One thread for the sync code of one run, started when it is needed."""

    def __init__(self) -> None:
        super().__init__(max_workers=1, thread_name_prefix="invocations-run")
        self._used = False

    def submit(self, *args: Any, **kwargs: Any) -> Any:
        self._used = True
        return super().submit(*args, **kwargs)

    def end(self) -> None:
        """Close the thread's database connections, after what still runs in it, and end it."""
        if self._used:
            self.submit(connections.close_all)
        self.shutdown(wait=False)


async def _settle(future: asyncio.Future[Any]) -> None:
    """Wait for a transaction that was sent off, whatever becomes of the one who waits."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + _SETTLE_SECONDS
    while not future.done() and loop.time() < deadline:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.wait([future], timeout=deadline - loop.time())


def _resolve(future: asyncio.Future[T], value: T) -> None:
    if not future.done():
        future.set_result(value)


def _as_invocation_error(error: BaseException) -> InvocationError:
    if isinstance(error, InvocationError):
        return error
    failed = TargetFailed()
    failed.__cause__ = error
    return failed
