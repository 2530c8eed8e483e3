"""The engine: starts runs, lets others follow and cancel them, and knows whether this process can serve."""

from __future__ import annotations

import asyncio

from django.db import connections

from invocations_app import targets
from invocations_app.exceptions import RunCancelled
from invocations_app.isolation import Scope
from invocations_app.runs.body import StreamBody
from invocations_app.runs.follow import Follower, event_count
from invocations_app.runs.host import get_host
from invocations_app.runs.readers import FirstReader, Joiner
from invocations_app.runs.run import Run, RunRequest
from invocations_app.storage import database, invocations
from invocations_app.storage.database import UNREACHABLE
from invocations_app.storage.invocations import StoredInvocation

__all__ = [
    "UNREACHABLE",
    "FirstReader",
    "Follower",
    "Joiner",
    "Run",
    "RunRequest",
    "StoredInvocation",
    "StreamBody",
    "cancel",
    "event_count",
    "is_ready",
    "look_up",
    "start",
]

# How long a cancellation is waited for before the caller is told how things stand.
_CANCEL_SECONDS = 3
_CANCEL_POLL_SECONDS = 0.1


def start(request: RunRequest) -> Run:
    """Start the run of a parsed request, in a task of its own.

    Args:
        request: What starts it.
    """
    return Run(request)


async def look_up(scope: Scope, invocation_id: str) -> StoredInvocation | None:
    """Return an invocation of a scope, or None.

    Args:
        scope: Endpoint and isolation keys of the caller.
        invocation_id: The invocation's id.
    """
    return await invocations.look_up(scope, invocation_id)


async def cancel(scope: Scope, invocation_id: str) -> StoredInvocation | None:
    """Cancel an invocation, in whichever process it runs, and wait a moment for its end.

    Args:
        scope: Endpoint and isolation keys of the caller.
        invocation_id: The invocation's id.

    Returns:
        The invocation as it is then; None for none.
    """
    stored = await invocations.request_cancel(scope, invocation_id)
    if stored is None:
        return None
    run = get_host().runs.get(stored.pk)
    if run is not None:
        run.cancel(RunCancelled())
    loop = asyncio.get_running_loop()
    deadline = loop.time() + _CANCEL_SECONDS
    while stored is not None and not stored.has_ended and loop.time() < deadline:
        if run is not None:
            await asyncio.wait([run.ended], timeout=deadline - loop.time())
        else:
            await asyncio.sleep(_CANCEL_POLL_SECONDS)
        stored = await invocations.read(stored.pk)
    return stored


async def is_ready() -> list[str]:
    """Return what keeps this process from serving: ``database``, ``target:<alias>`` and ``shutdown``."""
    failing = []
    try:
        await database.run(_ping)
    except UNREACHABLE:
        failing.append("database")
    failing += [f"target:{alias}" for alias in await targets.failing()]
    return [*failing, "shutdown"] if get_host().closing else failing


def _ping() -> None:
    with connections[database.alias()].cursor() as cursor:
        cursor.execute("SELECT 1")
