"""One run: a task of its own, from the replay look-up to the commit.

The task is owned by the engine, not by the response: Django cancels the view
when the client leaves, and a claim made by a cancelled view would stay. The
response, and whoever else follows, only reads what the run publishes.
"""

from __future__ import annotations

import asyncio
import contextvars
import copy
import dataclasses
import logging
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Any, NamedTuple, TypeVar

from invocations_app import conf, delivery, hooks, isolation, targets
from invocations_app.conf import EndpointSettings
from invocations_app.dialects import get_dialect
from invocations_app.envelope import Invocation, ParsedRequest
from invocations_app.events import Answer, Done, Event, Failed, StepTaken
from invocations_app.exceptions import (
    AwaitingResponses,
    InvocationError,
    InvocationIdReused,
    Overloaded,
    ResponsesMismatch,
    RunCancelled,
    RunInterrupted,
    RunTimedOut,
    SessionRequired,
    ShuttingDown,
    StorageUnavailable,
    StreamsNeedAsgi,
    TargetFailed,
    UnsupportedOptions,
)
from invocations_app.isolation import RequestKeys, Scope
from invocations_app.runs import foundry, parcel, provider_context, tasks_api, waiting
from invocations_app.runs.agent import Result
from invocations_app.runs.executor import RunExecutor
from invocations_app.runs.host import get_host
from invocations_app.runs.limit import Limit
from invocations_app.runs.settle import settle, whole
from invocations_app.runs.tape import AT_ONCE, Tape
from invocations_app.runs.work import Work, work_of
from invocations_app.storage import database, groups, handover, invocations, turns
from invocations_app.storage.correlation import new_correlation_id
from invocations_app.storage.endings import Ending, SessionChange
from invocations_app.storage.event_log import Batch
from invocations_app.storage.handover import Taken
from invocations_app.storage.invocations import StoredInvocation
from invocations_app.storage.steps import Steps
from invocations_app.storage.turns import Handed, Turn, Waiting
from invocations_app.targets import ResolvedTarget, telemetry

T = TypeVar("T")

logger = logging.getLogger("invocations_app.runs")

# How long a turn is kept that cannot be written because the database is away.
_PATIENCE_SECONDS = 20
# What says no more than that a caller came at a bad time, or to the wrong server: nothing to look into.
_REFUSALS = (Overloaded, ShuttingDown, StreamsNeedAsgi)
# Steps of the loop that a response takes at most from the view to its first event, with some middleware.
_FIRST_STEPS = 16
# How often a run whose last reader here has left looks for readers elsewhere.
_JOINED_POLL_SECONDS = 1


class RunRequest(NamedTuple):
    """What starts a run.

    Attributes:
        parsed: The parsed request.
        endpoint: The endpoint it came in at.
        scope: Endpoint and isolation keys.
        keys: The trusted headers' values, for the ContextVars.
        user_pk: Primary key of the authenticated Django user, or None.
        request: The DRF request, for the run hook.
        can_stream: Whether the server can stream (ASGI).
        taken: The record, where another process has begun the turn and this one took
            it over; None where it is still to be begun.
        correlation_id: Id of the record that says nothing of the caller, the only one that logs carry; empty for
            a new one.
    """

    parsed: ParsedRequest
    endpoint: EndpointSettings
    scope: Scope
    keys: RequestKeys
    user_pk: Any
    request: Any
    can_stream: bool
    taken: Taken | None = None
    correlation_id: str = ""


