"""Transactions of several runs in one: whatever has gathered while the last one was on its way.

A commit costs far more than the statements of a turn, and a change of threads
costs more than both; so what arrives together goes together, in a few
statements for all of them. What cannot be done the swift way, or fails, is done
alone, by the code that knows every case: a group never decides anything.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Generic, TypeAlias, TypeVar

from django.db import DatabaseError, connections, transaction

from invocations_app.storage import database, loop_writer, plain_sql
from invocations_app.storage.certain import Certain

Job = TypeVar("Job")
T = TypeVar("T")

# More in one transaction would make the first of them wait for long.
_AT_ONCE = 64

_Entry: TypeAlias = "tuple[Any, asyncio.AbstractEventLoop, asyncio.Future[Any]]"
_Outcome: TypeAlias = "tuple[Any, BaseException | None]"


class NotSwift(Exception):
    """Among some jobs is one that is not the common case: it is to be done alone."""


def each(function: Callable[[Job], T]) -> Callable[[Any, Any, Sequence[Job]], dict[int, T]]:
    """Return what does jobs one after the other in one transaction, all or none of them.

    Args:
        function: Does one job.
    """

    def do_all(connection: Any, cursor: Any, jobs: Sequence[Job]) -> dict[int, T]:
        return {place: function(job) for place, job in enumerate(jobs)}

    return do_all


class Group(Generic[Job, T]):
    """Jobs of one kind, done together.

    Args:
        swift: Does jobs with plain statements on a driver's cursor, and returns the outcomes by
            their places; leaves out what it does not know, or raises `NotSwift` for all of them.
        alone: Does a job in a transaction of its own; knows every case.
        order: Key by which the jobs of a group are sorted: two processes that
            meet lock rows in one order.
        at_once: As ``swift``, but leaves out what the event loop must not be kept waiting for; None where
            that is all.
        is_one: Tells, of Django's connection and jobs, whether ``swift`` does them in one statement, which is a
            transaction by itself and needs none around it. None: never.
    """

    def __init__(
        self,
        swift: Callable[[Any, Any, Sequence[Job]], Mapping[int, T]],
        alone: Callable[[Job], T],
        order: Callable[[Job], Any],
        at_once: Callable[[Any, Any, Sequence[Job]], Mapping[int, T]] | None = None,
        is_one: Callable[[Any, Sequence[Job]], bool] | None = None,
    ) -> None:
        self._swift = swift
        self._at_once = at_once
        self._is_one = is_one
        self._alone = alone
        self._order = order
        self._lock = threading.Lock()
        self._gathered: deque[_Entry] = deque()
        self._is_sent = False
        self._sender: asyncio.AbstractEventLoop | None = None

    def do(self, job: Job, *, is_lone: bool = False) -> Certain[T]:
        """Do a job, together with those that gather meanwhile.

        Args:
            job: The job.
            is_lone: Whether hardly anything will gather: then it is done now, where the event loop's thread can.

        Returns:
            What ``swift`` or ``alone`` will have returned, or ``alone`` raised. A future and no coroutine: whoever
            waits for it cannot lose it.
        """
        loop = asyncio.get_running_loop()
        future: Certain[T] = Certain(loop=loop)
        entry = (job, loop, future)
        if is_lone and self._at_once is not None and not self._gathered and not self._is_sent:
            if self._write_at_once([entry]):
                self._schedule_too(entry)
            return future
        with self._lock:
            self._gathered.append(entry)
            # Sent when the loop has done what it can do now: more may gather. One that was closed sends nothing.
            is_due = not self._is_sent and (self._sender is None or self._sender.is_closed())
            if is_due:
                self._sender = loop
        if is_due:
            loop.call_soon(self._send)
        return future

    def _send(self) -> None:
        with self._lock:
            self._sender = None
            if self._is_sent:
                return
            self._is_sent = True
            entries = list(self._gathered)
            if self._at_once is None or len(entries) > loop_writer.FEW:
                entries = []
            else:
                self._gathered.clear()
        left = entries
        try:
            left = self._write_at_once(entries) if entries else []
        finally:
            with self._lock:
                self._gathered.extendleft(reversed(left))
                is_left = self._is_sent = bool(self._gathered)
            if is_left:
                self._schedule()

    def _schedule_too(self, entry: _Entry) -> None:
        with self._lock:
            self._gathered.append(entry)
            is_due = not self._is_sent
            self._is_sent = True
        if is_due:
            self._schedule()

    def _write_at_once(self, entries: list[_Entry]) -> list[_Entry]:
        """Do what can be done in the event loop's own thread; return the others, which go the long way."""
        done: Mapping[int, T] = {}
        try:
            if len(entries) > 1:
                entries.sort(key=self._order_of)
            done = loop_writer.writer.write(self._at_once, [job for job, _, _ in entries], self._is_one)
        except Exception:
            # Whoever goes the long way tells what is wrong.
            return entries
        _deliver([entries[place] for place in done], [(outcome, None) for outcome in done.values()])
        return [entry for place, entry in enumerate(entries) if place not in done]

    def _order_of(self, entry: _Entry) -> Any:
        return self._order(entry[0])

    def _schedule(self) -> None:
        try:
            database.send(self._carry_out)
        except BaseException as error:
            # Nobody would ever carry it out, nor would the next job try.
            with self._lock:
                entries = list(self._gathered)
                self._gathered.clear()
                self._is_sent = False
            _deliver(entries, [(None, error)] * len(entries))

    def _carry_out(self) -> Callable[[], None]:
        with self._lock:
            entries = [self._gathered.popleft() for _ in range(min(len(self._gathered), _AT_ONCE))]
            more = self._is_sent = bool(self._gathered)
        if more:
            self._schedule()
        outcomes: Sequence[_Outcome]
        try:
            outcomes = self._outcomes([job for job, _, _ in entries])
        except BaseException as error:
            # Whatever it was, those who wait must hear of it, and the thread goes on.
            outcomes = [(None, error)] * len(entries)
        return partial(_deliver, entries, outcomes)

    def _outcomes(self, jobs: Sequence[Job]) -> list[_Outcome]:
        done: dict[int, T] = {}
        using = database.alias()
        connection: Any = connections[using]
        if connection.vendor in plain_sql.VENDORS:
            places = sorted(range(len(jobs)), key=lambda place: self._order(jobs[place]))
            for way in (self._together, self._apart) if len(jobs) > 1 else (self._together,):
                is_done = False
                try:
                    is_whole = way == self._together and self._is_whole(connection, jobs)
                    with contextlib.nullcontext() if is_whole else transaction.atomic(using=using):
                        done = way(connection, jobs, places)
                        is_done = True
                    break
                except Exception:
                    done = {}
                    database.mend(connection)
                    if is_done:
                        # Nothing of it was written; or, rarely, it was and the news got lost: ``alone`` copes with
                        # both.
                        break
        return [(done[place], None) if place in done else self._one(job) for place, job in enumerate(jobs)]

    def _is_whole(self, connection: Any, jobs: Sequence[Job]) -> bool:
        """Return whether jobs are one statement, and a statement is a transaction."""
        return (
            self._is_one is not None
            and connection.get_autocommit()
            and not connection.in_atomic_block
            and self._is_one(connection, jobs)
        )

    def _together(self, connection: Any, jobs: Sequence[Job], places: Sequence[int]) -> dict[int, T]:
        with contextlib.closing(plain_sql.driver_cursor(connection)) as cursor:
            done = self._swift(connection, cursor, [jobs[place] for place in places])
        return {places[place]: outcome for place, outcome in done.items()}

    def _apart(self, connection: Any, jobs: Sequence[Job], places: Sequence[int]) -> dict[int, T]:
        """Do each job in a savepoint: one of them is none that can be done together, so it is not known which."""
        done: dict[int, T] = {}
        with contextlib.closing(plain_sql.driver_cursor(connection)) as cursor:
            for place in places:
                cursor.execute("SAVEPOINT one")
                try:
                    for outcome in self._swift(connection, cursor, [jobs[place]]).values():
                        done[place] = outcome
                except Exception:
                    # Whatever it is, a driver's error or a number too large for a column: it is this job's alone.
                    cursor.execute("ROLLBACK TO SAVEPOINT one")
                cursor.execute("RELEASE SAVEPOINT one")
        return done

    def _one(self, job: Job) -> _Outcome:
        try:
            return self._alone(job), None
        except BaseException as error:
            if isinstance(error, DatabaseError):
                database.mend(connections[database.alias()])
            return None, error


def _deliver(entries: Sequence[_Entry], outcomes: Sequence[_Outcome]) -> None:
    here = _running_loop()
    if len(entries) == 1 and entries[0][1] is here:
        _settle([(entries[0][2], outcomes[0])])
        return
    by_loop: dict[asyncio.AbstractEventLoop, list[tuple[asyncio.Future[Any], _Outcome]]] = {}
    for (_, loop, future), outcome in zip(entries, outcomes, strict=True):
        by_loop.setdefault(loop, []).append((future, outcome))
    for loop, settled in by_loop.items():
        if loop is here:
            _settle(settled)
            continue
        # A loop that was closed meanwhile has nobody left who waits.
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(_settle, settled)


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def _settle(settled: Sequence[tuple[asyncio.Future[Any], _Outcome]]) -> None:
    for future, (result, error) in settled:
        if future.done():
            continue
        if error is None:
            future.set_result(result)
        else:
            future.set_exception(error)
