"""The worker's side of a run on another machine: one task, given the primary key of a record.

All runs of a worker process share one event loop in a thread of its own, so that
targets and connections are kept from one to the next. The promises are those
of any other run: a record is taken once, whatever the tasks backend delivers.
Imported only where a tasks backend is named.
"""

from __future__ import annotations

import asyncio
import atexit
import logging
import threading
from collections.abc import Coroutine
from typing import Any

from invocations_app import conf, delivery, targets
from invocations_app.conf import EndpointSettings
from invocations_app.envelope import Invocation, ParsedRequest
from invocations_app.exceptions import InvocationError, RunInterrupted, TargetFailed, TargetUnavailable
from invocations_app.isolation import RequestKeys
from invocations_app.runs import parcel, tasks_api
from invocations_app.runs.host import get_host
from invocations_app.runs.run import Run, RunRequest
from invocations_app.storage import database, groups, handover, invocations
from invocations_app.storage.endings import Ending
from invocations_app.storage.event_log import Batch
from invocations_app.storage.handover import Taken
from invocations_app.storage.turns import Handed

logger = logging.getLogger("invocations_app.runs")

# How long a worker that is told to end at once waits for its run to be written down as interrupted.
_STOP_SECONDS = 10
# A record that is not taken waits for ever, so a database that is away for a while is waited for.
_TAKE_PAUSES_SECONDS = (0.1, 0.5, 1, 2, 5, 10)


class WorkerLoop:
    """The event loop of a worker process, in a thread of its own."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._serve, name="invocations-worker", daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        self._loop.run_forever()
        self._loop.close()

    def run(self, coroutine: Coroutine[Any, Any, None]) -> None:
        """Run a coroutine to its end, or until the calling thread is made to stop.

        Args:
            coroutine: What is run; cancelled if the wait for it is broken off.
        """
        over = threading.Event()

        async def main() -> None:
            try:
                await coroutine
            finally:
                over.set()

        future = asyncio.run_coroutine_threadsafe(main(), self._loop)
        try:
            future.result()
        except BaseException:
            if not future.done():
                # The worker was told twice to end: SystemExit, raised here by its signal handler.
                future.cancel()
                over.wait(_STOP_SECONDS)
            raise

    def stop(self) -> None:
        """Leave the targets, and end the loop and its thread."""
        try:
            asyncio.run_coroutine_threadsafe(targets.stop_all(), self._loop).result(_STOP_SECONDS)
        except Exception:
            logger.warning("The targets of the worker were not left cleanly.", exc_info=True)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_STOP_SECONDS)


_lock = threading.Lock()
_worker: WorkerLoop | None = None


def get_worker() -> WorkerLoop:
    """Return the event loop of this worker process, started when it is first needed."""
    global _worker
    with _lock:
        if _worker is None:
            _worker = WorkerLoop()
            atexit.register(_worker.stop)
        return _worker


# What is enqueued goes to the backend that the setting names then; this one only checks the task.
@tasks_api.get().task(backend=conf.get_host().background_tasks_backend or "default")  # type: ignore[untyped-decorator]
def run_invocation(record_pk: int) -> None:
    """Run an invocation that was handed over; it ends as its record then says.

    Args:
        record_pk: Primary key of its record.

    Raises:
        DatabaseError: If the database is not reachable for long.
    """
    get_worker().run(carry_out(record_pk))


async def carry_out(record_pk: int) -> None:
    """Take a record and run its invocation, to the end.

    Args:
        record_pk: Primary key of the record; nothing happens where it was taken before, has ended, or is gone.

    Raises:
        DatabaseError: If the database is not reachable for long.
    """
    taken = await _take(record_pk)
    if taken is None:
        logger.info("The invocation with the record %s is not there to be run.", record_pk)
        # Who had it may have died: whoever meets that writes it down.
        await invocations.read(record_pk)
        return
    try:
        endpoint, invocation, keys = _read(taken)
    except InvocationError as error:
        logger.exception("Invocation %s cannot be run by this worker.", taken.correlation_id)
        held = Handed(record_pk, taken.session_pk, taken.begun_at, get_host().owner)
        await groups.fail(held, error, Ending(None, Batch(record_pk, 1, ()), 0))
        await delivery.deliver(record_pk)
        return
    await _finish(
        Run(
            RunRequest(
                # Nothing to look up: the record is the one that is run.
                parsed=ParsedRequest(invocation, taken.fingerprint, id_given=False),
                endpoint=endpoint,
                scope=taken.scope,
                keys=keys,
                user_pk=taken.user_pk,
                request=None,
                can_stream=True,
                taken=taken,
                correlation_id=taken.correlation_id,
            )
        )
    )


async def _take(record_pk: int) -> Taken | None:
    owner, lease_seconds = get_host().owner, conf.get_host().lease_seconds
    for pause in _TAKE_PAUSES_SECONDS:
        try:
            return await handover.take(record_pk, owner, lease_seconds)
        except database.UNREACHABLE:
            logger.warning("The record %s is tried again.", record_pk, exc_info=True)
        await asyncio.sleep(pause)
    return await handover.take(record_pk, owner, lease_seconds)


def _read(taken: Taken) -> tuple[EndpointSettings, Invocation, RequestKeys]:
    """Return what is run, by this process's settings."""
    endpoint = conf.get_endpoints().get(taken.scope.endpoint)
    if endpoint is None:
        raise TargetUnavailable from LookupError("this process has no such endpoint, or its settings are wrong")
    try:
        return endpoint, *parcel.unpack(taken)
    except Exception as error:
        raise TargetFailed from error


async def _finish(run: Run) -> None:
    try:
        await asyncio.wait([run.task])
    except asyncio.CancelledError:
        run.cancel(RunInterrupted())
        await asyncio.wait([run.task], timeout=_STOP_SECONDS)
        raise
