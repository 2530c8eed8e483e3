"""Connections of SQLite's for the event loop's own thread: they wait for nothing.

They never wait for a lock, and never copy the log into the database. Whoever
finds one taken, broken or not there yet has to go to a thread.
"""

from __future__ import annotations

import contextlib
import sqlite3
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

from django.db import connections

from invocations_app.storage import database


class LoopConnection:
    """One connection to one database, for whichever event loop of the process asks first.

    Args:
        alias: Returns the alias of the database, when the connection is first asked for.
        suits: Says of an open connection of the driver's whether nothing done with it would wait, and has it ready.
    """

    def __init__(self, alias: Callable[[], str], suits: Callable[[sqlite3.Connection], bool]) -> None:
        self._alias = alias
        self._suits = suits
        self._lock = threading.Lock()
        self._connection: Any = None
        # What the connection is known by that was asked for; None: none was, since the last one was dropped.
        self._asked: object = None
        database.at_close(self.close)

    def take(self) -> Any | None:
        """Return Django's connection, which is the caller's until `give_back`; None if there is none to be had now."""
        if not self._lock.acquire(blocking=False):
            return None
        if self._connection is not None:
            return self._connection
        try:
            if self._asked is None:
                self._ask()
        except Exception:
            # The threads were closed just now, perhaps; whoever comes next asks again.
            self._asked = None
        finally:
            self._lock.release()
        return None

    def give_back(self) -> None:
        """Let others have what was taken."""
        self._lock.release()

    def drop(self) -> None:
        """Close what was taken, which is still to be given back; the next who takes asks for another one."""
        connection, self._connection = self._connection, None
        self._asked = None
        if connection is not None:
            with contextlib.suppress(Exception):
                # Django's own closing refuses to work in an event loop's thread.
                connection.connection.close()

    def close(self) -> None:
        """Close the connection, when nobody has it; one that was asked for is closed as soon as it is open."""
        with self._lock:
            self.drop()

    def _ask(self) -> None:
        self._asked = asked = object()
        # Once: whether the database is one to use from here does not change.
        if connections[self._alias()].vendor == "sqlite":
            database.send(partial(self._connect, asked))

    def _connect(self, asked: object) -> Callable[[], None]:
        """Open the connection, on a database thread: Django's settings may ask for anything."""
        connection: Any = None
        try:
            connection = connections[self._alias()].copy()
            connection.ensure_connection()
            driver: sqlite3.Connection = connection.connection
            if self._suits(driver):
                driver.execute("PRAGMA busy_timeout = 0")
                driver.execute("PRAGMA wal_autocheckpoint = 0")
                with self._lock:
                    if self._asked is asked:
                        self._connection, connection = connection, None
        except Exception:
            # Whoever comes next asks again; until then a thread does it all.
            with self._lock:
                if self._asked is asked:
                    self._asked = None
        finally:
            if connection is not None:
                connection.close()
        return _tell_nobody


def has_log_ahead(driver: sqlite3.Connection) -> bool:
    """Return whether the database has a write-ahead log: readers and the writer do not wait for each other.

    Args:
        driver: An open connection.
    """
    return bool(driver.execute("PRAGMA journal_mode").fetchone()[0] == "wal")


def _tell_nobody() -> None:
    """Whoever comes next will see."""
