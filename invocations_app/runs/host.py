"""What a process knows of its runs in one event loop, and does for all of them at once.

At intervals it writes the events of all runs to the log, renews their leases
and hears of cancellations: one transaction for all, not one for each. It does
nothing while nothing runs for longer than an interval. When the process is to
end, it lets the runs end, and stops those that do not.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import threading
import uuid
from collections.abc import Coroutine, Iterable
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from django.db import DatabaseError

from invocations_app import conf
from invocations_app.exceptions import Overloaded, RunCancelled, RunInterrupted, ShuttingDown
from invocations_app.runs.wakeups import get_wakeups
from invocations_app.storage import event_log, leases, loop_writer
from invocations_app.storage.event_log import Batch

if TYPE_CHECKING:
    from invocations_app.runs.run import Run

logger = logging.getLogger("invocations_app.runs")

# A cancellation asked for in another process is heard of within this time.
_LOOK_SECONDS = 0.5
# A lease is renewed this many times before it would expire.
_RENEWALS = 4
# What is stopped at shutdown has this time to write down its end, before its lease has to run out.
_STOP_SECONDS = 5


class _Count:
    """Runs of the whole process, over all its event loops."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.value = 0

    def change(self, by: int) -> int:
        with self._lock:
            self.value += by
            return self.value


_running = _Count()


