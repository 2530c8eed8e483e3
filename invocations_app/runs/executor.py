"""A thread for the sync code of one run."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

from django.db import connections


class RunExecutor(ThreadPoolExecutor):
    """One thread, started when it is needed, with its own database connections."""

    def __init__(self) -> None:
        super().__init__(max_workers=1, thread_name_prefix="invocations-run")
        self._used = False

    def submit(self, *args: Any, **kwargs: Any) -> Any:
        """Run a function in the thread.

        Args:
            *args: As of ``ThreadPoolExecutor.submit``.
            **kwargs: Likewise.
        """
        self._used = True
        return super().submit(*args, **kwargs)

    def end(self) -> None:
        """Close the thread's database connections, after what still runs in it, and end it."""
        if self._used:
            self.submit(connections.close_all)
        self.shutdown(wait=False)
