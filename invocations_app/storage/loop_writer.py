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
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias, TypeVar

from django.db import connections

from invocations_app.storage import database, plain_sql

Job = TypeVar("Job")
T = TypeVar("T")
Swift: TypeAlias = Callable[[Any, Any, Sequence[Job]], Mapping[int, T]]

#: More jobs than these are no lone ones: the thread does them while the loop goes on.
FEW = 4

# The thread has to have its turn: its connection copies the log into the database when the log is long.
_JOBS_IN_A_ROW = 128

# Values of ``PRAGMA synchronous`` with which a COMMIT waits for no disk: OFF and NORMAL.
_FLUSHES_NOTHING = (0, 1)


class LoopWriter:
    """A connection that waits for nothing, for whichever event loop of the process wants to write."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._connection: Any = None
        self._is_asked_for = False
        self._jobs = 0

    def write(self, swift: Swift[Job, T] | None, jobs: Sequence[Job]) -> Mapping[int, T]:
        """Do jobs in a transaction, if that can be done at once.

        Args:
            swift: Does jobs with plain statements on a driver's cursor, and returns the outcomes by their places.
                Its connection is Django's, and only to be asked about the database.
            jobs: The jobs.

        Returns:
            What the function returned, committed; nothing where it could not be done, or failed.
        """
        if swift is None or not database.is_idle() or not self._lock.acquire(blocking=False):
            return {}
        try:
            if self._connection is None:
                self._ask_for_connection()
                return {}
            self._jobs += len(jobs)
            if self._jobs > _JOBS_IN_A_ROW:
                self._jobs = 0
                return {}
            return self._write(self._connection, swift, jobs)
        finally:
            self._lock.release()

    def _write(self, connection: Any, swift: Swift[Job, T], jobs: Sequence[Job]) -> Mapping[int, T]:
        driver: sqlite3.Connection = connection.connection
        try:
            with contextlib.closing(plain_sql.driver_cursor(connection)) as cursor:
                cursor.execute("BEGIN IMMEDIATE")
                outcomes = swift(connection, cursor, jobs)
                cursor.execute("COMMIT")
            return outcomes
        except BaseException as error:
            # A lock, a case that is not the common one, or something worse: whoever knows every case will tell.
            try:
                if driver.in_transaction:
                    driver.execute("ROLLBACK")
            except sqlite3.Error:
                self._drop()
            if not isinstance(error, Exception):
                raise
            return {}

    def _ask_for_connection(self) -> None:
        if not self._is_asked_for:
            self._is_asked_for = True
            # Once: whether the database is one to write to from here does not change.
            if connections[database.alias()].vendor == "sqlite":
                database.send(self._connect)

    def _connect(self) -> Callable[[], None]:
        """Open the connection, on a database thread: Django's settings may ask for anything."""
        connection: Any = connections[database.alias()].copy()
        try:
            connection.ensure_connection()
            if _flushes_nothing(connection.connection):
                connection.connection.execute("PRAGMA busy_timeout = 0")
                connection.connection.execute("PRAGMA wal_autocheckpoint = 0")
                with self._lock:
                    self._connection, connection = connection, None
        except Exception:
            # Whoever writes next asks again; until then the thread does it all.
            self._is_asked_for = False
        finally:
            if connection is not None:
                connection.close()
        return _tell_nobody

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        self._is_asked_for = False
        self._jobs = 0
        if connection is not None:
            with contextlib.suppress(Exception):
                connection.connection.close()

    def close(self) -> None:
        """Close the connection; the next writing asks for another one."""
        with self._lock:
            self._drop()


def _tell_nobody() -> None:
    """Whoever writes next will see."""


def _flushes_nothing(driver: sqlite3.Connection) -> bool:
    mode = driver.execute("PRAGMA journal_mode").fetchone()[0]
    return mode == "wal" and driver.execute("PRAGMA synchronous").fetchone()[0] in _FLUSHES_NOTHING


#: The one of this process.
writer = LoopWriter()
database.at_close(writer.close)
