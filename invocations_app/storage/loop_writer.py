"""Small transactions in the event loop's own thread, where nothing in them can wait.

To wake the database's thread, and to be woken by it, costs a lone turn more than
what it writes. SQLite with a write-ahead log and ``synchronous=NORMAL`` flushes
nothing in a COMMIT: it writes into the system's cache. What might wait is left to
the thread: somebody else's lock, the flush of a checkpoint, reading a history.
Another database, or SQLite with other settings, is never written to from here.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias, TypeVar

from invocations_app.storage import database, plain_sql
from invocations_app.storage.loop_connection import LoopConnection, has_log_ahead

Job = TypeVar("Job")
T = TypeVar("T")
Swift: TypeAlias = Callable[[Any, Any, Sequence[Job]], Mapping[int, T]]
IsOne: TypeAlias = Callable[[Any, Sequence[Job]], bool]

#: More jobs than these are no lone ones: the thread does them while the loop goes on.
FEW = 4

# The thread has to have its turn: its connection copies the log into the database when the log is long.
_JOBS_IN_A_ROW = 128

# Values of ``PRAGMA synchronous`` with which a COMMIT waits for no disk: OFF and NORMAL.
_FLUSHES_NOTHING = (0, 1)


class LoopWriter:
    """Writes on a connection that waits for nothing, for whichever event loop of the process wants to."""

    def __init__(self) -> None:
        self._own = LoopConnection(database.alias, _flushes_nothing)
        self._jobs = 0

    def write(
        self, swift: Swift[Job, T] | None, jobs: Sequence[Job], is_one: IsOne[Job] | None = None
    ) -> Mapping[int, T]:
        """Do jobs in a transaction, if that can be done at once.

        Args:
            swift: Does jobs with plain statements on a driver's cursor, and returns the outcomes by their places.
                Its connection is Django's, and only to be asked about the database.
            jobs: The jobs.
            is_one: Tells whether the function does them in one statement: then that is the transaction.

        Returns:
            What the function returned, committed; nothing where it could not be done, or failed.
        """
        if swift is None or not database.is_idle():
            return {}
        connection = self._own.take()
        if connection is None:
            return {}
        try:
            self._jobs += len(jobs)
            if self._jobs > _JOBS_IN_A_ROW:
                self._jobs = 0
                return {}
            return self._write(connection, swift, jobs, is_whole=is_one is not None and is_one(connection, jobs))
        finally:
            self._own.give_back()

    def _write(self, connection: Any, swift: Swift[Job, T], jobs: Sequence[Job], *, is_whole: bool) -> Mapping[int, T]:
        driver: sqlite3.Connection = connection.connection
        try:
            with contextlib.closing(plain_sql.driver_cursor(connection)) as cursor:
                if not is_whole:
                    cursor.execute("BEGIN IMMEDIATE")
                outcomes = swift(connection, cursor, jobs)
                if not is_whole:
                    cursor.execute("COMMIT")
            return outcomes
        except BaseException as error:
            # A lock, a case that is not the common one, or something worse: whoever knows every case will tell.
            try:
                if driver.in_transaction:
                    driver.execute("ROLLBACK")
            except sqlite3.Error:
                self._own.drop()
            if not isinstance(error, Exception):
                raise
            return {}

    def close(self) -> None:
        """Close the connection; the next writing asks for another one."""
        self._own.close()
        self._jobs = 0


def _flushes_nothing(driver: sqlite3.Connection) -> bool:
    return has_log_ahead(driver) and driver.execute("PRAGMA synchronous").fetchone()[0] in _FLUSHES_NOTHING


#: The one of this process.
writer = LoopWriter()