class Run:
    """The run of one invocation.

    Attributes:
        invocation: The invocation; what the run hook made of it, once it ran.
        endpoint: The endpoint it came in at.
        correlation_id: Random id of its record, the only one that logs carry.
        record_pk: Primary key of its record, once it has one.
        is_queued: Whether it waits for its session.
        started: Done when the caller can be answered: at the begin of a stream, at the end of a plain
            run, or when it was queued in the background; with the stored invocation where there is
            one of this id already, or an `InvocationError`. Waited for by one reader.
        ended: Done with the last event, `Done` or `Failed`.
        tape: Its wire events.
        ending: Held while its end or a batch of its events is written.
    """

    def __init__(self, request: RunRequest) -> None:
        self._host = get_host()
        loop = self._host.loop
        self.invocation: Invocation = request.parsed.invocation
        self.endpoint = request.endpoint
        self.correlation_id = request.correlation_id or new_correlation_id()
        self.record_pk: int | None = None
        self.is_queued = False
        self.started: asyncio.Future[StoredInvocation | None] = loop.create_future()
        self.ended: asyncio.Future[Done | Failed] = loop.create_future()
        self.tape = Tape()
        self.ending = asyncio.Lock()
        self._request = request
        self._dialect = get_dialect(request.parsed.invocation.dialect)
        self._encoder = self._dialect.invocations_from_streaming_run()
        self._readers = 0
        self._held: Turn | Waiting | Handed | None = None
        self._work: Work | None = None
        self._first_byte_at: datetime | None = None
        self._steps = Steps()
        self._stop: InvocationError | None = None
        self._has_begun = False
        self._over = False
        self._pushing = False
        # A copy of its own: the middleware unsets the keys while the response still streams.
        context = contextvars.copy_context()
        keys = request.keys
        isolation.hold(context, keys)
        context.run(foundry.bind, keys, self.session_id)
        self._host.hold(self)
        if request.taken is not None:
            self._hold(turns.resume(self._turn_request(None), request.taken.record_pk, request.taken.session_pk))
        self.task = loop.create_task(self._main(), context=context)

    @property
    def session_id(self) -> str | None:
        """The session id in force, as given; None when there is none."""
        return None if self.invocation.session_mode == "disabled" else self.invocation.session_id

    # Who reads, and who stops it

    def reader_came(self) -> None:
        """Count one who waits for the answer."""
        self._readers += 1

    def reader_left(self) -> None:
        """Count one less; that the last one leaves may cancel the run."""
        self._readers -= 1
        if self._readers > 0 or self._over or self.endpoint.on_disconnect == "continue":
            return
        if self.invocation.is_acknowledged:
            return
        if self.record_pk is None:
            self.cancel(RunCancelled())
        else:
            self._host.spawn(self._cancel_unless_joined(self.record_pk))

    async def _cancel_unless_joined(self, record_pk: int) -> None:
        """Cancel the run unless somebody waits for its answer, here or in another process."""
        while self._readers == 0 and not self._over:
            try:
                if not await groups.is_joined(record_pk):
                    self.cancel(RunCancelled())
                    return
            except database.UNREACHABLE:
                logger.warning("Readers of invocation %s could not be looked up.", self.correlation_id)
            await asyncio.sleep(_JOINED_POLL_SECONDS)

    def cancel(self, error: InvocationError) -> None:
        """Stop the run; nothing happens when it is over or was stopped before.

        Args:
            error: What it ends with.
        """
        if self._stop is None and not self._over:
            self._stop = error
            # Not before its first step: a task that is cancelled before that never runs, and so never ends its run.
            asyncio.get_running_loop().call_soon(self._cancel_task)

        elif self._pushing:
            # What was not pushed stands in the record.
            self.task.cancel()

    def _cancel_task(self) -> None:
        if not self._over:
            self.task.cancel()

    # The task

    async def _main(self) -> None:
        executor = RunExecutor()
        # Sync code of the run gets a thread of its own: the request's is gone before the run is.
        executor.take_sync_code()
        try:
            await self._guarded()
            if isinstance(self.invocation.delivery, tuple):
                await self._deliver()
        finally:
            executor.end()
            self._host.forget(self)

    async def _guarded(self) -> None:
        try:
            stored = await self._look_up() if self._request.parsed.id_given else None
            if stored is None:
                stored = await self._resolve_and_turn()
            if stored is not None:
                self._over = True
                self._start(stored)
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

    async def _look_up(self) -> StoredInvocation | None:
        """Return the invocation that was begun with the caller's id before, if there is one."""
        parsed = self._request.parsed
        try:
            stored = await invocations.look_up(self._request.scope, parsed.invocation.id)
        except database.UNREACHABLE as error:
            raise StorageUnavailable from error
        return None if stored is None else self._same(stored)

    def _same(self, stored: StoredInvocation) -> StoredInvocation:
        if stored.fingerprint != self._request.parsed.fingerprint:
            raise InvocationIdReused
        return stored

    async def _resolve_and_turn(self) -> StoredInvocation | None:
        """Resolve the target, and enter it where it is the run's own."""
        resolved = await targets.resolve(self.endpoint)
        self._work = work = work_of(self.endpoint, resolved)
        if self._request.taken is None:
            self.invocation = work.read(self._request.parsed)
        if not resolved.owned:
            return await self._turn(work, resolved)
        async with targets.entered(resolved):
            return await self._turn(work, resolved)

    async def _turn(self, work: Work, resolved: ResolvedTarget) -> StoredInvocation | None:
        """Prepare the turn, carry it out and commit it."""
        taken = self._request.taken
        if taken is None:
            await self._prepare(work, resolved)
            begun = await self._begin(work)
        else:
            # What a worker does again of what came before the record.
            self.invocation = work.fit(self.invocation)
            begun = turns.resume(self._turn_request(work), taken.record_pk, taken.session_pk)
        if isinstance(begun, StoredInvocation):
            return self._same(begun)
        if isinstance(begun, Handed):
            await self._hand_over(begun)
            return None
        turn = begun if isinstance(begun, Turn) else await self._wait(begun)
        await work.load(turn)
        self._start(None)
        result = await self._carry_out(work, turn)
        asked = tuple(request.data for request in result.pending)
        answer = Answer(result.text, self.session_id, pending=asked, frames=result.frames, usage=result.usage)
        await self._commit(turn, answer, await work.leave(turn, result))
        self._end(Done(answer))
        return None

    async def _prepare(self, work: Work, resolved: ResolvedTarget) -> None:
        """Do what comes before the record: what fails here leaves no trace."""
        endpoint = self.endpoint
        self.invocation = await hooks.apply_run_hook(
            endpoint, self.invocation, target=resolved.target, request=self._request.request
        )
        fitted = work.fit(self.invocation)
        if self._tasks_backend is None:
            # A worker fits it itself: what fits a workflow need not be JSON.
            self.invocation = fitted
        foundry.bind(self._request.keys, self.session_id)
        self._dialect.check_options(self.invocation)
        self.invocation = invocation = self._fit_options(self.invocation, resolved)
        generated = invocation.session_id == self._request.parsed.generated_session_id
        if invocation.session_mode == "required" and (not invocation.session_id or generated):
            raise SessionRequired
        if (invocation.stream or invocation.is_acknowledged) and not self._request.can_stream:
            raise StreamsNeedAsgi
        self._host.admit(self, is_run_here=self._tasks_backend is None)

    def _fit_options(self, invocation: Invocation, resolved: ResolvedTarget) -> Invocation:
        if not invocation.options or resolved.takes_options:
            return invocation
        if self.endpoint.unsupported_options == "error":
            raise UnsupportedOptions
        logger.warning("The target of endpoint %r takes no run options; they are dropped.", self.endpoint.alias)
        return dataclasses.replace(invocation, options={})

    @property
    def _tasks_backend(self) -> str | None:
        """Alias of the tasks backend whose workers run this invocation; None where this process does."""
        return conf.get_host().background_tasks_backend if self.invocation.background else None

    def _turn_request(self, work: Work | None) -> turns.TurnRequest:
        taken = self._request.taken
        is_handed = taken is None and self._tasks_backend is not None
        return turns.TurnRequest(
            invocation=self.invocation,
            scope=self._request.scope,
            user_pk=self._request.user_pk,
            fingerprint=self._request.parsed.fingerprint,
            correlation_id=self.correlation_id,
            owner="" if is_handed else self._host.owner,
            lease_seconds=conf.get_host().lease_seconds,
            on_busy=self.endpoint.on_busy_session,
            check_reply=None if work is None else work.check_reply,
            with_checkpoint=work is not None and work.with_checkpoint,
            handed_input=parcel.pack(self.invocation, self._request.keys) if is_handed else "",
            is_unknown=turns.can_nobody_ask(self.invocation, id_given=self._request.parsed.id_given),
            begun_at=datetime.now(UTC) if taken is None else taken.begun_at,
        )

    async def _begin(self, work: Work) -> turns.Begun:
        request = self._turn_request(work)
        if turns.may_be_recorded_at_its_end(request):
            self._held = Turn(0, request.owner, None, request.begun_at, unrecorded=request)
            return self._held
        try:
            # It cannot be called back: a claim that is made just as the run is cancelled has to be released.
            return await whole(groups.begin(request, is_lone=self._host.has_few_runs), self._hold)
        except database.UNREACHABLE as error:
            raise StorageUnavailable from error

    def _hold(self, begun: turns.Begun) -> None:
        if not isinstance(begun, StoredInvocation):
            self._held = begun
            self.record_pk = begun.record_pk
            if not isinstance(begun, Handed):
                self._host.register(self, begun.record_pk)

    async def _hand_over(self, handed: Handed) -> None:
        """Have a worker of the tasks backend run it; this process only answers that it is queued."""
        self.is_queued = True
        try:
            await tasks_api.enqueue(str(self._tasks_backend), handed.record_pk)
        except Exception as error:
            # As if it had never been asked for; unless the backend has it all the same, and a worker was faster.
            if await self._patiently(lambda: handover.take_back(handed)):
                self._held = None
                raise StorageUnavailable from error
        await self._patiently(lambda: handover.confirm(handed))
        self._held = None
        self._over = True
        self._start(None)

    async def _wait(self, queued: Waiting) -> Turn:
        self.is_queued = True
        acknowledged = self.invocation.is_acknowledged
        if acknowledged:
            self._start(None)
        try:
            turn = await waiting.wait_for_claim(queued, None if acknowledged else self.endpoint.session_wait_seconds)
        except (ResponsesMismatch, AwaitingResponses):
            if not acknowledged:
                # Refused before it began: as if it had never been asked for.
                await turns.give_up(queued)
                self._held = None
            raise
        self._held = turn
        self.is_queued = False
        return turn

    def _start(self, stored: StoredInvocation | None) -> None:
        # Who waits for a plain answer has nothing to do before its end: it is woken once.
        self._has_begun = stored is None
        is_plain = stored is None and not self.invocation.stream and not self.invocation.is_acknowledged
        if not is_plain and not self.started.done():
            self.started.set_result(stored)

    async def _carry_out(self, work: Work, turn: Turn) -> Result:
        """Run the target within its time."""
        invocation = self.invocation
        telemetry.switch.match()
        limit = Limit(self.endpoint.run_timeout_seconds, self._host.loop)
        try:
            async with provider_context.bound(
                work.agents, invocation.id, lambda: invocations.previous_id(turn.session_pk, turn.record_pk)
            ):
                result = await work.run(invocation, turn, self._publish)
        except BaseException as error:
            if limit.end() and isinstance(error, asyncio.CancelledError):
                raise RunTimedOut from error
            raise
        limit.end()
        self._note_first_byte()
        if result.pending and turn.session is None:
            # Nobody could answer it later.
            raise SessionRequired
        return result

    def _note_first_byte(self) -> None:
        if self._first_byte_at is None:
            self._first_byte_at = datetime.now(UTC)

    def _publish(self, event: Event) -> Awaitable[None]:
        """Put an event on the tape; that of a plain run is told from its answer, at its end.

        Returns:
            What to wait for before the next one; `AT_ONCE` for nothing: a stream has many, and a coroutine is dear.
        """
        if isinstance(event, StepTaken):
            self._steps.take(event.kind, event.name, datetime.now(UTC) if event.is_timed else None)
            return AT_ONCE
        first = self._first_byte_at is None
        if first:
            self._first_byte_at = datetime.now(UTC)
        if not self.invocation.stream:
            return AT_ONCE
        tape = self.tape
        is_ahead = tape.append(self._encoder.encode(event))
        if is_ahead and tape.is_log_due:
            self._host.flush_soon()
        if first:
            return _give_way(tape)
        return tape.room() if is_ahead and tape.is_full else AT_ONCE

    async def _commit(self, turn: Turn, answer: Answer, change: SessionChange | None) -> None:
        """Write everything in one transaction, which a cancellation does not cut."""
        committed: list[None] = []
        try:
            async with self.ending:
                ending = self._ending()

                def keep(done: None) -> None:
                    committed.append(done)
                    groups.keep(turn, change)

                try:
                    await whole(groups.commit(turn, change, answer, ending, is_lone=self._host.has_few_runs), keep)
                except database.UNREACHABLE:
                    await whole(self._patiently(lambda: groups.commit(turn, change, answer, ending)), keep)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if not committed or self._stop is None or task is None:
                raise
            # Committed before the cancellation reached it: the turn stands.
            task.uncancel()

    def _ending(self) -> Ending:
        first, frames = self.tape.to_log()
        return Ending(
            first_byte_at=self._first_byte_at,
            events=Batch(self.record_pk or 0, first, frames),
            event_count=self.tape.last,
            steps=self._steps,
        )

    async def _patiently(self, write: Callable[[], Awaitable[T]]) -> T:
        """Write, and try again while the database is away for a short while."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + _PATIENCE_SECONDS
        pause = 0.1
        while True:
            try:
                return await write()
            except database.UNREACHABLE:
                if loop.time() + pause > deadline:
                    raise
                logger.warning("The end of invocation %s is tried again.", self.correlation_id, exc_info=True)
            await asyncio.sleep(pause)
            pause = min(pause * 2, 1)

    def _end(self, event: Done | Failed) -> None:
        """Publish the last event, and let the next turn of the session go."""
        self._over = True
        self.tape.mark_logged(None)
        self.tape.close(self._encoder.encode(event))
        if not self.ended.done():
            self.ended.set_result(event)
        if not self.started.done():
            self.started.set_result(None)
        if self._held is not None and self._held.session_pk is not None:
            waiting.session_is_free(self._held.session_pk)

    async def _deliver(self) -> None:
        """Push the result to where the run hook said, whatever the end; what is cut here stands as unsent."""
        if self._held is None or self.record_pk is None:
            return
        # It has ended: there is no lease to hold, and nothing to cancel but this.
        self._host.runs.pop(self.record_pk, None)
        self._pushing = True
        try:
            await delivery.deliver(self.record_pk)
        except Exception:
            logger.exception("The result of invocation %s was not delivered.", self.correlation_id)

    async def _fail(self, error: InvocationError, cause: BaseException | None = None) -> None:
        """End a run that has no answer."""
        if self._over:
            # It was committed and answered; only cleaning up after it failed.
            logger.error("Cleaning up after invocation %s failed.", self.correlation_id, exc_info=cause)
            return
        self._over = True
        if self._work is not None:
            error = self._work.failure(error)
        if error.status >= HTTPStatus.INTERNAL_SERVER_ERROR and not isinstance(error, _REFUSALS):
            logger.error("Invocation %s failed: %s.", self.correlation_id, error.code, exc_info=cause)
        else:
            logger.info("Invocation %s ended: %s.", self.correlation_id, error.code)
        if self._held is not None:
            await self._record_failure(self._held, error)
        shown = self._exposed(error)
        if not self._has_begun and not self.started.done():
            self.started.set_exception(shown)
            # Whoever started it may have left: nobody need ask.
            self.started.exception()
        self._end(Failed(shown))

    async def _record_failure(self, held: Turn | Waiting | Handed, error: InvocationError) -> None:
        async with self.ending:
            ending = self._ending()
            failing = asyncio.ensure_future(self._patiently(lambda: groups.fail(held, error, ending)))
            await settle(failing)
        if not failing.done() or failing.cancelled() or failing.exception() is not None:
            # The lease expires by itself, and whoever meets it writes down that the run was interrupted.
            problem = failing.exception() if failing.done() and not failing.cancelled() else None
            logger.error("The end of invocation %s was not recorded.", self.correlation_id, exc_info=problem)

    def _exposed(self, error: InvocationError) -> InvocationError:
        """Return the error as the live caller sees it: records keep the fixed text."""
        cause = error.__cause__
        if error.status != 500 or cause is None or not self.endpoint.shows_errors:
            return error
        shown = copy.copy(error)
        shown.text = str(cause) or type(cause).__name__
        return shown


async def _give_way(tape: Tape) -> None:
    """Let the first reader have the first event before the target goes on: it may keep the loop to itself."""
    for _ in range(_FIRST_STEPS):
        if not tape.is_unread:
            break
        await asyncio.sleep(0)
    await tape.room()


def _as_invocation_error(error: BaseException) -> InvocationError:
    if isinstance(error, InvocationError):
        return error
    failed = TargetFailed()
    failed.__cause__ = error
    return failed
