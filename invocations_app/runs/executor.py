"""A thread for the sync code of one run."""

from __future__ import annotations

from concurrent.futures import Executor, ThreadPoolExecutor
from typing import Any

from django.db import connections


class RunExecutor(Executor):
    """One thread, started when it is needed, with its own database connections."""

    def __init__(self) -> None:
        # Most runs need none, and a pool is not made for nothing.
        self._pool: ThreadPoolExecutor | None = None

    def submit(self, *args: Any, **kwargs: Any) -> Any:
        """Run a function in the thread.

        Args:
            *args: As of ``ThreadPoolExecutor.submit``.
            **kwargs: Likewise.
        """
        if self._pool is None:
            self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="invocations-run")
        return self._pool.submit(*args, **kwargs)

    def end(self) -> None:
        """Close the thread's database connections, after what still runs in it, and end it."""
        if self._pool is not None:
            self._pool.submit(connections.close_all)
            self._pool.shutdown(wait=False)
