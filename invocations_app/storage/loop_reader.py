"""The ORM in the event loop's own thread, for reading a row or two, where nothing in that can wait.

A read of SQLite with a write-ahead log waits for no writer. To wake a thread for
it, and to be woken by it, takes longer than the read. Django keeps the ORM out of
event loops because its connections wait; this one does not, and writes nothing.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from typing import Any, TypeVar

from django.core.exceptions import SynchronousOnlyOperation
from django.db import Error, connections

from invocations_app.storage.loop_connection import LoopConnection, has_log_ahead

T = TypeVar("T")


class NotHere(Exception):
    """It could not be read here and now; in a thread it may be."""


class LoopReader:
    """Reads on a connection that waits for nothing, for whichever event loop of the process wants to.

    Args:
        alias: Returns the alias of the database that is read.
    """

    def __init__(self, alias: Callable[[], str]) -> None:
        self._own = LoopConnection(alias, _writes_nothing)

    def read(self, function: Callable[..., T], *args: object) -> T:
        """Call a function whose queries of the database go over this connection.

        Args:
            function: The function. It is sync, waits for nothing else, and may be called once more, in a thread.
            *args: Its arguments.

        Returns:
            What it returns.

        Raises:
            NotHere: If there is no such connection, or the database or Django refused something.
        """
        connection = self._own.take()
        if connection is None:
            raise NotHere
        try:
            return _call_with(connection, function, args)
        except SynchronousOnlyOperation as error:
            # It asked for another database too.
            raise NotHere from error
        except Error as error:
            if not _is_well(connection.connection):
                self._own.drop()
            raise NotHere from error
        finally:
            self._own.give_back()

    def close(self) -> None:
        """Close the connection; the next reading asks for another one."""
        self._own.close()


def _call_with(connection: Any, function: Callable[..., T], args: tuple[object, ...]) -> T:
    if "cursor" not in vars(connection):
        _open_for_loops(connection)
    alias = connection.alias
    others = [each for each in connections.all(initialized_only=True) if each.alias == alias]
    connections[alias] = connection
    try:
        return function(*args)
    finally:
        if others:
            connections[alias] = others[0]
        else:
            del connections[alias]


def _open_for_loops(connection: Any) -> None:
    """Have an open connection work in the thread of an event loop, which it was not opened in.

    Of what Django guards against event loops a query calls these two.
    """
    connection.inc_thread_sharing()
    connection.ensure_connection = _is_open
    connection.cursor = connection._cursor


def _is_open() -> None:
    """It is; a driver that was closed says so itself."""


def _is_well(driver: sqlite3.Connection) -> bool:
    try:
        driver.execute("SELECT 1").fetchone()
        return not driver.in_transaction
    except sqlite3.Error:
        return False


def _writes_nothing(driver: sqlite3.Connection) -> bool:
    if not has_log_ahead(driver):
        return False
    driver.execute("PRAGMA query_only = ON")
    return True
