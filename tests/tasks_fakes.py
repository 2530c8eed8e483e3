"""A tasks backend that notes what it is given, and agents of a worker process that obey files."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from agent_framework import Agent, Message
from asgiref.local import Local
from django.test import override_settings

from invocations_app.runs import tasks_api
from tests import fakes

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


def obedient(messages: Sequence[Message]) -> Iterator[fakes.Step]:
    """``hold <path>``: say "one ", wait until the file is there, say "two"; anything else is echoed."""
    text = fakes.last_user_text(messages)
    if not text.startswith("hold ") or any(c.type == "function_result" for c in messages[-1].contents):
        yield from fakes.echo(messages)
        return
    path = Path(text.removeprefix("hold "))
    yield "one "
    yield lambda: path.with_suffix(".reached").touch()
    yield lambda: _wait_for(path)
    yield "two"


async def _wait_for(path: Path) -> None:
    try:
        while not path.exists():
            await asyncio.sleep(0.02)
    except asyncio.CancelledError:
        path.with_suffix(".cancelled").touch()
        raise


def build_obedient() -> Agent:
    return fakes._agent(obedient)