class Host:
    """The runs of one event loop.

    Attributes:
        owner: Random id of this process and loop, by which records know who runs them.
        runs: Every run that has a record, by the record's primary key.
        closing: Whether no new run is taken any more.
        loop: The event loop.
    """

    def __init__(self) -> None:
        self.owner = uuid.uuid4().hex
        self.runs: dict[int, Run] = {}
        self.closing = False
        self.loop = asyncio.get_running_loop()
        self._live: set[Run] = set()
        self._admitted: set[Run] = set()
        self._errands: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._tending: asyncio.Task[None] | None = None
        self._looked_at = 0.0
        self._renewed_at = 0.0

    # Which runs there are

    def admit(self, run: Run, *, is_run_here: bool = True) -> None:
        """Count a run that is about to begin.

        Args:
            run: The run.
            is_run_here: Whether this process runs it; what it hands to another one does not count.

        Raises:
            ShuttingDown: If this process takes no new run any more.
            Overloaded: If it has as many runs as it may have.
        """
        if self.closing:
            raise ShuttingDown
        if not is_run_here:
            return
        if _running.change(1) > conf.get_host().max_concurrent_runs:
            _running.change(-1)
            raise Overloaded
        self._admitted.add(run)

    def hold(self, run: Run) -> None:
        """Hold a run while its task lives: the loop holds its tasks weakly only."""
        self._live.add(run)

    def forget(self, run: Run) -> None:
        """Let go of a run whose task has ended."""
        self._live.discard(run)
        if run in self._admitted:
            self._admitted.discard(run)
            _running.change(-1)
        if run.record_pk is not None:
            self.runs.pop(run.record_pk, None)

    @property
    def has_few_runs(self) -> bool:
        """Whether so few live that what one of them writes need not wait for what the others might."""
        return len(self._live) <= loop_writer.FEW

    @property
    def live(self) -> frozenset[Run]:
        """Every run whose task lives."""
        return frozenset(self._live)

    def spawn(self, coroutine: Coroutine[Any, Any, None]) -> None:
        """Do something beside the runs, in a task that is held here.

        Args:
            coroutine: What to do.
        """
        task = self.loop.create_task(coroutine, context=contextvars.Context())
        self._errands.add(task)
        task.add_done_callback(self._errands.discard)

    def register(self, run: Run, record_pk: int) -> None:
        """Tend a run that has a record from now on.

        Args:
            run: The run.
            record_pk: Primary key of its record.
        """
        self.runs[record_pk] = run
        if self._timer is None and self._tending is None:
            now = self.loop.time()
            self._looked_at = self._renewed_at = now
            self._arm()

    # The end of the process

    def open(self) -> None:
        """Take runs, also where a loop is used again after `drain`."""
        self.closing = False

    async def drain(self, grace_seconds: float) -> None:
        """Take no new run, let those that live and wait go on for a while, and stop those that outlast it.

        Each is ended as interrupted: with its error event, its record and its session's claim. Whoever
        follows a run of another process is let go at once.

        Args:
            grace_seconds: Time that they have to end by themselves.
        """
        self.closing = True
        get_wakeups().wake_all()
        await self._wait_until_idle(grace_seconds)
        for run in self.live:
            run.cancel(RunInterrupted())
        await self._wait_until_idle(_STOP_SECONDS)
        for run in self.live:
            # An agent that holds on to its task; whoever meets the expired lease writes the interruption down.
            logger.error("Invocation %s did not stop at shutdown.", run.correlation_id)
        errands = [*self._errands, *([self._tending] if self._tending else [])]
        for errand in self._errands:
            errand.cancel()
        if errands:
            await asyncio.wait(errands, timeout=_STOP_SECONDS)
        await get_wakeups().close()

    async def _wait_until_idle(self, seconds: float) -> None:
        deadline = self.loop.time() + seconds
        # Further ones may come meanwhile: a repeated request is still looked up.
        while (tasks := [run.task for run in self._live if not run.task.done()]) and self.loop.time() < deadline:
            await asyncio.wait(tasks, timeout=deadline - self.loop.time())

    # What is done for all of them

    def flush_soon(self) -> None:
        """Write the events to the log without waiting for the interval."""
        if self._tending is None:
            self._tend()

    def _arm(self) -> None:
        self._timer = self.loop.call_later(conf.get_host().event_flush_milliseconds / 1000, self._tend)

    def _tend(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self.runs and self._tending is None:
            # Not in the context of the run that happened to start it.
            self._tending = self.loop.create_task(self._tend_once(), context=contextvars.Context())

    async def _tend_once(self) -> None:
        full = False
        try:
            full = await self._flush()
            await self._hear()
        except DatabaseError:
            # The next time will do: events are kept, and leases hold for a while.
            logger.warning("The database did not take events or leases.", exc_info=True)
        except Exception:
            logger.exception("Tending the runs failed.")
        finally:
            self._tending = None
            if full:
                self._tend()
            elif self.runs:
                self._arm()

    async def _flush(self) -> bool:
        """Write what the log does not have yet, of all runs in one transaction; return whether much came meanwhile."""
        batches = []
        for pk, run in self.runs.items():
            if not run.ending.locked() and run.tape.unlogged:
                first, frames = run.tape.to_log()
                batches.append(Batch(pk, first, frames))
        if not batches:
            return False
        runs = {batch.record_pk: self.runs[batch.record_pk] for batch in batches}
        for run in runs.values():
            # Nobody else has it: a run that ends meanwhile waits, so that nothing is written twice.
            await run.ending.acquire()
        try:
            held = await event_log.append(self.owner, batches)
            for batch in batches:
                if batch.record_pk in held:
                    runs[batch.record_pk].tape.mark_logged(batch.first + len(batch.frames) - 1)
        finally:
            for run in runs.values():
                run.ending.release()
        self._drop(batch.record_pk for batch in batches if batch.record_pk not in held)
        return any(runs[pk].tape.is_log_due for pk in held)

    async def _hear(self) -> None:
        """Renew the leases when it is time, and hear who was cancelled or taken over."""
        now = self.loop.time()
        lease_seconds = conf.get_host().lease_seconds
        pks = list(self.runs)
        if now - self._renewed_at >= lease_seconds / _RENEWALS:
            self._renewed_at = self._looked_at = now
            news = await leases.renew(self.owner, pks, lease_seconds)
        elif now - self._looked_at >= _LOOK_SECONDS:
            self._looked_at = now
            news = await leases.look(self.owner, pks)
        else:
            return
        for pk in news.cancelled:
            if pk in self.runs:
                self.runs[pk].cancel(RunCancelled())
        self._drop(pk for pk in pks if pk not in news.held)

    def _drop(self, record_pks: Iterable[int]) -> None:
        """Stop runs that this process does not hold any more, unless they have just ended."""
        for pk in record_pks:
            run = self.runs.get(pk)
            if run is not None and not run.ending.locked():
                run.cancel(RunInterrupted())


_hosts: WeakKeyDictionary[asyncio.AbstractEventLoop, Host] = WeakKeyDictionary()
_hosts_lock = threading.Lock()


def get_host() -> Host:
    """Return the host of the running event loop."""
    loop = asyncio.get_running_loop()
    host = _hosts.get(loop)
    if host is None:
        with _hosts_lock:
            # A host knows its loop, so a weak key alone would keep it for ever.
            for other in [other for other in _hosts if other.is_closed()]:
                del _hosts[other]
            host = _hosts[loop] = Host()
    return host


def live_runs() -> frozenset[Run]:
    """Return every run of this process whose task lives, over all its event loops."""
    return frozenset(run for host in list(_hosts.values()) for run in host.live)
