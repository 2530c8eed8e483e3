"""A thread for the sync code of one run."""

from __future__ import annotations

from concurrent.futures import Executor, ThreadPoolExecutor
from typing import Any

from asgiref.sync import AsyncToSync, SyncToAsync, ThreadSensitiveContext
from django.db import connections


class RunExecutor(Executor):
    """One thread, started when it is needed, with its own database connections."""

    def __init__(self) -> None:
        # Most runs need none, and a pool is not made for nothing.
        self._pool: ThreadPoolExecutor | None = None
        self._context: Any = None

    def take_sync_code(self) -> None:
        """Have thread-sensitive code of the current context come here.

        As entering a `ThreadSensitiveContext` does, at half of its cost: what that puts back in the end is this
        context's, which ends with the run.
        """
        self._context = context = ThreadSensitiveContext(executor=self)
        SyncToAsync.thread_sensitive_context.set(context)
        SyncToAsync.context_to_thread_executor[context] = self
        # Where sync code waits for the whole request, its thread would be asked first.
        AsyncToSync.executors.current = None

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
        if self._context is not None:
            SyncToAsync.context_to_thread_executor.pop(self._context, None)
            # Whoever outlives the run is refused a thread, whose connection nobody would close.
            self._context._exited = True
            self._context = None
        if self._pool is not None:
            self._pool.submit(connections.close_all)
            self._pool.shutdown(wait=False)
