"""The databases that the processes share, asked without Django: another pair of eyes."""

from __future__ import annotations

import contextlib
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import dj_database_url
import psycopg
from psycopg import sql


class Database(Protocol):
    """What a test needs of a database.

    Attributes:
        vendor: Its name.
    """

    vendor: str

    def settings(self, name: str, timeout_seconds: float) -> dict[str, Any]:
        """Return Django's settings for a process of that name."""
        ...

    def rows(self, query: str, *parameters: Any) -> list[tuple[Any, ...]]:
        """Return what a query finds; its parameters are ``%s``."""
        ...

    def connections(self, name: str) -> int | None:
        """Return how many connections a process has; None where only the process knows."""
        ...

    def away(self) -> contextlib.AbstractContextManager[None]:
        """Let nobody in for a while."""
        ...

    def is_locked(self) -> bool:
        """Say whether somebody holds what all writers need."""
        ...


class Sqlite:
    """A file."""

    vendor = "sqlite"

    def __init__(self, path: Path) -> None:
        self.path = path

    def settings(self, name: str, timeout_seconds: float) -> dict[str, Any]:
        return {
            "ENGINE": "django.db.backends.sqlite3",
            "NAME": str(self.path),
            "OPTIONS": {
                "timeout": timeout_seconds,
                "transaction_mode": "IMMEDIATE",
                "init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL;",
            },
        }

    def _connect(self) -> sqlite3.Connection:
        return sqlite3.connect(self.path, timeout=10, isolation_level=None)

    def rows(self, query: str, *parameters: Any) -> list[tuple[Any, ...]]:
        with contextlib.closing(self._connect()) as connection:
            return connection.execute(query.replace("%s", "?"), parameters).fetchall()

    def connections(self, name: str) -> int | None:
        return None

    @contextlib.contextmanager
    def away(self) -> Iterator[None]:
        with contextlib.closing(self._connect()) as connection:
            connection.execute("BEGIN EXCLUSIVE")
            yield
            connection.execute("ROLLBACK")

    def is_locked(self) -> bool:
        with contextlib.closing(sqlite3.connect(self.path, timeout=0, isolation_level=None)) as connection:
            try:
                connection.execute("BEGIN IMMEDIATE")
            except sqlite3.OperationalError:
                return True
            connection.execute("ROLLBACK")
        return False


class Postgresql:
    """A database of a server, with the pool that the site in ``project`` has."""

    vendor = "postgresql"

    def __init__(self, url: str, server_url: str) -> None:
        self.url = url
        self.server_url = server_url
        self.name = str(dj_database_url.parse(url)["NAME"])

    def settings(self, name: str, timeout_seconds: float) -> dict[str, Any]:
        settings = dict(dj_database_url.parse(self.url))
        settings["OPTIONS"] = {"pool": True, "application_name": name}
        return settings

    def rows(self, query: str, *parameters: Any) -> list[tuple[Any, ...]]:
        with psycopg.connect(self.url) as connection:
            return connection.execute(query.encode(), parameters).fetchall()

    def connections(self, name: str) -> int | None:
        with psycopg.connect(self.server_url) as connection:
            found = connection.execute("SELECT count(*) FROM pg_stat_activity WHERE application_name = %s", [name])
            return int(found.fetchall()[0][0])

    @contextlib.contextmanager
    def away(self) -> Iterator[None]:
        name = sql.Identifier(self.name)
        with psycopg.connect(self.server_url, autocommit=True) as connection:
            connection.execute(sql.SQL("ALTER DATABASE {} ALLOW_CONNECTIONS false").format(name))
            try:
                left = 1
                while left:
                    # One that was just being opened is caught the next time.
                    left = len(
                        connection.execute(
                            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", [self.name]
                        ).fetchall()
                    )
                    time.sleep(0.05)
                yield
            finally:
                connection.execute(sql.SQL("ALTER DATABASE {} ALLOW_CONNECTIONS true").format(name))

    def is_locked(self) -> bool:
        with psycopg.connect(self.url) as connection:
            found = connection.execute(
                "SELECT count(*) FROM pg_stat_activity WHERE datname = %s AND state LIKE 'idle in transaction%%'",
                [self.name],
            )
            return bool(found.fetchall()[0][0])
