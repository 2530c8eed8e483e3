"""A tasks backend that notes what it is given, and a way to set ``TASKS``."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

from asgiref.local import Local
from django.test import override_settings

from invocations_app.runs import tasks_api

Base: Any = tasks_api.get().backends.base.BaseTaskBackend

enqueued: list[tuple[Any, Any, str]] = []
"""Arguments, keyword arguments and queue of each task, in order."""
broken: list[Exception] = []
"""What the backend raises instead, if anything."""


class NotingBackend(Base):  # type: ignore[misc]
    """Notes what it is given; no worker ever comes."""

    supports_async_task = True

    def enqueue(self, task: Any, args: Any, kwargs: Any) -> None:
        self.validate_task(task)
        if broken:
            raise broken[0]
        enqueued.append((args, kwargs, task.queue_name))


@contextlib.contextmanager
def tasks(settings: Mapping[str, Any]) -> Iterator[None]:
    """Set ``TASKS``, which the backport of the API reads only once."""
    handler = tasks_api.get().task_backends
    with override_settings(TASKS=settings):
        _forget(handler)
        yield
    _forget(handler)
    enqueued.clear()
    broken.clear()


def _forget(handler: Any) -> None:
    handler.__dict__.pop("settings", None)
    handler._settings = None
    handler._connections = Local(handler.thread_critical)
